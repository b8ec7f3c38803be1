"""The whole service on one machine: Redis, zoo, server and both workers as children, each waited for until ready.

A child that ends by itself is started again, as a container would be: jobs outlive whatever is killed.
"""

import fcntl
import json
import os
import secrets
import shlex
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metazoo import children, private_files, redis_server
from metazoo.children import Child
from metazoo.ports import kept_ports

START_TIMEOUT = 90.0  # seconds; importing torch on a busy machine takes many of them
# A worker asked to stop finishes or hands back its task within its soft shutdown of 30 s.
STOP_TIMEOUT = 40.0
RESTARTS, WITHIN = 5, 60.0  # of one part within so many seconds: beyond, starting it again will not help


class StackError(Exception):
    """A part did not start or has ended; the message says which, why, and where its log is."""


@dataclass(frozen=True)
class Ready:
    """Where everything is, once everything is ready. Holds secrets: write it to private files alone."""

    server_url: str
    zoo_url: str
    redis_url: str
    api_key: str
    zoo_admin_key: str
    models: list[dict[str, str]]
    pids: dict[str, int]

    def to_json(self) -> str:
        """The content of a ready file."""
        return json.dumps(self.__dict__, indent=1)

    def to_shell(self, ready_file: Path) -> str:
        """What a shell sources so that commands, the SDK and the examples find all of it."""
        told = {
            "METAZOO_READY_FILE": str(ready_file),
            "METAZOO_URL": self.server_url,
            "METAZOO_API_KEY": self.api_key,
            "METAZOO_ZOO_URL": self.zoo_url,
            "METAZOO_ZOO_API_KEY": self.models[0]["api_key"],
        }
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())


@dataclass
class Stack:
    """A context manager: entering starts every part in order, leaving stops them all.

    `data_dir` keeps Redis's data, artefacts, secrets and logs between runs; only one stack may use it at a time.
    `on_ready` hears the name of each part as it becomes ready. Raises `StackError` when a part does not start.
    """

    data_dir: Path
    zoo_folder: Path
    acquirers: int = 32
    on_ready: Callable[[str], None] = lambda name: None
    ready: Ready = field(init=False)
    _redis: redis_server.RedisServer | None = field(default=None, init=False)
    _children: dict[str, Child] = field(default_factory=dict, init=False)
    _starts: dict[str, Callable[[], object]] = field(default_factory=dict, init=False)
    _ends: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list), init=False)
    _lock: Any = field(default=None, init=False)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ended(self) -> str | None:
        """Name of a part that has ended although nobody asked it to, or None."""
        if self._redis is not None and self._redis.process.poll() is not None:
            return "redis"
        return next((name for name, child in self._children.items() if child.process.poll() is not None), None)

    def revive(self) -> str | None:
        """Start again a part that has ended, if one has: its name and how it ended, in words for people.

        Raises `StackError` when it ended too often for that to help, or Redis does not come up.
        """
        name = self.ended()
        if name is None:
            return None
        process = self._process(name)
        how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "ended by itself"
        now = time.monotonic()
        self._ends[name] = [end for end in self._ends[name] if now - end < WITHIN] + [now]
        if len(self._ends[name]) > RESTARTS:
            log = self.log_of(name)
            raise StackError(
                f"{name} {how}, as it did {RESTARTS} times in the {WITHIN:.0f} s before. "
                f"Its log {log} ends:\n{children.last_words(log)}"
            )
        self._starts[name]()
        self.ready.pids[name] = self._process(name).pid
        return f"{name} {how}"

    def _process(self, name: str) -> subprocess.Popen[bytes]:
        return self._redis.process if name == "redis" and self._redis else self._children[name].process

    def log_of(self, name: str) -> Path:
        """Where the named part logs."""
        return self.data_dir / "redis" / "redis.log" if name == "redis" else self.data_dir / "logs" / f"{name}.log"

    def stop(self) -> None:
        """Stop workers first, Redis last, so that each can still write down where it was."""
        parts = list(reversed(self._children.values()))
        for child in parts:
            child.ask_to_stop()
        deadline = time.monotonic() + STOP_TIMEOUT
        try:
            for child in parts:
                child.stop(max(0.0, deadline - time.monotonic()))
        finally:
            for child in parts:
                child.stop(0)
            self._children.clear()
            if self._redis is not None:
                self._redis.stop()
                self._redis = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _start(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (self.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"another `metazoo up` uses {self.data_dir}: stop it or give another --data-dir") from None
        (self.data_dir / "logs").mkdir(exist_ok=True)
        private = self.data_dir / "secrets.json"
        kept = _kept_secrets(private)

        redis_url = os.environ.get("REDIS_URL")
        if redis_url is None:
            self._starts["redis"] = self._start_redis
            redis_url = self._start_redis()
        self.on_ready("redis")

        zoo_port, server_port = kept_ports(self.data_dir / "ports.json", ["zoo", "server"])
        zoo_url, server_url = f"http://127.0.0.1:{zoo_port}", f"http://127.0.0.1:{server_port}"
        environment = {
            "REDIS_URL": redis_url,
            "METAZOO_ARTIFACTS": str((self.data_dir / "artifacts").absolute()),
            # its own zoo, and whatever else the person who starts it allows
            "METAZOO_ALLOW": ",".join(filter(None, [f"127.0.0.1:{zoo_port}", os.environ.get("METAZOO_ALLOW")])),
            "METAZOO_SECRET_KEY": kept["secret_key"],
            "METAZOO_SERVER_API_KEY": kept["server_api_key"],
            "METAZOO_ZOO_URL": zoo_url,
            "METAZOO_ZOO_ADMIN_KEY": kept["zoo_admin_key"],
        }
        run = uuid.uuid4().hex[:8]  # tells this run's workers from those of another machine on the same Redis
        commands = {
            "zoo": ["zoo", "serve", str(self.zoo_folder.absolute()), "--port", str(zoo_port)],
            "server": ["server", "--port", str(server_port)],
            "acquire": ["worker", "acquire", "--name", f"acquire-{run}", "--concurrency", str(self.acquirers)],
            "learn": ["worker", "learn", "--name", f"learn-{run}"],
        }
        for name, arguments in commands.items():
            self._starts[name] = partial(self._start_child, name, arguments, environment)
            self._starts[name]()
        self._wait("zoo", lambda: _answers(f"{zoo_url}/v2/health/ready"))
        self._wait("server", lambda: _answers(f"{server_url}/health/ready"))
        pings = _WorkerPings(redis_url)
        for name in ("acquire", "learn"):
            self._wait(name, lambda name=name: pings.answered(f"{name}-{run}"))  # type: ignore[misc]

        self.ready = Ready(
            server_url=server_url,
            zoo_url=zoo_url,
            redis_url=redis_url,
            api_key=kept["server_api_key"],
            zoo_admin_key=kept["zoo_admin_key"],
            models=models(zoo_url, kept, private),
            pids={name: child.process.pid for name, child in self._children.items()}
            | ({"redis": self._redis.process.pid} if self._redis else {}),
        )

    def _start_redis(self) -> str:
        """Where it is: the same as before. So two never write into one folder, the one of a run that is still stopping."""
        (port,) = kept_ports(self.data_dir / "ports.json", ["redis"])
        try:
            started = redis_server.start(self.data_dir / "redis", port=port)
        except redis_server.RedisServerError as error:
            raise StackError(str(error)) from error
        before, self._redis = self._redis, started
        if before is not None and before.url != started.url:
            raise StackError("another process listens where Redis did: start `metazoo up` again")
        return started.url

    def _start_child(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        if name in self._children:
            self._children[name].stop(0)  # what may be left of its group
        self._children[name] = children.start(name, arguments, environment=environment, log=self.log_of(name))

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready():
            if ended := self.ended():
                log = self.log_of(ended)
                raise StackError(f"{ended} ended while starting. Its log {log} ends:\n{children.last_words(log)}")
            if time.monotonic() > deadline:
                raise StackError(f"{name} was not ready within {START_TIMEOUT:.0f} s: see {self.log_of(name)}")
            time.sleep(0.05)
        self.on_ready(name)


def _kept_secrets(path: Path) -> dict[str, str]:
    """Secrets of this data directory, made once: encrypted records must stay readable after a restart."""
    if not path.exists():
        from cryptography.fernet import Fernet

        made = {
            "secret_key": Fernet.generate_key().decode(),
            "server_api_key": secrets.token_urlsafe(32),
            "zoo_admin_key": secrets.token_urlsafe(32),
        }
        private_files.write(path, json.dumps(made))
    return dict(json.loads(path.read_text()))


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class _WorkerPings:
    """Asks all workers on a Redis whether they are up; remembers who was."""

    def __init__(self, redis_url: str) -> None:
        from celery import Celery

        self._app = Celery(broker=redis_url)
        self._seen: set[str] = set()

    def answered(self, name: str) -> bool:
        """Whether the worker of that node name has answered."""
        if name not in self._seen:
            replies = self._app.control.ping(timeout=0.5) or []
            self._seen |= {node.split("@")[0] for reply in replies for node in reply}
        return name in self._seen


def models(zoo_url: str, kept: dict[str, str], private: Path) -> list[dict[str, str]]:
    """Every model of the zoo with this data directory's key, which is made where there is none or it is good no more."""
    import httpx

    with httpx.Client(base_url=zoo_url, trust_env=False, timeout=30) as zoo:

        def listed(secret: str) -> httpx.Response:
            return zoo.post("/v2/repository/index", json={}, headers={"Authorization": f"Bearer {secret}"})

        secret = kept.get("zoo_api_key", "")
        index = listed(secret) if secret else None
        if index is None or index.status_code == 401:  # revoked, or of another Redis
            admin = {"Authorization": f"Bearer {kept['zoo_admin_key']}"}
            made = zoo.post("/admin/keys", json={"name": "metazoo up"}, headers=admin)
            secret = made.raise_for_status().json()["secret"]
            private_files.write(private, json.dumps(kept | {"zoo_api_key": secret}))
            index = listed(secret)
        names = [model["name"] for model in index.raise_for_status().json()]
    return [{"name": name, "url": f"{zoo_url}/v2/models/{name}", "api_key": secret} for name in names]
