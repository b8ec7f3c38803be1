"""The adapters `classify` and `custom` against a server that nobody here wrote: LitServe, over TCP."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from metazoo.redis_server import free_port
from worker.queries import queries_of
from worker.transport import Guard, GuardedTransport

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.process, pytest.mark.timeout(200)]
SIZE, QUERIES = 16, 24
LABELS = ["ant", "bee", "cat"]
ADAPTERS = {
    "upload": {"adapter": "classify", "classify": {"labels": LABELS, "size": SIZE, "field": "content"}},
    "json": {
        "adapter": "custom",
        "custom": {"template": {"image": "{{image}}"}, "size": SIZE, "scores": "/result/classes", "labels": LABELS},
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a LitServe that is ready."""
    log, port = tmp_path_factory.mktemp("litserve") / "log", free_port()
    with log.open("wb") as output:
        command = [sys.executable, str(Path(__file__).with_name("litserver.py")), str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its processes outlive a softer end of the first
        process.wait(30)


@pytest.mark.parametrize("path", ADAPTERS)
async def test_a_job_asks_a_litserve(world: Any, served: str, path: str) -> None:
    from tests.worker.litserver import scores  # brings LitServe

    guard = Guard(allow=[served])
    real = world.changed(guard=guard, transport=lambda: GuardedTransport(guard), timeout=60.0, patience=30.0)
    spec = {"url": f"http://{served}/{path}", **ADAPTERS[path]}
    job = await real.acquire_all(await real.submit(queries=QUERIES, apis=[spec]))
    (api,) = job.progress.per_api.values()
    assert (api.state, api.reason) == ("done", None)
    assert (job.budget.confirmed, job.budget.unconfirmed) == (QUERIES, 0)
    stored = await real.store.load(job.id)
    images = queries_of(stored.request, (3, SIZE, SIZE))
    for settled in await real.store.ledger(job.id).settled("a0"):
        kept = load(real.context.artifacts.read(settled.path))
        sent = images.images(kept["indices"]).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(kept["probabilities"], [scores(image) for image in sent], atol=1e-4)
