"""How fast the meta server answers: jobs made and listed, events followed, adapted models asked. Open loop.

A request is sent when it is due, however late the answers before it are. Its latency counts from when this process got to it,
which waits for nothing of the server's; how late that was is told beside, and a wait for a free connection is the server's.
Redis is a real one, durable as in production; the server is one process, the callers are this one. No worker runs: jobs stay
queued.

    scripts/bench server [--quick]
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer

from benchmarks.rig.wire import Answer, Connections
from contracts import oip
from contracts.jobs import JobRequest
from contracts.meta_models import BackboneConfig, MetaModel
from dfml import io, nets
from meta_server.store import ids
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.secrets import Secrets
from metazoo import redis_server
from metazoo.redis_server import free_port
from metering.scripts import connect

KEY = "server-key-of-the-benchmark"
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Load:
    """What is asked: numbers and rates a second."""

    stored: int = 1000
    creates: float = 200.0
    lists: float = 50.0
    seconds: float = 20.0  # of each loop
    watchers: int = 200
    events: float = 20.0
    adapted: int = 50
    clients: int = 8
    predicts: float = 80.0  # of all clients together


@dataclass
class Loop:
    """One open loop: latencies in seconds of what was answered, and what went wrong."""

    name: str
    rate: float
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # seconds by which this process, not the server, was behind
    failed: int = 0
    seconds: float = 0.0

    def p(self, percent: float) -> float:
        """Milliseconds."""
        return _percentile(self.latencies, percent)

    def tell(self) -> None:
        """One line."""
        achieved = len(self.latencies) / self.seconds
        print(
            f"{self.name}: {self.rate:g}/s asked, {achieved:.1f}/s answered, {self.failed} failed, "
            f"p50 {self.p(50)} ms, p99 {self.p(99)} ms, worst {self.p(100)} ms; "
            f"sent late p99 {_percentile(self.late, 99)} ms, worst {_percentile(self.late, 100)} ms",
            flush=True,
        )


def _percentile(seconds: list[float], percent: float) -> float:
    return round(float(np.percentile(seconds, percent)) * 1000, 1) if seconds else float("nan")


async def open_loop(name: str, rate: float, seconds: float, ask: Callable[[int], Awaitable[Answer]]) -> Loop:
    """Call `ask(n)` at `rate` for `seconds`. What is answered other than 2xx has failed, and the first is shown."""
    loop = Loop(name, rate)
    started = time.perf_counter()

    async def one(number: int, begun: float) -> None:
        answer = await ask(number)
        if answer.status < 300:
            loop.latencies.append(time.perf_counter() - begun)
            return
        if not loop.failed:
            print(f"{name}: {answer.status} {answer.body.decode()[:300]}", flush=True)
        loop.failed += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            begun = time.perf_counter()
            loop.late.append(begun - due)
            tasks.create_task(one(number, begun))
    loop.seconds = time.perf_counter() - started
    loop.tell()
    return loop


def body_of(number: int) -> bytes:
    """A sound job of five APIs."""
    apis = [{"url": f"http://127.0.0.1:9/v2/models/m{number}-{api}", "api_key": "teacher"} for api in range(5)]
    return json.dumps({"name": f"bench {number}", "apis": apis, "budget": {"queries": 1000}}).encode()


async def followed(http: Connections, store: JobStore, job_id: str, load: Load) -> tuple[Loop, int]:
    """Events of one job to many watchers: delays, and how many never came."""
    lease = await store.take(job_id, "learn", "bench")
    assert lease is not None
    await store.work.begin(job_id, lease)
    loop = Loop("sse", load.events * load.watchers)
    count = round(load.events * load.seconds)
    got = [0] * load.watchers
    ready = asyncio.Semaphore(0)

    async def watch(number: int) -> None:
        async for line in http.lines(f"/v1/jobs/{job_id}/events", ready):
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if event["type"] == "metrics":
                loop.latencies.append(time.time() - event["data"]["sent"])
                got[number] += 1
                if got[number] == count:
                    return

    watching = [asyncio.create_task(watch(number)) for number in range(load.watchers)]
    for _ in watching:
        await ready.acquire()
    started = time.perf_counter()
    for step in range(count):
        due = started + step / load.events
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        loop.late.append(time.perf_counter() - due)
        await store.work.metrics(job_id, lease, step, count, {"sent": time.time()})
    _, late = await asyncio.wait(watching, timeout=30)
    for task in late:
        task.cancel()
    loop.seconds = time.perf_counter() - started
    lost = count * load.watchers - sum(got)
    loop.failed = lost
    loop.tell()
    return loop, lost


async def published(store: JobStore, artifacts: Artifacts) -> MetaModel:
    """An untrained meta-model, put in place as a worker would."""
    config = BackboneConfig(width=32)
    backbone = nets.build(config, SHAPE, generator=torch.Generator().manual_seed(0))
    told: dict[str, Any] = {"name": "bench", "method": "pqd", "apis": [], "queries": 0, "seed": 0}
    told["version"] = version("metazoo")
    job, _ = await store.create(JobRequest.model_validate_json(body_of(-1)))
    lease = await store.take(job.id, "learn", "bench")
    assert lease is not None
    await store.work.begin(job.id, lease)
    folder = f"meta-models/{job.id}/{lease.fence}"
    with tempfile.TemporaryDirectory() as made:
        io.save(Path(made), backbone, {}, options={}, **told)
        files = dict(artifacts.put_folder(Path(made), folder))
    model = MetaModel(
        id=ids.new("mm"), created_at=job.created_at, job=job.id, backbone=config, input_shape=SHAPE, files=files,
        evaluation=None, score=None, random_score=None, **told,
    )  # fmt: skip
    await store.work.publish(job.id, lease, model, folder=folder)
    return model


async def adapted(http: Connections, model: MetaModel, count: int) -> list[str]:
    """Paths of so many models adapted from it."""
    from base64 import b64encode
    from io import BytesIO

    from PIL import Image

    def picture(seed: int) -> str:
        file = BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
        return b64encode(file.getvalue()).decode()

    paths = []
    for number in range(count):
        images = [picture(25 * number + each) for each in range(25)]
        task = {"support": {"images": images, "labels": [f"class {each % 5}" for each in range(25)]}}
        answer = await http.request("POST", f"/v1/meta-models/{model.id}/adapt", json.dumps(task).encode())
        assert answer.status == 201, answer.body[:500]
        paths.append(json.loads(answer.body)["path"])
    return paths


def on_one_core(pid: int, core: int) -> None:
    """Every thread of the process runs on `core` alone, and those that it starts later."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


async def measure(
    load: Load, url: str, redis_url: str, artifacts: Artifacts, secret: str, server: int
) -> dict[str, Any]:
    """Every loop in turn."""
    redis = connect(redis_url)
    store = JobStore(redis, secrets=Secrets(secret))
    http = Connections(url, KEY)

    async def create(number: int) -> Answer:
        return await http.request("POST", "/v1/jobs", body_of(number))

    async def listed(number: int) -> Answer:
        return await http.request("GET", "/v1/jobs?limit=20")

    for start in range(0, load.stored, 20):
        made = await asyncio.gather(*(create(number) for number in range(start, min(start + 20, load.stored))))
        assert all(answer.status == 202 for answer in made), made
    print(f"{load.stored} jobs stored", flush=True)
    creates = await open_loop("create", load.creates, load.seconds, create)
    lists = await open_loop("list", load.lists, load.seconds, listed)
    watched, _ = await store.create(JobRequest.model_validate_json(body_of(-2)))
    sse, lost = await followed(http, store, watched.id, load)

    model = await published(store, artifacts)
    assert await MetaModelStore(redis).get(model.id)
    paths = await adapted(http, model, load.adapted)
    print(f"{len(paths)} models adapted", flush=True)
    image = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    tensor = oip.Tensor("images", "UINT8", image.shape, image.tobytes())
    body, headers = oip.encode_request([tensor], binary=True)
    turns = cycle(paths)

    async def predict(number: int) -> Answer:
        return await http.request("POST", f"{next(turns)}/infer", body, headers)

    for path in paths:
        assert (await http.request("POST", f"{path}/infer", body, headers)).status == 200
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        on_one_core(server, cores[0])
        os.sched_setaffinity(0, set(cores[1:]))
        print(f"from here on the server runs on core {cores[0]} alone, its callers on the others", flush=True)
    http.most = load.clients  # as many requests at once as there are clients
    predicts = await open_loop("predict", load.predicts, load.seconds, predict)
    os.sched_setaffinity(0, set(cores))
    http.close()
    await redis.aclose()
    return {
        "create_p99_ms": creates.p(99),
        "list_p99_ms": lists.p(99),
        "sse_p99_ms": sse.p(99),
        "sse_lost": lost,
        "predict_p99_ms": predicts.p(99),
        "failed": creates.failed + lists.failed + predicts.failed,
        "sent_late_p99_ms": max(_percentile(loop.late, 99) for loop in (creates, lists, sse, predicts)),
    }


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes: whether it runs.")] = False,
) -> None:
    """Measure; the last line is JSON."""
    load = Load(stored=100, seconds=2.0, watchers=20, adapted=5) if quick else Load()
    secret, port = Secrets.generate(), free_port()
    gc.collect()
    gc.freeze()  # modules stay: to look through them for garbage would make the callers late
    with tempfile.TemporaryDirectory(prefix="bench-server-") as place:
        redis = redis_server.start(Path(place) / "redis")
        environment = {
            **os.environ,
            "REDIS_URL": redis.url,
            "METAZOO_ARTIFACTS": f"{place}/artifacts",
            "METAZOO_SECRET_KEY": secret,
            "METAZOO_SERVER_API_KEY": KEY,
        }
        with (Path(place) / "server.log").open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "metazoo", "server", "--port", str(port)],
                env=environment,
                stderr=log,
                stdout=log,
            )
            try:
                url = f"http://127.0.0.1:{port}"
                wait_for(f"{url}/health/ready", server)
                artifacts = Artifacts(f"{place}/artifacts")
                result = asyncio.run(measure(load, url, redis.url, artifacts, secret, server.pid))
            finally:
                server.terminate()
                server.wait(timeout=30)
                redis.stop()
    print(json.dumps(result))


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Until it answers 200."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit("the server ended: are all extras installed?")
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the server did not become ready in a minute")


if __name__ == "__main__":
    typer.run(main)
