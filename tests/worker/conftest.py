"""Jobs against APIs that live in this process: a fake server behind an httpx transport, and a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from contracts import oip
from contracts.jobs import Job, JobRequest
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from meta_server.store.learners import Announcement, Learners
from meta_server.store.probes import Probes
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import LEARN, acquire_role
from meta_server.store.webhooks import Webhooks
from metering.scripts import connect
from worker.acquire import acquire
from worker.context import Context
from worker.role import work_on
from worker.transport import Guard

Fault = Callable[[httpx.Request, int], httpx.Response | Exception | None]
"""(request, how many infer requests came before) -> what to answer instead; None: answer properly.

An exception is raised after the request was charged, as when the answer is lost on its way.
"""


@dataclass
class FakeApi:
    """A classifier behind the Open Inference Protocol that keeps its own books: `charged` counts images, once a key."""

    classes: int = 5
    shape: tuple[int, int, int] = (3, 16, 16)
    datatype: str = "UINT8"
    max_images: int | None = 32
    idempotency: bool = True
    binary: bool = True
    budget: int | None = None
    fault: Fault | None = None
    refuse: Callable[[httpx.Request, int], httpx.Response | None] | None = None  # before charging
    charged: int = 0
    requests: int = 0
    replays: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str | None, int]] = field(default_factory=list)  # (key, images) of each charge

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """A soft label that depends on the image, so that there is something to learn."""
        n = len(pixels)
        means = pixels.reshape(n, 3, -1).mean(2) / 255
        logits = np.stack([np.sin((3 + label) * means @ np.array([1.0, 2.0, 3.0])) for label in range(self.classes)], 1)
        exponents = np.exp(3 * logits)
        return (exponents / exponents.sum(1, keepdims=True)).astype("<f4")

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v2":
            return httpx.Response(200, json={"extensions": ["binary_tensor_data"] if self.binary else []})
        if not path.endswith("/infer"):
            return httpx.Response(200, json=self.metadata())
        self.requests += 1
        if self.refuse is not None and (refused := self.refuse(request, self.requests - 1)) is not None:
            return refused
        key = request.headers.get("idempotency-key") if self.idempotency else None
        replayed = key is not None and key in self.replays
        if replayed:
            content = self.replays[key]
        else:
            tensor = oip.decode_request(await request.aread(), request.headers.get(oip.HEADER)).inputs[0]
            pixels = np.frombuffer(tensor.data, np.uint8 if tensor.datatype == "UINT8" else "<f4").reshape(tensor.shape)
            if self.budget is not None and self.charged + len(pixels) > self.budget:
                return _problem(402, left=self.budget - self.charged)
            self.charged += len(pixels)
            self.seen.append((key, len(pixels)))
            content = self.encode(self.answer(pixels if tensor.datatype == "UINT8" else pixels * 255))
        if key is not None:
            self.replays[key] = content
        if self.fault is not None:
            instead = self.fault(request, self.requests - 1)
            if isinstance(instead, Exception):
                raise instead
            if instead is not None:
                return instead
        return self.respond(content, replayed=replayed)

    def encode(self, probabilities: np.ndarray) -> bytes:
        """The body of an answer; a binary one is led by the length of its JSON part."""
        tensor = oip.Tensor("probabilities", "FP32", probabilities.shape, probabilities.tobytes())
        response = oip.InferResponse(model="m", id=None, outputs=[tensor])
        content, headers = oip.encode_response(response, binary=None if self.binary else frozenset())
        return headers[oip.HEADER].encode() + b"\n" + content if self.binary else content

    def respond(self, content: bytes, *, replayed: bool) -> httpx.Response:
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        if self.binary:
            length, _, content = content.partition(b"\n")
            headers |= {oip.HEADER: length.decode(), "Content-Type": oip.BINARY}
        return httpx.Response(200, headers=headers, content=content)

    def metadata(self) -> dict[str, Any]:
        parameters: dict[str, Any] = {"idempotency": self.idempotency}
        if self.max_images is not None:
            parameters["max_images"] = self.max_images
        return {
            "name": "m",
            "inputs": [{"name": "images", "datatype": self.datatype, "shape": [-1, *self.shape]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, self.classes]}],
            "parameters": parameters,
        }


def _problem(status: int, *, headers: dict[str, str] | None = None, **extra: Any) -> httpx.Response:
    names = {402: "budget-exhausted", 413: "too-large", 429: "rate-limited"}
    document = {
        "type": f"urn:metazoo:problem:{names.get(status, 'internal')}",
        "title": "t",
        "status": status,
        "detail": "d",
        **extra,
    }
    return httpx.Response(status, json=document, headers=headers)


class FakeNetwork(httpx.AsyncBaseTransport):
    """Every API by its host name."""

    def __init__(self, apis: dict[str, FakeApi]) -> None:
        self.apis = apis

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.apis[request.url.host].handle(request)


class FakeQueue:
    """Remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.others = 0  # messages that wait for the same workers

    def send(self, job_id: str, role: str, *, tenant: str) -> None:
        self.sent.append((job_id, role))

    def learn(self, job_id: str, *, tenant: str, on_gpu: bool = False) -> None:
        self.send(job_id, f"{LEARN}.gpu" if on_gpu else LEARN, tenant=tenant)

    def waiting(self, role: str) -> int:
        return self.others


async def public(host: str, port: int) -> list[str]:
    return ["93.184.215.14"]


@dataclass
class World:
    """APIs, and a worker to ask them."""

    apis: dict[str, FakeApi]
    context: Context
    queue: FakeQueue
    redis: Redis

    @property
    def store(self) -> JobStore:
        return self.context.store

    def changed(self, **changes: Any) -> "World":
        return replace(self, context=replace(self.context, **changes))

    async def submit(self, *apis: FakeApi, queries: int = 300, **changes: Any) -> Job:
        self.apis.update({f"api{n}.test": api for n, api in enumerate(apis)})
        body = {
            "apis": [{"url": f"http://api{n}.test/v2/models/m", "api_key": f"k{n}"} for n in range(len(apis))],
            "budget": {"queries": queries},
            "method": {"steps": 4, "batch": 8},
            "meta_model": {"width": 16},
            **changes,
        }
        job, _ = await self.store.create(JobRequest.model_validate(body))
        return job

    async def acquire(self, job_id: str, api_id: str) -> None:
        await work_on(self.context, job_id, acquire_role(api_id), partial(acquire, api_id=api_id))

    async def acquire_all(self, job: Job) -> Job:
        await asyncio.gather(*(self.acquire(job.id, api) for api in job.progress.per_api))
        return await self.store.get(job.id)

    async def learn(self, job_id: str) -> Job:
        import torch

        from worker.learn import learn

        torch.set_num_threads(1)
        await work_on(self.context, job_id, LEARN, learn)
        return await self.store.get(job_id)

    async def trained(self, job_id: str, *, steps: int = 1) -> None:
        """Wait until so many steps of training were told."""
        async with asyncio.timeout(60):
            while True:
                told = await self.store.events.metrics(job_id)
                if any(point.step >= steps for point in told.items):
                    return
                await asyncio.sleep(0.005)

    def balance(self, job: Job) -> None:
        """The books agree with what the APIs counted."""
        budget = job.budget
        charged = {f"a{n}": self.apis[f"api{n}.test"].charged for n in range(len(job.progress.per_api))}
        assert budget.confirmed + budget.unconfirmed + budget.reserved + budget.left == budget.limit
        assert budget.left >= 0
        assert sum(charged.values()) <= budget.confirmed + budget.unconfirmed + budget.reserved
        for api, spend in budget.per_api.items():
            assert charged[api] <= spend.confirmed + spend.unconfirmed + spend.reserved


@pytest.fixture
async def world(redis_url: str, anyio_backend: str, tmp_path: Path) -> AsyncIterator[World]:
    redis = connect(redis_url)
    apis: dict[str, FakeApi] = {}
    queue = FakeQueue()
    learners = Learners(redis)
    await learners.announce("l", Announcement(classes={"glyphs": {"val": 30}}, missing={"cifar-fs": "looked in /data"}))
    secrets = Secrets(Secrets.generate())
    context = Context(
        store=JobStore(redis, secrets=secrets),
        probes=Probes(redis, secrets=secrets),
        webhooks=Webhooks(redis),
        learners=learners,
        artifacts=Artifacts(str(tmp_path / "artifacts")),
        queue=queue,  # type: ignore[arg-type]
        guard=Guard(resolve=public),
        transport=lambda: FakeNetwork(apis),
        patience=2.0,
        timeout=5.0,
        poll_every=0.05,
    )
    yield World(apis, context, queue, redis)
    await redis.aclose()


@pytest.fixture
def api() -> type[FakeApi]:
    return FakeApi


@pytest.fixture
def problem() -> Callable[..., httpx.Response]:
    return _problem


@pytest.fixture
def request_of() -> Callable[..., JobRequest]:
    return lambda **body: JobRequest.model_validate(body)
