"""What happens when a part that a new job needs is away for a moment."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from kombu.exceptions import OperationalError

from meta_server.app import create_app
from meta_server.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


class LostQueue:
    """Takes nothing."""

    def begin(self, job_ids: list[str], traces: object) -> None:
        raise OperationalError("connection refused")

    def send(self, job_id: str, role: str, *, tenant: str) -> None:
        raise OperationalError("connection refused")


async def test_a_stored_job_is_accepted_although_the_queue_is_away(
    make_settings: Callable[..., Settings], request_body: Any, redis_url: str
) -> None:
    settings = make_settings(redis_url)
    app = create_app(settings, queue=LostQueue())  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server.test", headers=headers) as http:
            created = await http.post("/v1/jobs", json=request_body)
            assert created.status_code == 202
            assert (await http.get(created.headers["location"])).json()["status"] == "queued"


@pytest.mark.parametrize("moments", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_stopping_at_any_moment_leaves_no_connection_open(
    make_settings: Callable[..., Settings], redis_url: str, moments: int
) -> None:
    """What was just being opened is closed too: a warning of an open socket is an error here."""
    app = create_app(make_settings(redis_url))
    async with app.router.lifespan_context(app):
        for _ in range(moments):
            await asyncio.sleep(0)
    gc.collect()
