"""Real Celery workers, real HTTP, real Redis: jobs that run, and workers that are stopped or killed while they do."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image
from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.jobs import JobStatus
from dfml.checkpoint import decode
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import weights
from meta_server import reaper
from meta_server.app import create_app
from meta_server.background import running
from meta_server.queue import ACQUIRE_QUEUE, ACQUIRE_QUEUES, LEARN_QUEUES, Queue, lane_of
from meta_server.reaper import Reaper
from meta_server.settings import Settings
from meta_server.store import keys
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering import leases
from metering.leases import UNLIMITED, Leases
from metering.scripts import MICROSECONDS, Scripts, connect
from worker.queries import queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.process, pytest.mark.timeout(180)]

KEY = "key-of-this-server-0"

START = """
import os
os.environ["REMAP_SIGTERM"] = "SIGQUIT"
from metazoo import logs
from worker.app import start
from worker.settings import Settings
start(Settings(), queues={queues!r}, name={queue!r}, concurrency={concurrency}, set_up_logging=logs.configure)
"""


class Served:
    """A fake API over HTTP on loopback, each infer request taking `seconds`."""

    def __init__(self, api: Any, seconds: float = 0.0) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.endswith("/infer"):
                    time.sleep(seconds)
                content = self.rfile.read(int(self.headers.get("content-length", 0)))
                request = httpx.Request(
                    self.command, f"http://x{self.path}", headers=dict(self.headers), content=content
                )
                response = asyncio.run(api.handle(request))
                self.send_response(response.status_code)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.content)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Silence."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(api: Any, seconds: float = 0.0) -> Served:
        made.append(Served(api, seconds))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def secret_key() -> str:
    return Secrets.generate()


@pytest.fixture
def start_worker(redis_url: str, secret_key: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(
        queue: str, *, allow: str, concurrency: int = 1, artifacts: str | None = None, **more: str
    ) -> subprocess.Popen[bytes]:
        own = {
            "REDIS_URL": redis_url,
            "METAZOO_ARTIFACTS": artifacts or str(tmp_path / "artifacts"),
            "METAZOO_SECRET_KEY": secret_key,
            "METAZOO_ALLOW": allow,
            "OMP_NUM_THREADS": "1",
        }
        environment = os.environ | own | more
        queues = ACQUIRE_QUEUES if queue == ACQUIRE_QUEUE else LEARN_QUEUES
        code = START.format(queue=queue, queues=queues, concurrency=concurrency)
        with (tmp_path / f"{queue}-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis: Redis, secret_key: str) -> JobStore:
    return JobStore(redis, secrets=Secrets(secret_key))


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    made = Queue(redis_url)
    yield made
    made.close()


async def until(store: JobStore, job_id: str, done: Callable[[Any], bool], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        job = await store.get(job_id)
        if done(job):
            return job
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.1)


def said(folder: Path) -> str:
    """What all workers logged."""
    return "\n".join(file.read_text() for file in folder.glob("*.log"))


def request_to(request_of: Any, *served: Served, **changes: Any) -> Any:
    apis = [{"url": f"http://{one.host}/v2/models/m"} for one in served]
    return request_of(apis=apis, method={"steps": 4, "batch": 8}, meta_model={"width": 16}, **changes)


async def test_a_job_through_both_workers(
    store: JobStore,
    redis_url: str,
    queue: Queue,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    tmp_path: Path,
) -> None:
    served = [serve(api(shape=(3, 32, 32))) for _ in range(2)]
    allow = ",".join(one.host for one in served)
    start_worker("acquire", allow=allow, concurrency=2)
    start_worker("learn.cpu", allow=allow)
    evaluation = {"dataset": "glyphs", "episodes": 4, "shots": [1]}
    job, _ = await store.create(request_to(request_of, *served, budget={"queries": 200}, evaluation=evaluation))
    queue.begin([job.id])
    ended = await until(store, job.id, lambda job: job.finished_at is not None)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.budget.confirmed == 200
    assert ended.score is not None
    assert ended.random_score is not None
    words = said(tmp_path)
    assert {json.loads(line)["level"] for line in words.splitlines() if line} == {"info"}, words
    assert redis_url.split("@")[0].split(":")[-1] not in words  # the password
    assert "Warning" not in words


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the S3 server and botocore
async def test_a_job_whose_files_lie_in_s3(
    redis_url: str,
    secret_key: str,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    s3_url: str,
    tmp_path: Path,
) -> None:
    """From the POST to predictions and back to nothing, over three processes that share no folder."""
    served = [serve(api()) for _ in range(2)]
    allow = ",".join(one.host for one in served)
    for queue in ("acquire", "learn.cpu"):
        start_worker(queue, allow=allow, concurrency=2 if queue == "acquire" else 1, artifacts=s3_url)
    settings = Settings(redis_url=redis_url, artifacts=s3_url, secret_key=secret_key, api_key=KEY)
    app = create_app(settings)
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server.test", headers={"Authorization": f"Bearer {KEY}"}
    )
    async with app.router.lifespan_context(app), http:
        request = request_to(request_of, *served, budget={"queries": 200})
        asked = await http.post("/v1/jobs", json=request.model_dump(mode="json", exclude_unset=True))
        job = await until(app.state.services.jobs, asked.json()["id"], lambda job: job.finished_at is not None)
        assert job.status == JobStatus.SUCCEEDED, (job.error, said(tmp_path))
        assert job.budget.confirmed == 200
        paid = (await http.get(f"/v1/jobs/{job.id}/answers?limit=100")).json()["items"]
        assert sum(answer["images"] for answer in paid) == 200
        answer = await http.get(f"/v1/jobs/{job.id}/answers/{paid[0]['name']}")
        assert len(safetensors.numpy.load(answer.content)["indices"]) == paid[0]["images"]
        model = (await http.get(f"/v1/meta-models/{job.meta_model}")).json()
        files = [await http.get(f"/v1/meta-models/{model['id']}/files/{name}") for name in model["files"]]
        assert {name: sha256(file.content).hexdigest() for name, file in zip(model["files"], files, strict=True)} == (
            model["files"]
        )
        pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "maroon", "green")]
        contents = [BytesIO() for _ in pictures]
        for picture, content in zip(pictures, contents, strict=True):
            picture.save(content, "PNG")
        encoded = [base64.b64encode(content.getvalue()).decode() for content in contents]
        task = {"support": {"images": encoded[:2], "labels": ["red", "green"]}, "method": "prototypes"}
        adapted = (await http.post(f"/v1/meta-models/{model['id']}/adapt", json=task)).json()
        assert sorted(adapted["labels"]) == ["green", "red"]
        guessed = await http.post(f"/v1/meta-models/{model['id']}/predict", json=task | {"query": encoded[2:]})
        assert guessed.status_code == 200, guessed.text
        store = Artifacts(s3_url)
        assert store.list(f"jobs/{job.id}/answers")
        assert store.list("adapted-models")
    assert not any(file.endswith(".safetensors") for _, _, files in os.walk(tmp_path) for file in files)


async def test_a_large_job_keeps_no_small_one_waiting(
    store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    """One place, a job of 16 APIs in line, and then two of 2 APIs, by two tenants: they take turns from there on.

    Of four turns two are the other tenant's, and each of the first one's jobs has one.
    """
    order: list[str] = []

    def telling(job: str) -> Any:
        class Telling(api):
            async def handle(self, request: httpx.Request) -> httpx.Response:
                if request.url.path.endswith("/infer") and not self.charged:
                    order.append(job)
                return await super().handle(request)

        return serve(Telling())

    asked: dict[str, list[Served]] = {name: [] for name in ("large", "small", "other")}
    jobs: dict[str, str] = {}
    lanes: dict[str, str] = {}
    for name, tenant, apis in (("large", "a", 16), ("small", "a", 2), ("other", "b", 2)):
        asked[name] = [telling(name) for _ in range(apis)]
        while name not in jobs or len(set(lanes.values())) < len(jobs):  # no chance in it
            job, _ = await store.create(
                request_to(request_of, *asked[name], budget={"queries": 16 * apis}), tenant=tenant
            )
            jobs[name], lanes[name] = job.id, lane_of(job.id, tenant)
        queue.send_all(jobs[name], (await store.load(jobs[name])).due(), tenant=tenant)
    start_worker("acquire", allow=",".join(one.host for served in asked.values() for one in served))
    for name in ("small", "other"):
        await until(
            store, jobs[name], lambda job: all(one.state == "done" for one in job.progress.per_api.values()), 60
        )
    began = order[: max(len(order) - order[::-1].index(name) for name in ("small", "other"))]
    assert began.count("large") <= 4, order


async def test_sigterm_hands_the_task_on_at_once(
    store: JobStore, redis: Redis, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    served = serve(slow := api(), 0.2)
    first = start_worker("acquire", allow=served.host)
    job, _ = await store.create(request_to(request_of, served, budget={"queries": 640}))
    queue.begin([job.id])
    await until(store, job.id, lambda job: job.budget.confirmed > 50)
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    await asyncio.to_thread(first.wait, 30)
    assert time.monotonic() - asked < 12
    assert (await store.get(job.id)).status == JobStatus.RUNNING
    start_worker("acquire", allow=served.host)
    ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 640
    assert ended.attempt <= 1


async def test_a_killed_worker_costs_a_lease_and_no_answer(
    store: JobStore,
    redis: Redis,
    queue: Queue,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although the server that reaped is killed with it. All times are a fifteenth of those in production."""
    for name in ("EVERY", "SECONDS", "PATIENCE", "BEAT"):
        monkeypatch.setattr(reaper, name, getattr(reaper, name) / 15)
    served = serve(slow := api(), 0.2)
    worker = start_worker("acquire", allow=served.host)
    job, _ = await store.create(request_to(request_of, served, budget={"queries": 640}))
    queue.begin([job.id])
    await until(store, job.id, lambda job: job.budget.confirmed > 50)
    worker.kill()
    worker.wait()
    left = Leases(Scripts(redis), seconds=reaper.SECONDS, attempts=UNLIMITED)
    assert await left.take(keys.SERVICE_LEASES, reaper.ROLE, "a server that was killed")
    seconds, _ = await redis.time()  # type: ignore[misc]
    deadline = (seconds + leases.SECONDS / 15) * MICROSECONDS
    await redis.hset(keys.job(job.id, "leases"), "deadline:acquire:a0", f"{deadline:.0f}")  # type: ignore[misc]
    start_worker("acquire", allow=served.host)
    async with running(Reaper(store, queue, redis, beat=reaper.BEAT).run()):
        ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 640


async def test_a_killed_learner_is_followed_by_one_that_goes_on_from_its_checkpoint(
    store: JobStore,
    redis: Redis,
    queue: Queue,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("EVERY", "SECONDS", "PATIENCE", "BEAT"):
        monkeypatch.setattr(reaper, name, getattr(reaper, name) / 15)
    served = serve(one := api())
    start_worker("acquire", allow=served.host)
    learner = start_worker("learn.cpu", allow=served.host, METAZOO_CHECKPOINT_EVERY="0")
    request = request_to(request_of, served, budget={"queries": 64})
    request = request.model_copy(update={"method": request.method.model_copy(update={"steps": 300})})
    job, _ = await store.create(request)
    queue.begin([job.id])
    while "training" not in (await store.load(job.id)).checkpoints:
        assert learner.poll() is None
        await asyncio.sleep(0.02)
    killed = [*psutil.Process(learner.pid).children(recursive=True), learner]
    for process in killed:
        process.kill()
    for process in killed:
        process.wait()
    stored = await store.load(job.id)
    assert "backbone" not in stored.checkpoints
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    done = decode(artifacts.recall(json.loads(stored.checkpoints["training"])["path"]))["done"]
    before = len((await store.events.metrics(job.id)).items)
    # let the lease run out now instead of in 45 s
    await redis.hset(keys.job(job.id, "leases"), "deadline:learn", "1")  # type: ignore[misc]
    start_worker("learn.cpu", allow=served.host)
    async with running(Reaper(store, queue, redis, beat=reaper.BEAT).run()):
        ended = await until(store, job.id, lambda job: job.finished_at is not None)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    told = (await store.events.metrics(job.id)).items[before:]
    assert all(point.step > done for point in told)
    assert ended.budget.confirmed == one.charged == 64

    torch.set_num_threads(1)
    pool = queries_of(request, (3, 16, 16)).images(range(64))
    answers = Answers(torch.from_numpy(pool), [torch.from_numpy(one.answer(pool))], torch.ones(64, 1, dtype=torch.bool))
    wanted = weights(pqd.distil(answers, request.meta_model, request.method, seed=0).backbone)
    (path,) = artifacts.list(f"jobs/{job.id}/checkpoints")
    got = safetensors.torch.load(artifacts.recall(path))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


async def test_a_job_is_paused_and_resumed_without_losing_an_answer(
    store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    served = serve(slow := api(idempotency=False), 0.2)  # a lost answer would be lost for good
    start_worker("acquire", allow=served.host)
    job, _ = await store.create(request_to(request_of, served, budget={"queries": 320}))
    queue.begin([job.id])
    await until(store, job.id, lambda job: job.budget.confirmed > 50)
    await store.moves.pause(job.id, reason="night")
    paused = await until(store, job.id, lambda job: job.status == JobStatus.PAUSED, 40)
    assert (paused.reason, paused.budget.reserved, paused.budget.unconfirmed) == ("night", 0, 0)
    assert paused.budget.confirmed == slow.charged < 320
    await store.moves.resume(job.id)
    queue.send_all(job.id, (await store.load(job.id)).due(), tenant=DEFAULT_TENANT)
    ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 320
