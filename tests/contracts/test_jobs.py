"""Requests of jobs: refused whole with every fault named; states: one table, no way back."""

from typing import Any

import pytest
from pydantic import ValidationError

from contracts.jobs import ENDED, MOVES, JobRequest, JobStatus
from contracts.problems import PROBLEMS, ProblemError, faults

GOOD: dict[str, Any] = {"apis": [{"url": "https://a.example/v2/models/m/"}], "budget": {"queries": 10}}


def test_defaults() -> None:
    request = JobRequest.model_validate(GOOD)
    assert request.apis[0].url == "https://a.example/v2/models/m"
    assert request.method.name == "pqd"
    assert [request.least_apis(asked) for asked in (1, 2, 9)] == [1, 1, 4]


def test_a_key_is_never_shown() -> None:
    request = JobRequest.model_validate({**GOOD, "apis": [{"url": "https://a.example/m", "api_key": "hush"}]})
    assert "hush" not in repr(request) + request.model_dump_json()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"apis": []}, "apis"),
        ({"budget": {"queries": 0}}, "budget.queries"),
        ({"budget": {"queries": 1.5}}, "budget.queries"),
        ({"budget": {"queries": 10, "per_day": 3}}, "budget.per_day"),
        ({"method": {"name": "magic"}}, "method.name"),
        ({"method": {"name": "pqd", "imagse": 3}}, "method.imagse"),
        ({"method": {"name": "pqd", "relation": float("nan")}}, "method.relation"),
        ({"method": {"name": "pqd", "mixture": {"leaves": 0}}}, "method.mixture"),
        ({"meta_model": {"backbone": "vit"}}, "meta_model.backbone"),
        ({"seed": -1}, "seed"),
        ({"sede": 1}, "sede"),
        ({"apis": [{"url": "ftp://a.example/m"}]}, "apis.0.url"),
        ({"apis": [{"url": "http://user:pass@a.example/m"}]}, "apis.0.url"),
        ({"apis": [{"url": "http://a.example/m?key=1"}]}, "apis.0.url"),
        ({"apis": GOOD["apis"] * 2}, "apis.1.url"),
        ({"min_apis": 2}, "min_apis"),
        ({"apis": [{"url": f"https://a.example/{i}"} for i in range(11)]}, "budget.queries"),
        ({"evaluation": {"shots": []}}, "evaluation.shots"),
    ],
)
def test_a_fault_is_named_by_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({**GOOD, **change})
    assert [fault.field for fault in faults(caught.value.errors())] == [field]


def test_all_faults_are_named_together() -> None:
    bad = {"apis": [{"url": "x"}, {}], "budget": {}, "surprise": 1}
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(bad)
    found = {fault.field for fault in faults(caught.value.errors())}
    assert found == {"apis.0.url", "apis.1.url", "budget.queries", "surprise"}


def test_the_moves_between_states() -> None:
    assert {(state.value, target.value) for state, targets in MOVES.items() for target in targets} == {
        *(("queued", target) for target in ("running", "paused", "cancelled", "failed")),
        *(("running", target) for target in ("pausing", "cancelling", "succeeded", "failed")),
        *(("pausing", target) for target in ("paused", "cancelling", "failed")),
        *(("paused", target) for target in ("queued", "cancelling", "failed")),
        *(("cancelling", target) for target in ("cancelled", "failed")),
        ("failed", "queued"),
    }
    assert set(MOVES) == set(JobStatus)
    # an end is where nothing happens by itself: only a retry, which a person asks for, leads out of one
    assert {state for state, targets in MOVES.items() if targets <= {JobStatus.QUEUED}} == ENDED


def test_every_problem_can_be_raised_and_carries_its_extension() -> None:
    for name, (status, title) in PROBLEMS.items():
        problem = ProblemError(name, "Try again.", left=3).problem
        assert (problem.status, problem.title) == (status, title)
        assert problem.model_dump()["left"] == 3
        assert problem.model_dump()["error"] == f"{title}: Try again."
