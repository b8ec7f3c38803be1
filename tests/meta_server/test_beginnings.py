"""Messages that have new jobs begun: each job in one, however many come, and none kept waiting for by a request."""

import asyncio
import threading
from functools import partial

import anyio
import pytest
from kombu.exceptions import OperationalError

from meta_server.background import running
from meta_server.beginnings import Beginnings

pytestmark = pytest.mark.anyio


class SlowQueue:
    """Takes a message once it is let; the first `lost` are refused."""

    def __init__(self, lost: int = 0, fault: type[Exception] = OperationalError) -> None:
        self.sent: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Event()
        self._lost, self._fault = lost, fault

    def begin(self, job_ids: list[str], traces: object) -> None:
        self.sent.append(job_ids)
        self.begun.release()
        assert self.let.wait(60)
        if len(self.sent) <= self._lost:
            raise self._fault("connection refused")


async def test_all_that_come_while_a_message_is_sent_go_in_the_next() -> None:
    queue = SlowQueue()
    beginnings = Beginnings(queue)  # type: ignore[arg-type]
    names = [f"job_{number}" for number in range(100)]
    async with running(beginnings.run()):
        beginnings.add(names[0])
        assert await anyio.to_thread.run_sync(partial(queue.begun.acquire, timeout=60))
        for name in names[1:]:
            beginnings.add(name)
        queue.let.set()
        assert await anyio.to_thread.run_sync(partial(queue.begun.acquire, timeout=60))
    assert queue.sent == [names[:1], names[1:]]


async def test_what_waits_when_the_server_stops_is_sent() -> None:
    queue = SlowQueue()
    queue.let.set()
    beginnings = Beginnings(queue)  # type: ignore[arg-type]
    async with running(beginnings.run()):
        await asyncio.sleep(0)  # it waits for the first
        beginnings.add("job_1")
    await beginnings.close()
    await beginnings.close()
    assert queue.sent == [["job_1"]]


@pytest.mark.parametrize("fault", [OperationalError, ValueError])
async def test_a_message_that_is_lost_holds_no_other_up(fault: type[Exception]) -> None:
    queue = SlowQueue(lost=1, fault=fault)
    queue.let.set()
    beginnings = Beginnings(queue)  # type: ignore[arg-type]
    async with running(beginnings.run()):
        for name in ("job_1", "job_2"):
            beginnings.add(name)
            assert await anyio.to_thread.run_sync(partial(queue.begun.acquire, timeout=60))
    assert queue.sent == [["job_1"], ["job_2"]]  # the reaper begins the first
