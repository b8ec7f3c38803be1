"""A job as a server tells it, and no real waiting."""

from collections.abc import Callable
from typing import Any

import pytest

from contracts.jobs import BudgetState, Job, JobStatus


@pytest.fixture
def job() -> Callable[..., dict[str, Any]]:
    """`job("running")` is the JSON of a job in that state."""

    def make(status: str = "queued", **fields: Any) -> dict[str, Any]:
        body = Job(
            id="j1",
            name=None,
            tags=[],
            status=JobStatus(status),
            created_at="2026-01-01T00:00:00Z",
            budget=BudgetState(limit=10, confirmed=0, unconfirmed=0, reserved=0, left=10),
            request={"apis": [{"url": "http://a/v2/models/x"}], "budget": {"queries": 10}},
        )
        return body.model_dump(mode="json") | fields

    return make


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept, instead of sleeping."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("client._flow.time.sleep", slept.append)
    monkeypatch.setattr("client._flow.anyio.sleep", sleep)
    return slept
