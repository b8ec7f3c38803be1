"""A job's method: told apart by name, each with its own options, faults placed as the caller wrote them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from contracts.methods import METHOD_NAMES, DistillAverageOptions, MethodOptions, PqdOptions

method: TypeAdapter[object] = TypeAdapter(MethodOptions)


def faults(given: object) -> dict[tuple[object, ...], str]:
    with pytest.raises(ValidationError) as caught:
        method.validate_python(given)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def test_every_name_has_its_options_and_no_name_is_pqd() -> None:
    for name in METHOD_NAMES:
        assert method.validate_python({"name": name}).name == name  # type: ignore[attr-defined]
    assert method.validate_python({"steps": 3}) == PqdOptions(steps=3)
    assert method.validate_json('{"name": "distill_average", "steps": 3}') == DistillAverageOptions(steps=3)
    given = DistillAverageOptions(steps=7)
    assert method.validate_python(method.dump_python(given)) == method.validate_python(given) == given


def test_faults_are_named_where_they_were_written() -> None:
    assert list(faults({"name": "distill_average", "steps": 0, "relation": 1})) == [("steps",), ("relation",)]
    assert "choose one of pqd, " in faults({"name": "magic"})[("name",)]
    assert list(faults({"mixture": {"leaves": 0}})) == [("mixture",)]
    assert faults(3)
