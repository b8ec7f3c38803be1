"""Money passes between text and whole millionths without loss."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.jobs import JobRequest
from contracts.money import MICRO, micro, told
from contracts.problems import faults


@given(st.integers(0, 10**16))
def test_what_is_told_is_what_there_is(amount: int) -> None:
    text = told(amount)
    assert micro(text) == amount
    assert Decimal(text) * MICRO == amount
    assert len(text.partition(".")[2]) >= 2


@pytest.mark.parametrize(
    ("apis", "budget", "fields"),
    [
        ([{"price_per_1k": "1.5"}, {}], {"cost": "2"}, ["apis.1.price_per_1k"]),
        ([{"price_per_1k": "10000.01"}], {}, ["apis.0.price_per_1k"]),
        ([{"price_per_1k": "-1"}], {"cost": "1.0000001"}, ["apis.0.price_per_1k", "budget.cost"]),
        ([{}], {"seconds": 0, "currency": "euro"}, ["budget.currency", "budget.seconds"]),
        ([{"price_per_1k": 1.5}], {}, ["apis.0.price_per_1k"]),
    ],
)
def test_what_is_no_money_is_named(apis: list[dict[str, str]], budget: dict[str, str], fields: list[str]) -> None:
    listed = [{"url": f"http://a.test/{index}", **api} for index, api in enumerate(apis)]
    with pytest.raises(ValidationError) as raised:
        JobRequest.model_validate({"apis": listed, "budget": {"queries": 10, **budget}})
    assert sorted(fault.field for fault in faults(list(raised.value.errors()))) == fields
