"""Hostile bytes at a real zoo process: each gets its 4xx or a closed connection, costs nothing; the next caller is served."""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from metazoo.redis_server import free_port

pytestmark = [pytest.mark.process, pytest.mark.redis]

ADMIN = "admin-key-of-the-tests"
PATH = "/v2/models/toy-00/infer"
SHAPE = [1, 3, 16, 16]
PIXELS = 768


@dataclass
class Target:
    port: int
    http: httpx.Client
    secret: str
    key_id: str
    process: subprocess.Popen[bytes]

    def raw(self, head: str, *pieces: bytes, close: bool = False) -> int | None:
        """The status that the bytes get, None where the connection ends without one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode("latin-1"))
            for piece in pieces:
                connection.sendall(piece)
            if close:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(2**16)
        return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else None

    def head(self, *lines: str, length: int | str | None = None, path: str = PATH) -> str:
        told = [f"POST {path} HTTP/1.1", "Host: zoo", f"Authorization: Bearer {self.secret}", *lines]
        if length is not None:
            told.append(f"Content-Length: {length}")
        return "\n".join(told) + "\n\n"

    def healthy(self) -> None:
        """Serves, and has charged nothing."""
        assert self.process.poll() is None
        assert self.http.get("/v2/health/ready").status_code == 200
        used = self.http.get("/v1/usage", headers={"Authorization": f"Bearer {self.secret}"}).json()
        assert used["spent"] == 0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Target]:
    from tests.api_zoo.conftest import _write_zoo

    folder = tmp_path_factory.mktemp("abuse")
    _write_zoo(folder / "zoo")
    port = free_port()
    told = {"REDIS_URL": redis_server, "METAZOO_ZOO_ADMIN_KEY": ADMIN}
    told |= {"METAZOO_ZOO_MAX_BODY": str(2**20), "METAZOO_ZOO_BODY_SECONDS": "1", "METAZOO_ZOO_MAX_IMAGES": "8"}
    command = [sys.executable, "-m", "metazoo", "zoo", "serve", str(folder / "zoo"), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **told}, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            for _ in range(600):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    if http.get("/v2/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            made = http.post("/admin/keys", json={}, headers={"Authorization": f"Bearer {ADMIN}"}).raise_for_status()
            yield Target(port, http, made.json()["secret"], made.json()["id"], process)
    finally:
        process.kill()
        process.wait()


def infer(**changed: object) -> bytes:
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": SHAPE,
        "parameters": {"binary_data_size": PIXELS},
        **changed,
    }
    return json.dumps({"inputs": [tensor]}).encode()


def test_a_body_that_drips_is_cut_off(target: Target) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", target.port), timeout=30) as connection:
        connection.sendall(target.head(length=1000).replace("\n", "\r\n").encode())
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < 25:
            try:
                connection.sendall(b" ")
                answer = connection.recv(2**16)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    target.healthy()


def test_bombs_are_stopped_while_they_unpack(target: Target) -> None:
    bomb = gzip.compress(bytes(2**28))  # 256 MiB in 256 KiB
    assert target.raw(target.head("Content-Encoding: gzip", length=len(bomb)), bomb) == 413
    assert target.raw(target.head("Content-Encoding: gzip", length=8), b"no gzip!") == 400
    target.healthy()


def test_bodies_that_are_not_as_long_as_declared_cost_nothing(target: Target) -> None:
    body = infer() + bytes(PIXELS)
    length = f"Inference-Header-Content-Length: {len(infer())}"
    assert target.raw(target.head(length, length=len(body) - 1), body[:-1]) == 400  # shorter than its tensor
    assert target.raw(target.head(length, length=len(body) + 1), body + b"x") == 400  # longer
    assert target.raw(target.head(length, length=len(body) + 9), body, close=True) is None  # ends before its end
    assert target.raw(target.head(length, length=2**21), b"") == 413
    assert target.raw(target.head(length, length="9" * 400), b"") in {None, 400, 413}
    assert target.raw(target.head(length, length=-1), b"") == 400
    target.healthy()


@pytest.mark.parametrize(
    ("changed", "statuses"),
    [
        ({"shape": [2**31 - 1] * 4}, {400}),
        ({"shape": [2**62, 3, 16, 16]}, {400}),
        ({"shape": [-1, 3, 16, 16]}, {400}),
        ({"shape": [10**400, 3, 16, 16]}, {400}),
        ({"shape": [1.0, 3, 16, 16]}, {400}),
        ({"shape": [True, 3, 16, 16]}, {400}),
        ({"shape": []}, {400}),
        ({"shape": [1] * 10_000}, {400}),
        ({"parameters": {"binary_data_size": 2**63}}, {400}),
        ({"parameters": {"binary_data_size": -1}}, {400}),
        ({"datatype": "FP32"}, {400}),
        ({"datatype": "BYTES"}, {400}),
        ({"name": "pixels"}, {422}),
        ({"name": "x" * 100_000}, {422}),
    ],
)
def test_tensors_that_lie_about_their_size_cost_nothing(target: Target, changed: dict, statuses: set[int]) -> None:
    head = infer(**changed)
    length = f"Inference-Header-Content-Length: {len(head)}"
    assert target.raw(target.head(length, length=len(head) + PIXELS), head + bytes(PIXELS)) in statuses
    target.healthy()


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "1e3", "9" * 30, "", " ", "٣", "5;5"])
def test_json_parts_of_no_length_cost_nothing(target: Target, length: str) -> None:
    body = infer() + bytes(PIXELS)
    lines = [f"Inference-Header-Content-Length: {length}".encode().decode("latin-1")]
    assert target.raw(target.head(*lines, length=len(body)), body) == 400
    target.healthy()


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fetc%2fpasswd", "%00", "toy-00%00", "toy-00%0d%0aX-Evil:1", "%c0%ae%c0%ae", "x" * 2000, "toy-00/"],
)
def test_names_that_are_tricks_are_not_found(target: Target, name: str) -> None:
    assert target.raw(target.head(path=f"/v2/models/{name}/infer", length=0)) in {400, 404, 405, 422}
    assert target.raw(target.head(path=f"/v1/models/{name}/weights", length=0)) in {400, 404, 405, 422}
    target.healthy()


def test_headers_inject_nothing(target: Target) -> None:
    for line in ("X-Request-Id: a\rX-Evil: 1", "X-Request-Id: a\n X-Evil: 1", "Idempotency-Key: \x00", "Bad Name: 1"):
        status = target.raw(target.head(line, length=0))
        assert status is None or 400 <= status < 500
    answer = target.http.get("/v2/health/live", headers={"X-Request-Id": "a%0d%0aX-Evil: 1"})
    assert "x-evil" not in answer.headers
    assert answer.headers["x-request-id"].isalnum()
    target.healthy()


def test_forged_keys_are_refused_before_a_body_is_read(target: Target) -> None:
    last = "0" if target.secret[-1] != "0" else "1"
    for forged in (target.secret[:-1] + last, f"mz_{target.key_id}_{'0' * 43}", "mz_" + "é" * 12, "A" * 7000, ADMIN):
        head = target.head(length=2**20 - 1).replace(target.secret, forged)
        assert target.raw(head.encode().decode("latin-1")) == 401  # and not one byte of the body was sent
    target.healthy()
