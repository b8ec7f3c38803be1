"""The promise, on real processes: 16 callers, duplicates, callers that leave, and a zoo that is killed at random points.

`delivered <= charged` at every instant, equal once each caller has sent its open keys again; the charge is the audit stream;
no budget is exceeded by one image.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import redis.asyncio
import torch

from contracts import oip
from metazoo.redis_server import free_port
from metering import keyring

pytestmark = [pytest.mark.anyio, pytest.mark.process, pytest.mark.redis, pytest.mark.timeout(300)]

ADMIN = "admin-key-of-the-tests"
CALLERS, REQUESTS, KILLS, BUDGET = 16, 6, 3, 300


@dataclass
class Host:
    """A zoo that is started again whenever it was killed; `url` stays the same."""

    folder: Path
    redis_url: str
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "metazoo", "zoo", "serve", str(self.folder), "--port", str(self.port)]
        told = {"REDIS_URL": self.redis_url, "METAZOO_ZOO_ADMIN_KEY": ADMIN, "METAZOO_ZOO_ANSWER_SECONDS": "0.5"}
        told["METAZOO_ZOO_POLICY"] = "latency=20,jitter=20"  # so that kills find requests between charge and answer
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, env={**os.environ, **told}, stdout=output, stderr=output)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as http:
            for _ in range(600):
                assert self.process is not None
                assert self.process.poll() is None, self.log.read_text()
                with suppress(httpx.TransportError):
                    if (await http.get("/v2/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.1)
        raise AssertionError(self.log.read_text())


@dataclass
class Books:
    """What callers got, by idempotency key, beside what the zoo says it charged."""

    key_id: str
    redis: redis.asyncio.Redis
    delivered: dict[str, int] = field(default_factory=dict)
    watched: int = 0

    async def charged(self) -> int:
        return int(await self.redis.hget(keyring.record(self.key_id), "spent"))

    async def check(self) -> None:
        delivered = sum(self.delivered.values())  # before what is charged is asked: it only grows, but for refunds
        charged = await self.charged()
        assert delivered <= charged <= BUDGET
        self.watched += 1


@asynccontextmanager
async def host(folder: Path, redis_url: str, log: Path) -> AsyncIterator[Host]:
    started = Host(folder, redis_url, log)
    started.start()
    try:
        await started.ready()
        yield started
    finally:
        started.kill()


async def send(http: httpx.AsyncClient, books: Books, name: str, images: int, patience: float) -> int | None:
    """One try under the idempotency key `name`; its status, or None where none arrived."""
    pixels = torch.full((images, 3, 16, 16), images, dtype=torch.uint8)
    tensor = oip.Tensor("images", "UINT8", tuple(pixels.shape), pixels.numpy().tobytes())
    body, headers = oip.encode_request([tensor], binary=True)
    try:
        answer = await http.post(
            "/v2/models/toy-00/infer", content=body, headers={**headers, "Idempotency-Key": name}, timeout=patience
        )
    except httpx.TransportError:
        return None
    if answer.status_code == 200:
        (output,) = oip.decode_response(answer.content, answer.headers[oip.HEADER]).outputs
        assert output.shape[0] == images == int(answer.headers["x-query-cost"])
        books.delivered[name] = images
    else:
        assert answer.status_code in {402, 409, 503}, answer.text
    return answer.status_code


async def call(number: int, url: str, secret: str, books: Books, open_keys: dict[str, int]) -> None:
    """Asks, sometimes twice at once, sometimes leaves before the answer; what it has no answer for stays open."""
    chance = random.Random(number)
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {secret}"}) as http:
        for turn in range(REQUESTS):
            name, images = f"{number}-{turn}", chance.randint(1, 6)
            open_keys[name] = images
            copies = chance.choice([1, 1, 2])
            patience = chance.choice([0.005, 0.03, 10, 10])
            await asyncio.gather(*(send(http, books, name, images, patience) for _ in range(copies)))
            await asyncio.sleep(chance.random() * 0.3)


@pytest.mark.parametrize("seed", [0])
async def test_what_is_delivered_was_charged_and_no_more(seed: int, tmp_path: Path, redis_url: str, write_zoo) -> None:
    write_zoo(tmp_path / "zoo")
    chance = random.Random(seed)
    async with host(tmp_path / "zoo", redis_url, tmp_path / "log") as zoo, redis.asyncio.from_url(redis_url) as store:
        async with httpx.AsyncClient(base_url=zoo.url, headers={"Authorization": f"Bearer {ADMIN}"}) as admin:
            made = (await admin.post("/admin/keys", json={"budget": BUDGET})).raise_for_status().json()
        books = Books(made["id"], store)
        open_keys: dict[str, int] = {}

        async def watch() -> None:
            while watched:  # a cancelled command of Redis may swallow that
                await books.check()
                await asyncio.sleep(0.01)

        async def kill() -> None:
            for _ in range(KILLS):
                await asyncio.sleep(0.2 + chance.random() * 0.5)
                zoo.kill()
                zoo.start()
                await zoo.ready()

        watched = True
        watching = asyncio.create_task(watch())
        killing = asyncio.create_task(kill())
        await asyncio.gather(*(call(n, zoo.url, made["secret"], books, open_keys) for n in range(CALLERS)))
        await killing
        await books.check()

        # each caller sends its open keys again until it has an answer, or hears that the budget does not hold it
        headers = {"Authorization": f"Bearer {made['secret']}"}
        async with httpx.AsyncClient(base_url=zoo.url, headers=headers) as http:
            for name in [name for name in open_keys if name not in books.delivered]:
                for _ in range(300):
                    if await send(http, books, name, open_keys[name], 30) in {200, 402}:
                        break
                    await asyncio.sleep(0.1)  # the lease of a process that was killed has to end
                else:
                    raise AssertionError(f"{name} stayed open")
        watched = False
        await watching
        assert books.watched > 10
        charged = await books.charged()
        assert sum(books.delivered.values()) == charged <= BUDGET
        assert charged > BUDGET / 2  # the test is about something
        entries = await store.xrange(keyring.audit(made["id"]))
        signs = {b"charge": 1, b"refund": -1}
        assert sum(signs[entry[b"kind"]] * int(entry[b"images"]) for _, entry in entries) == charged
        standing: dict[bytes, int] = {}
        for _, entry in entries:
            standing[entry[b"charge"]] = standing.get(entry[b"charge"], 0) + signs[entry[b"kind"]] * int(
                entry[b"images"]
            )
        assert all(images >= 0 for images in standing.values())
        assert sorted(images for images in standing.values() if images) == sorted(books.delivered.values())
