"""What benches are asked for is refused whole, before anything runs."""

import pytest
import typer

from benchmarks.rig.options import by_method, named, numbers


def test_a_list_is_taken_in_its_order_without_blanks_and_nothing_twice() -> None:
    assert named("free, pqd,free,", ("pqd", "free"), option="--methods") == ["free", "pqd"]
    assert numbers("20480, 5120", option="--budgets") == [20480, 5120]
    assert by_method('{"free": {"epochs": 30}}', option="--options") == {"free": {"epochs": 30}}


@pytest.mark.parametrize(
    ("given", "said"), [("pqd,fre,x", ["fre, x", "choose from pqd, free"]), (" ,", ["it is empty", "pqd, free"])]
)
def test_names_that_are_not_known_are_all_told(given: str, said: list[str]) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        named(given, ("pqd", "free"), option="--methods")
    assert refused.value.param_hint == "--methods"
    assert all(part in refused.value.message for part in said)


@pytest.mark.parametrize(("given", "said"), [("5120,-1,0,1e3", "-1, 0, 1e3"), ("", "nothing")])
def test_numbers_that_are_none_are_all_told(given: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"^{said}: "):
        numbers(given, option="--budgets")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", ["not JSON"]),
        ("[]", ["by method"]),
        (
            '{"pqd": {"steps": 0, "speed": 1}, "fre": {}}',
            ["pqd.steps: must be greater", "pqd.speed: is no field", "fre: there is no such method"],
        ),
    ],
)
def test_options_that_no_method_takes_are_all_told(given: str, said: list[str]) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        by_method(given, option="--options")
    assert all(part in refused.value.message for part in said)
