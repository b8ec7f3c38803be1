"""The command against a prepared server."""

from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

import client
from contracts.jobs import ApiProgress, BudgetState, Job, JobStatus, Phase, Progress

Handler = Callable[[httpx.Request], httpx.Response]
Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(app, handler, "list", "--json")` runs a command whose requests `handler` answers."""
    for name in ("URL", "API_KEY", "ZOO_URL", "ZOO_API_KEY", "PROFILE"):
        monkeypatch.delenv(f"METAZOO_{name}", raising=False)
    monkeypatch.setattr("client._flow.time.sleep", lambda seconds: None)

    def run(app: Any, handler: Handler, *arguments: str, **options: Any) -> Result:
        made = partial(client.Metazoo, transport=httpx.MockTransport(handler))
        monkeypatch.setattr("client.Metazoo", made)
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)

    return run


@pytest.fixture
def job() -> Callable[..., Job]:
    """`job("running")` is a job of two APIs in that state."""

    def make(status: str = "queued", **fields: Any) -> Job:
        apis = {
            "a0": ApiProgress(
                url="http://zoo/v2/models/first", state="acquiring", answered=20, planned=50, stands_in_for="a1"
            ),
            "a1": ApiProgress(url="http://zoo/v2/models/second", state="dropped", reason="it answers nothing"),
        }
        return Job(
            id="job_1",
            name="trial",
            tags=[],
            status=JobStatus(status),
            phase=Phase.ACQUIRE,
            created_at="2026-01-01T00:00:00Z",
            progress=Progress(phase={Phase.PROBE: 1.0, Phase.ACQUIRE: 0.4}, per_api=apis),
            budget=BudgetState(limit=100, confirmed=20, unconfirmed=1, reserved=9, left=70),
            seconds={Phase.PROBE: 1.5},
            request={"apis": [{"url": api.url} for api in apis.values()], "budget": {"queries": 100}},
            **fields,
        )

    return make
