"""Both clients against the real server over real sockets: a job followed live, across a restart of the server."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from client import ApiUnavailable, AsyncMetazoo, Conflict, InvalidRequest, Metazoo, NotFound, Unauthorized
from contracts.jobs import Phase
from meta_server.app import create_app
from meta_server.settings import Settings
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metazoo.redis_server import free_port
from metering.scripts import connect

pytestmark = pytest.mark.redis

KEY = "server-key-of-the-tests"
REQUEST: dict[str, Any] = {"apis": [{"url": "http://zoo.test/v2/models/a"}], "budget": {"queries": 100}}


class Running:
    """The server in a thread; stopped and started again at will, always on the same port."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self.settings), port=self.port, log_config=None, timeout_graceful_shutdown=1, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server ended before it had started"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server does not end"


@pytest.fixture
def server(redis_url: str, tmp_path: Path) -> Iterator[Running]:
    running = Running(
        Settings(redis_url=redis_url, artifacts=str(tmp_path), secret_key=Secrets.generate(), api_key=KEY)
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def work(server: Running, redis_url: str) -> Callable[[str], None]:
    """`work(job_id)` does what workers would: ten events, then the job is cancelled."""

    async def do(job_id: str) -> None:
        redis = connect(redis_url)
        store = JobStore(redis, secrets=Secrets(server.settings.secret_key.get_secret_value()))
        lease = await store.take(job_id, "acquire:a0", "test")
        assert lease is not None
        await store.work.begin(job_id, lease)
        for step in range(10):
            await store.work.progress(job_id, lease, Phase.PROBE, step / 10)
            await asyncio.sleep(0.1)
        await store.moves.cancel(job_id)
        await store.leases.release(lease)
        assert await store.moves.close(job_id)
        await redis.aclose()

    return lambda job_id: asyncio.run(do(job_id))


def test_a_job_is_followed_across_a_restart(server: Running, work: Callable[[str], None]) -> None:
    with Metazoo(server.url, KEY) as metazoo:
        job = metazoo.jobs.create(REQUEST)
        worker = threading.Thread(target=work, args=(job.id,), daemon=True)
        seen = []
        worker.start()
        for event in job.stream():
            seen.append(event)
            if len(seen) == 5:
                server.stop()
                threading.Timer(0.7, server.start).start()
        worker.join()
        assert seen == list(job.events())
        assert seen[-1].data["status"] == job.status == "cancelled"
        assert list(job.stream(after=seen[-1].id)) == []


def test_many_watchers_each_see_everything(server: Running, work: Callable[[str], None]) -> None:
    with Metazoo(server.url, KEY) as metazoo:
        job = metazoo.jobs.create(REQUEST)
    worker = threading.Thread(target=work, args=(job.id,), daemon=True)
    worker.start()

    async def watch() -> list[list[str]]:
        async with AsyncMetazoo(server.url, KEY) as metazoo:

            async def one() -> list[str]:
                watched = await metazoo.jobs.retrieve(job.id)
                return [event.id async for event in watched.stream()]

            return await asyncio.gather(*(one() for _ in range(10)))

    seen = asyncio.run(watch())
    worker.join()
    assert all(ids == seen[0] for ids in seen)
    assert len(seen[0]) == 14


def test_images_of_ones_own_are_uploaded_and_named_in_a_job(server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(18):
        Image.new("RGB", (20, 10), (index, 0, 0)).save(folder / ("more" if index % 2 else "") / f"{index}.png")
    (folder / "notes.txt").write_text("none of them")
    with Metazoo(server.url, KEY) as metazoo:
        mine = metazoo.image_sets.create(folder, name="photos")
        assert (mine.name, mine.images) == ("photos", 18)
        assert metazoo.image_sets.list().items == [mine]
        job = metazoo.jobs.create(REQUEST | {"unlabeled": mine.id})
        assert job.request.unlabeled == mine.id
        again = metazoo.image_sets.create([Image.new("RGB", (20, 10))] * 16)
        assert again.images == 16
        with pytest.raises(InvalidRequest, match="holds no"):
            metazoo.image_sets.create(tmp_path / "none")
        with pytest.raises(InvalidRequest, match=r"body\.000000"):
            metazoo.image_sets.create([b"no image"] * 16)
        metazoo.image_sets.delete(mine.id)
        with pytest.raises(NotFound):
            metazoo.image_sets.retrieve(mine.id)
        with pytest.raises(InvalidRequest, match="unlabeled"):
            metazoo.jobs.create(REQUEST | {"unlabeled": mine.id})

    async def the_same() -> None:
        metazoo = AsyncMetazoo(server.url, KEY)
        made = await metazoo.image_sets.create(folder)
        assert made.sha256 == mine.sha256
        assert (await metazoo.image_sets.list()).items == [made, again]
        await metazoo.image_sets.delete((await metazoo.image_sets.retrieve(made.id)).id)
        await metazoo.close()

    asyncio.run(the_same())


def test_what_goes_wrong_is_typed(server: Running) -> None:
    with Metazoo(server.url, KEY) as metazoo:
        with pytest.raises(InvalidRequest) as caught:
            metazoo.jobs.create({"apis": [{"url": "x"}], "budget": {"queries": 0}, "surprise": 1})
        assert {fault.field for fault in caught.value.fields} == {"apis.0.url", "budget.queries", "surprise"}
        assert caught.value.request_id
        with pytest.raises(NotFound):
            metazoo.jobs.retrieve("job_none")
        job = metazoo.jobs.create(REQUEST)
        assert job.cancel().status == "cancelled"
        with pytest.raises(Conflict):
            job.cancel()
        assert [each.id for each in metazoo.jobs.list(status="cancelled").items] == [job.id]
    with Metazoo(server.url, "wrong") as metazoo, pytest.raises(Unauthorized):
        metazoo.jobs.list()
    with Metazoo(f"http://127.0.0.1:{free_port()}", KEY, max_retries=0) as metazoo, pytest.raises(ApiUnavailable):
        metazoo.jobs.list()
