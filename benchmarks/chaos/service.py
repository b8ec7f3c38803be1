"""The whole service as real processes which a supervisor starts again when they end, as Compose would."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
import redis

from benchmarks.chaos.proxy import Proxy
from meta_server.store.secrets import Secrets
from metazoo import redis_server
from metazoo.children import die_with_parent, last_words

RESTART_AFTER = 0.5  # seconds
START_TIMEOUT = 120.0


@dataclass
class Part:
    """One process, started anew whenever it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _logged: int = 0  # bytes in the log before this start

    def start(self) -> None:
        """Start it, in a process group of its own."""
        with self.log.open("ab") as output:
            self._logged = output.tell()
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.starts += 1

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def works(self) -> bool:
        """Whether a worker takes tasks, which a worker says."""
        if not self.up:
            return False
        with self.log.open("rb") as log:
            log.seek(self._logged)
            return b" ready." in log.read()

    def processes(self) -> set[int]:
        """Process ids of itself and its children."""
        return {*self.children(), *([self.process.pid] if self.process else [])}

    def children(self) -> list[int]:
        """Process ids of its children."""
        try:
            return [child.pid for child in psutil.Process(self.process.pid).children()] if self.process else []
        except psutil.NoSuchProcess:
            return []


@dataclass
class Service:
    """A context manager. Workers reach Redis and the zoo, and the server reaches Redis, through proxies that can be cut.

    `lease` and `defect`: see `benchmarks.chaos.launch`. Everything it writes lies under `folder`.
    """

    folder: Path
    zoo_folder: Path
    acquirers: int = 2
    concurrency: int = 3
    lease: float | None = None
    defect: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict, init=False)
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), init=False)
    admin_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), init=False)
    secret_key: str = field(default_factory=Secrets.generate, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        first = redis_server.start(self.folder / "redis")  # writes its configuration and password
        self.redis_url = first.url
        first.stop()
        redis_port = httpx.URL(first.url).port or 0
        zoo_port, server_port = redis_server.free_port(), redis_server.free_port()
        self.redis_proxy, self.zoo_proxy = Proxy(redis_port), Proxy(zoo_port)
        self.zoo_url, self.server_url = f"http://127.0.0.1:{zoo_port}", f"http://127.0.0.1:{server_port}"
        self.proxied_zoo_url = f"http://127.0.0.1:{self.zoo_proxy.port}"
        self.artifacts = str((self.folder / "artifacts").absolute())
        self._add("redis", [str(redis_server.find_binary()), str(self.folder / "redis" / "redis.conf")])
        self._add("zoo", self._metazoo("zoo", "serve", str(self.zoo_folder), "--port", str(zoo_port)), self.redis_url)
        self._add("server", self._metazoo("server", "--port", str(server_port)))
        for number in range(self.acquirers):
            arguments = ["worker", "acquire", "--name", f"acquire-{number}", "--concurrency", str(self.concurrency)]
            self._add(f"acquire-{number}", self._metazoo(*arguments))
        self._add("learn", self._metazoo("worker", "learn", "--name", "learn"))
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def workers(self) -> list[Part]:
        """Every worker."""
        return [part for name, part in self.parts.items() if name.startswith(("acquire", "learn"))]

    def with_room(self, working: Iterable[int]) -> set[str]:
        """Kinds of roles that a worker would take now. `working`: the process that holds a lease, for each lease."""
        held, free = list(working), set()
        for part in self.workers:
            kind = part.name.partition("-")[0]
            own = part.processes() if part.works() else set()
            if own and sum(pid in own for pid in held) < (self.concurrency if kind == "acquire" else 1):
                free.add(kind)
        return free

    def wait_until_ready(self) -> None:
        """Until Redis, zoo and server answer and every worker takes tasks. Raises `TimeoutError` with the last words."""
        checks: dict[str, Callable[[], bool]] = {
            "zoo": lambda: _answers(f"{self.zoo_url}/v2/health/ready"),
            "server": lambda: _answers(f"{self.server_url}/health/ready"),
            **{part.name: lambda part=part: part.works() for part in self.workers},  # type: ignore[misc]
        }
        deadline = time.monotonic() + START_TIMEOUT
        for name, ready in checks.items():
            while not ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name} is not ready; its log ends:\n{last_words(self.parts[name].log)}")
                time.sleep(0.1)

    def zoo_key(self, **limits: Any) -> tuple[str, str]:
        """A new key of the zoo: its id and its secret."""
        made = httpx.post(
            f"{self.zoo_url}/admin/keys",
            json={"name": "bench", **limits},
            headers={"Authorization": f"Bearer {self.admin_key}"},
            timeout=30,
            trust_env=False,
        )
        told = made.raise_for_status().json()
        return told["id"], told["secret"]

    def models(self) -> list[str]:
        """Names of the zoo's models."""
        teachers = json.loads((self.zoo_folder / "manifest.json").read_text())
        return [f"{teachers['dataset']}-{Path(entry['file']).stem}" for entry in teachers["teachers"]]

    def redis(self) -> redis.Redis:
        """A client of its Redis that goes through no proxy."""
        return redis.Redis.from_url(self.redis_url, socket_timeout=5, socket_connect_timeout=5)

    def stop(self) -> None:
        """Kill everything."""
        self._stopping.set()
        self._supervisor.join()
        for part in reversed(self.parts.values()):
            part.kill()
        self.redis_proxy.close()
        self.zoo_proxy.close()

    def _metazoo(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.chaos.launch", *arguments]

    def _add(self, name: str, command: list[str], redis_url: str | None = None) -> None:
        proxied = self.redis_url.rpartition(":")[0] + f":{self.redis_proxy.port}/0"
        environment = {
            "REDIS_URL": redis_url or proxied,
            "METAZOO_ARTIFACTS": self.artifacts,
            "METAZOO_ALLOW": f"127.0.0.1:{self.zoo_proxy.port}",
            "METAZOO_SECRET_KEY": self.secret_key,
            "METAZOO_SERVER_API_KEY": self.api_key,
            "METAZOO_ZOO_ADMIN_KEY": self.admin_key,
            "METAZOO_BENCH_LEASE": str(self.lease or ""),
            "METAZOO_BENCH_DEFECT": self.defect or "",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }
        self.parts[name] = Part(name, command, environment, self.folder / f"{name}.log")

    def _supervise(self) -> None:
        ended: dict[str, float] = {}
        while not self._stopping.is_set():
            for part in self.parts.values():
                if part.up:
                    continue
                since = ended.setdefault(part.name, time.monotonic())
                if part.process is None or time.monotonic() - since > RESTART_AFTER:
                    ended.pop(part.name)
                    part.kill()  # whatever is left of its group
                    part.start()
            self._stopping.wait(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
