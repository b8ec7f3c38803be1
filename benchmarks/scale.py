"""How much of the APIs' combined rate limit a job uses while it acquires, by workers and APIs.

The APIs are simulated (`benchmarks.rig.answerer`); their total rate is at most half of what one core was measured to carry.
Efficiency is the images charged over those that the limits allowed between the first charge and the last, with bursts. Points
can be compared: the total rate and the time are the same, and bursts are of two seconds whatever the number of APIs. The whole
table takes some six minutes. The last line printed is JSON; a point whose job did not succeed is null there, and the status 1.
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.rig.answerer import MOST, SHAPE
from contracts import oip
from contracts.jobs import ENDED, Job, JobRequest
from meta_server.queue import Queue
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import EARLY_AFTER
from metazoo import redis_server
from metazoo.children import Child, start
from metering.scripts import connect

POINTS = ",".join(f"{workers}x{apis}" for workers in (1, 2, 4, 8) for apis in (8, 32, 100))
OVERLAP = EARLY_AFTER + 20.0  # seconds of acquisition in the run that shows learning meanwhile
LOOK = 0.1  # seconds between two looks at what a job tells
console = Console(stderr=True, highlight=False, soft_wrap=True)


class JobDidNotSucceed(Exception):
    """Nothing was measured; the message says how the job ended."""


class Bench:
    """Redis, a learner, and what every run needs to know. A context manager."""

    def __init__(self, folder: Path, *, total: float, latency: float) -> None:
        self.folder, self.total, self.latency = folder, total, latency
        self.secret_key = Secrets.generate()
        self._opened = ExitStack()

    def __enter__(self) -> "Bench":
        server = redis_server.start(self.folder / "redis")
        self._opened.callback(server.stop)
        self.url = server.url
        self.queue = Queue(self.url)
        self._opened.callback(self.queue.close)
        self._opened.callback(self.worker("learn").stop, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def worker(self, role: str, *, number: int = 0, allow: str = "") -> Child:
        """A worker process."""
        environment = {
            "REDIS_URL": self.url,
            "METAZOO_ARTIFACTS": str(self.folder / "artifacts"),
            "METAZOO_SECRET_KEY": self.secret_key,
            "METAZOO_ALLOW": allow,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        name = f"{role}-{number}"
        command = ["worker", role, "--name", name, *(["--concurrency", "104"] if role == "acquire" else [])]
        return start(name, command, environment={**os.environ, **environment}, log=self.folder / f"{name}.log")

    def run(self, workers: int, apis: int, seconds: float, *, steps: int = 4, part: float = 1.0) -> dict[str, Any]:
        """One job against `part` of the rate.

        `efficiency`; `refused` requests; seconds: `wall`, `acquire` from the first charge to the last, `ramp` until every API
        was asked, `overlap` of learning meanwhile. Raises `JobDidNotSucceed`.
        """
        rate = part * self.total / apis
        burst = max(8, round(2 * rate))
        with ExitStack() as opened:
            answerer = Answering(apis, rate=rate, burst=burst, latency=self.latency)
            opened.callback(answerer.stop)
            for number in range(workers):
                opened.callback(self.worker("acquire", number=number, allow=answerer.host).stop, 0)
            began = time.monotonic()
            job = asyncio.run(self._job(answerer.host, apis, round(rate * seconds + burst), steps))
            stats = answerer.stats()
            wall = time.monotonic() - began
        if job.meta_model is None:
            raise JobDidNotSucceed(f"the job ended as {job.status}: {job.error}")
        duration = stats["last"] - stats["first"]
        return {
            "efficiency": stats["charged"] / (apis * (rate * duration + burst)),
            "wall": wall,
            "acquire": duration,
            "ramp": stats["all_asked"] - stats["first"],
            "refused": stats["refused"],
            "overlap": float(job.tags[0]),
        }

    async def _job(self, host: str, apis: int, each: int, steps: int) -> Job:
        """Submit a job and wait for its end; its tag is for how many seconds it learned before the last API was done."""
        request = {
            "apis": [{"url": f"http://{host}/v2/models/m{number}"} for number in range(apis)],
            "budget": {"queries": each * apis, "queries_per_api": each},
            "method": {"steps": steps, "batch": 8, "apis_per_image": apis},
            "meta_model": {"width": 16},
        }
        redis = connect(self.url)
        store = JobStore(redis, secrets=Secrets(self.secret_key))
        try:
            job, _ = await store.create(JobRequest.model_validate(request))
            await asyncio.to_thread(self.queue.begin, [job.id])
            while await store.status(job.id) not in ENDED:  # noqa: ASYNC110 - it is told in Redis alone
                await asyncio.sleep(LOOK)
            learned = all_done = math.inf  # milliseconds since the epoch
            events, last = [], None
            while page := (await store.events.page(job.id, after=last, limit=1000)).items:
                events += page
                last = page[-1].id
            for event in events:
                at = float(event.id.partition("-")[0])
                if event.type == "metrics":
                    learned = min(learned, at)
                if event.type == "api" and event.data["state"] == "done":
                    all_done = at
            overlap = max(0.0, all_done - learned) / 1000
            return (await store.get(job.id)).model_copy(update={"tags": [f"{overlap:.1f}"]})
        finally:
            await redis.aclose()


class Answering:
    """A running `benchmarks.rig.answerer`."""

    def __init__(self, apis: int, *, rate: float, burst: int, latency: float) -> None:
        options = {"apis": apis, "rate": rate, "burst": burst, "latency": latency}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rig.answerer", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.host = f"127.0.0.1:{json.loads(self._process.stdout.readline())['port']}"

    def stats(self) -> dict[str, float]:
        """What it tells of itself."""
        told: dict[str, float] = httpx.get(f"http://{self.host}/stats").json()
        return told

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


def capacity(requests: int = 300) -> float:
    """Images a second that one core carries of answering, by the time that the answerer's process took."""
    answering = Answering(1, rate=1e9, burst=10**9, latency=0.0)
    try:
        tensor = oip.Tensor("images", "UINT8", (MOST, *SHAPE), bytes(MOST * SHAPE[0] * SHAPE[1] * SHAPE[2]))
        body, headers = oip.encode_request([tensor], binary=True)
        with httpx.Client() as client:
            url = f"http://{answering.host}/v2/models/m0/infer"
            before = answering.stats()["core_seconds"]
            for number in range(requests):
                client.post(url, content=body, headers={**headers, "Idempotency-Key": str(number)}).raise_for_status()
            return MOST * requests / (answering.stats()["core_seconds"] - before)
    finally:
        answering.stop()


def main(
    points: Annotated[str, typer.Option(help="Comma list of WORKERSxAPIS.")] = POINTS,
    seconds: Annotated[float, typer.Option(help="How long acquiring takes at the full rate.")] = 16.0,
    total: Annotated[float, typer.Option(help="Images a second of all APIs together, at most half a core's.")] = 800.0,
    latency: Annotated[float, typer.Option(help="Seconds of each answer.")] = 0.2,
    overlap: Annotated[bool, typer.Option(help="Also show learning while acquiring: takes 90 seconds more.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="1 worker, 8 APIs, 4 seconds, no overlap.")] = False,
) -> None:
    """Run a job for each number of workers and of APIs; print wall times, efficiencies and whether learning overlapped."""
    if quick:
        points, seconds, overlap = "1x8", 4.0, False
    chosen = [parsed(point) for point in points.split(",")]
    carried = capacity()
    total = min(total, carried / 2)
    console.print(
        f"one core carries {carried:,.0f} images/s of answering; all APIs together give {total:,.0f} a second"
    )
    table = Table("workers", "APIs", "wall s", "acquire s", "all asked s", "429s", "efficiency", box=None)
    efficiency: dict[str, float | None] = {}
    overlapped: float | None = None
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), total=total, latency=latency) as bench:
        for workers, apis in chosen:
            point = f"{workers}x{apis}"
            try:
                told = bench.run(workers, apis, seconds)
            except JobDidNotSucceed as failed:
                console.print(f"{point}: {failed}")
                efficiency[point] = None
                continue
            efficiency[point] = round(told["efficiency"], 3)
            times = [f"{told[name]:.1f}" for name in ("wall", "acquire", "ramp")]
            row = [str(workers), str(apis), *times, f"{told['refused']:.0f}", f"{told['efficiency']:.3f}"]
            table.add_row(*row)
            console.print(*row)
        if overlap:
            overlapped = bench.run(2, 8, OVERLAP, steps=200, part=0.25)["overlap"]
    console.print(table)
    if overlapped is not None:
        console.print(
            f"in a job that acquires for {OVERLAP:.0f} s, the learner learned for the last {overlapped:.1f} s of them"
        )
    last: dict[str, Any] = {"efficiency": efficiency}
    if overlapped is not None:
        last |= {"overlapped": overlapped > 0, "overlap_seconds": overlapped}
    print(json.dumps(last))
    if None in efficiency.values():
        sys.exit(1)


def parsed(point: str) -> tuple[int, int]:
    """Workers and APIs of `WORKERSxAPIS`. Raises `typer.BadParameter`."""
    workers, _, apis = point.partition("x")
    if not (workers.isdecimal() and apis.isdecimal() and int(workers) and int(apis)):
        raise typer.BadParameter(f"{point!r}: write WORKERSxAPIS, such as 2x32", param_hint="--points")
    return int(workers), int(apis)


if __name__ == "__main__":
    typer.run(main)
