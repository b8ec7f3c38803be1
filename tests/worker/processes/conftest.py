"""Real Celery workers, real HTTP, real Redis."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from meta_server import reaper
from meta_server.queue import ACQUIRE_QUEUE, ACQUIRE_QUEUES, LEARN_QUEUES, Queue
from meta_server.reaper import Reaper
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets

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
async def store(redis: Redis, secret_key: str) -> JobStore:
    return JobStore(redis, secrets=Secrets(secret_key))


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    made = Queue(redis_url)
    yield made
    made.close()


@pytest.fixture
def quick_reaper(store: JobStore, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Reaper:
    """All its times are a fifteenth of those in production."""
    for name in ("EVERY", "SECONDS", "PATIENCE", "BEAT"):
        monkeypatch.setattr(reaper, name, getattr(reaper, name) / 15)
    return Reaper(store, queue, redis, beat=reaper.BEAT)


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
