"""Several processes behind one port: whichever answers, the job is the same and its events are whole."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from meta_server.store.secrets import Secrets
from metazoo.redis_server import free_port
from tests.meta_server.conftest import API_KEY

POSTED = ("POST", "/v1/jobs")
pytestmark = [pytest.mark.process, pytest.mark.redis]


@pytest.fixture
def server(redis_url: str, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """URL and process of a server of two workers."""
    port = free_port()
    told = {"REDIS_URL": redis_url, "METAZOO_ARTIFACTS": str(tmp_path / "artifacts"), "METAZOO_SERVER_API_KEY": API_KEY}
    told["METAZOO_SECRET_KEY"] = Secrets.generate()
    command = [sys.executable, "-m", "metazoo", "server", "--port", str(port), "--workers", "2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **told}, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _, left = psutil.wait_procs(workers, timeout=60)
        assert not left, (tmp_path / "log").read_text()


def answering(http: httpx.Client, parent: psutil.Process) -> int:
    """The process that holds the other end of the client's connection."""
    with http.stream("GET", "/health/live") as response:
        port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
        response.read()
    for child in parent.children():
        if any(found.raddr and found.raddr.port == port for found in child.net_connections("tcp4")):
            return child.pid
    raise AssertionError("nobody holds the connection")


def one_of_each(url: str, parent: psutil.Process, kept: ExitStack) -> list[httpx.Client]:
    """A client for each of the two workers, on a connection of its own."""
    clients: dict[int, httpx.Client] = {}
    deadline = time.monotonic() + 100
    while len(clients) < 2:
        assert time.monotonic() < deadline
        headers = {"Authorization": f"Bearer {API_KEY}"}
        http = kept.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))
        try:
            clients.setdefault(answering(http, parent), http)
        except httpx.TransportError:
            time.sleep(0.1)  # it is just starting
    return list(clients.values())


def test_both_answer_and_a_job_is_followed_through_either(
    server: tuple[str, psutil.Process], request_body: dict[str, Any]
) -> None:
    with ExitStack() as kept:
        one, other = one_of_each(*server, kept)
        job = one.post("/v1/jobs", json=request_body).raise_for_status().json()
        assert other.get(f"/v1/jobs/{job['id']}").json() == job
        seen = []
        with other.stream("GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as events:
            for line in events.iter_lines():
                if line.startswith("data:"):
                    seen.append(json.loads(line[5:])["data"]["status"])
                    if len(seen) == 1:
                        one.post(f"/v1/jobs/{job['id']}/pause").raise_for_status()
                        one.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        assert seen[0] == "queued"
        assert seen[-1] == "cancelled"
        assert made(one) == made(other) == 1  # each process tells of all


def made(http: httpx.Client) -> float:
    """How many jobs were accepted, as `/metrics` tells."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "metazoo_requests_total"]
    return sum(sample.value for sample in samples if (sample.labels["method"], sample.labels["route"]) == POSTED)
