"""What a task logs names its job, its role and its tenant, on the loop's thread and on the task's."""

from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from celery import Celery

from contracts.jobs import JobRequest
from meta_server.queue import ACQUIRE_TASK, Queue
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering.leases import LeaseLost
from metering.scripts import connect, disconnect
from worker import tasks
from worker.settings import Settings
from worker.stopping import Stopping

pytestmark = [pytest.mark.redis]


async def _made(url: str, secret: str) -> str:
    redis = connect(url)
    request = JobRequest.model_validate({"apis": [{"url": "http://zoo.test/v2/models/a"}], "budget": {"queries": 10}})
    job, _ = await JobStore(redis, secrets=Secrets(secret)).create(request, tenant="vision")
    await disconnect(redis)
    return job.id


@pytest.mark.parametrize(
    ("raised", "event"), [(RuntimeError("a fault"), "task_failed"), (LeaseLost("x"), "lease_lost")], ids=["on", "off"]
)
def test_lines_name_job_role_and_tenant(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, event: str
) -> None:
    secret = Secrets.generate()
    settings = Settings(redis_url=redis_url, artifacts=str(tmp_path), secret_key=secret)

    async def broken(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(tasks, "acquire", broken)
    app = Celery("test", set_as_current=False)
    close = tasks.register(app, settings, Queue(redis_url), Stopping())
    job_id = anyio.run(_made, redis_url, secret)
    try:
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
            app.tasks[ACQUIRE_TASK](job_id, "a0")
    finally:
        close()
    (line,) = [line for line in logged if line["event"] == event]
    assert (line["job_id"], line["role"], line["tenant"]) == (job_id, "acquire:a0", "vision")
    assert structlog.contextvars.get_contextvars() == {}
