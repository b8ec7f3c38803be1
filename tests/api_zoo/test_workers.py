"""Two processes of one zoo share limits and budgets: what many callers ask through both is granted to the image."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.mmap_dict import MmapedDict

from contracts import oip
from metazoo.redis_server import free_port

pytestmark = [pytest.mark.process, pytest.mark.redis, pytest.mark.anyio]

ADMIN = "admin-key-of-the-tests"
BUDGET, BURST, CALLERS = 97, 23, 16
TLS = httpx.create_ssl_context()  # unused, and slow to make for each connection


@contextmanager
def served(folder: Path, redis_url: str, counts: Path, log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    counts.mkdir()
    told = {"REDIS_URL": redis_url, "METAZOO_ZOO_ADMIN_KEY": ADMIN, "PROMETHEUS_MULTIPROC_DIR": str(counts)}
    told |= {"METAZOO_ZOO_POLICY": "latency=20", "METAZOO_ZOO_THREADS": "1"}  # so that requests are under way together
    command = [sys.executable, "-m", "metazoo", "zoo", "serve", str(folder), "--workers", "2"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", url.rpartition(":")[2]], env={**os.environ, **told}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                if httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)  # its children end with it
        try:
            process.wait(30)
        finally:
            process.kill()


def answered(counts: Path) -> dict[str, float]:
    """Images answered so far, by process."""
    found: Counter[str] = Counter()
    for path in counts.glob("counter_*.db"):
        process = re.fullmatch(r"counter_(\d+)\.db", path.name)
        assert process is not None
        for key, value, *_ in MmapedDict.read_all_values_from_file(str(path)):
            if '"metazoo_images_total"' in key and value:
                found[process[1]] += value
    return found


async def ask(url: str, key: str, images: int) -> httpx.Response:
    """Over a connection of its own, so that either process may take it."""
    pixels = torch.zeros((images, 3, 16, 16), dtype=torch.uint8)
    tensor = oip.Tensor("images", "UINT8", tuple(pixels.shape), pixels.numpy().tobytes())
    body, headers = oip.encode_request([tensor], binary=True)
    headers |= {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(timeout=60, verify=TLS) as http:
        return await http.post(f"{url}/v2/models/toy-00/infer", content=body, headers=headers)


async def take(url: str, key: str, refusal: int) -> int:
    """Images that one caller gets, of ever fewer at once, until not even one is granted."""
    got, images = 0, 4
    while images:
        answer = await ask(url, key, images)
        if answer.status_code == 200:
            got += images
        else:
            assert answer.status_code == refusal, answer.text
            images -= 1
    return got


async def test_two_processes_spend_one_budget_and_one_burst_to_the_image(
    tmp_path: Path, redis_url: str, write_zoo
) -> None:
    write_zoo(tmp_path / "zoo")
    with served(tmp_path / "zoo", redis_url, tmp_path / "counts", tmp_path / "log") as url:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60) as admin:

            async def key(**limits: float) -> tuple[str, str]:
                made = (await admin.post("/admin/keys", json=limits)).raise_for_status().json()
                return made["id"], made["secret"]

            _, free = await key()
            deadline = time.monotonic() + 120
            while len(answered(tmp_path / "counts")) < 2:  # both are there
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                await asyncio.gather(*(ask(url, free, 1) for _ in range(CALLERS)))

            before = answered(tmp_path / "counts")
            spender, secret = await key(budget=BUDGET)
            got = await asyncio.gather(*(take(url, secret, 402) for _ in range(CALLERS)))
            assert sum(got) == BUDGET
            assert (await ask(url, secret, 1)).json()["left"] == 0
            used = (await admin.get(f"/admin/keys/{spender}/usage")).json()
            assert (used["spent"], used["left"]) == (BUDGET, 0)
            after = answered(tmp_path / "counts")
            assert sum(after.values()) - sum(before.values()) == BUDGET
            assert all(after[process] > before[process] for process in before), "one process answered everything"

            _, limited = await key(images_per_second=1e-6, burst=BURST)
            got = await asyncio.gather(*(take(url, limited, 429) for _ in range(CALLERS)))
            assert sum(got) == BURST
