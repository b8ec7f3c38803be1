"""Jobs on real processes while those are killed at random and connections are cut; then the zoo's audit stream is checked.

The last line printed is JSON; `idle` is the longest time, in seconds, that the work of a killed worker waited although another
had room for it, `idle_by_clock` the longest whatever was down or full meanwhile. Exit status 1 when the books do not balance, a
job is stuck, too few succeeded, or, with leases as in production, `idle` was longer than 90 seconds.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import redis
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.books import Books, Bought, Sampler, check_job
from benchmarks.chaos.launch import DEFECTS
from benchmarks.chaos.service import Service
from benchmarks.chaos.strikes import KINDS, Chaos
from benchmarks.rig.options import named
from client import Metazoo
from client.errors import MetazooError
from contracts.job_records import Event
from contracts.jobs import JobStatus
from meta_server.store import keys

AT_ONCE = 4  # jobs
LONGEST_IDLE = 90.0  # seconds that the work of a killed worker may wait for another
TERMINAL = frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED})

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Watched:
    """A job under way: it is followed, whatever breaks, until it ends."""

    bought: Bought
    client: Metazoo
    heard: list[Event] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    def __post_init__(self) -> None:
        threading.Thread(target=self._follow, daemon=True).start()

    @property
    def status(self) -> JobStatus:
        """As last heard."""
        told = [event.data["status"] for event in list(self.heard) if event.type == "status"]
        return JobStatus(told[-1]) if told else JobStatus.QUEUED

    @property
    def ended(self) -> bool:
        """Whether its last event was heard."""
        return self.status in TERMINAL

    def _follow(self) -> None:
        while not self.ended:
            last = self.heard[-1].id if self.heard else None
            try:
                for event in self.client.jobs.retrieve(self.bought.job_id).stream(after=last):
                    self.heard.append(event)
            except MetazooError:
                time.sleep(0.5)  # the server is down for longer than the client is patient
        self.seconds = time.monotonic() - self.began


def submit(service: Service, client: Metazoo, number: int, *, queries: int, rate: float, apis: int) -> Bought | None:
    """Start a job with a zoo key of its own; None while the zoo or the server is down."""
    models = [service.models()[(number + at) % len(service.models())] for at in range(apis)]
    try:
        key_id, secret = service.zoo_key(images_per_second=rate, burst=16)
        body = {
            "name": f"chaos {number}",
            "apis": [{"url": f"{service.proxied_zoo_url}/v2/models/{model}", "api_key": secret} for model in models],
            "budget": {"queries": queries},
            "method": {"name": "pqd", "steps": 40, "batch": 16},
            "meta_model": {"width": 16},
            "evaluation": {"dataset": "glyphs", "split": "val", "shots": [1], "episodes": 20},
            "seed": number,
        }
        job = client.jobs.create(body, idempotency_key=f"chaos-{key_id}")
    except (OSError, MetazooError, httpx.HTTPError):
        return None
    return Bought(job.id, key_id, models)


def main(
    faults: Annotated[int, typer.Option(min=0, help="Faults that must hit running jobs.")] = 60,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at least; more are begun until all faults were made.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 0,
    every: Annotated[float, typer.Option(min=0.1, help="Mean seconds between faults.")] = 5.0,
    queries: Annotated[int, typer.Option(min=4, help="Budget of a job.")] = 240,
    rate: Annotated[float, typer.Option(min=0.1, help="Images a second that a job's key may ask.")] = 12.0,
    apis: Annotated[int, typer.Option(min=1, help="APIs of a job.")] = 3,
    only: Annotated[str, typer.Option(help="Comma list of the kinds of faults.")] = ",".join(KINDS),
    lease: Annotated[float | None, typer.Option(help="Seconds of a lease, to shorten the run. Default: 45.")] = None,
    defect: Annotated[
        str | None, typer.Option(help=f"Control: defects to find, a comma list of {', '.join(DEFECTS)}.")
    ] = None,
    zoo: Annotated[Path | None, typer.Option(help="Zoo folder. Default: a small one of glyphs is made.")] = None,
    minutes: Annotated[float, typer.Option(help="Jobs that have not ended after this are stuck.")] = 30,
    folder: Annotated[Path | None, typer.Option(help="Where everything is written and kept.")] = None,
) -> None:
    """Break a service that works; count what was lost."""
    kinds = {kind: KINDS[kind] for kind in named(only, KINDS, option="--only")}
    defects = None if defect is None else ",".join(named(defect, DEFECTS, option="--defect"))
    with tempfile.TemporaryDirectory() as made:
        place = (folder or Path(made)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        zoo_folder = zoo.absolute() if zoo else build_zoo(place / "zoo")
        with Service(place, zoo_folder, lease=lease, defect=defects) as service:
            client = Metazoo(service.server_url, service.api_key)
            chaos, books = Chaos(service, random.Random(seed), kinds), Books()
            began = time.monotonic()
            watched = run(chaos, books, client, faults, jobs, every, began + 60 * minutes,
                          queries=queries, rate=rate, apis=apis)  # fmt: skip
            seconds = time.monotonic() - began
            service.wait_until_ready()
            asyncio.run(check(service, client, watched, books))
    console.print(_table(watched, chaos))
    for complaint in books.complaints:
        console.print(complaint, markup=False)
    succeeded = sum(one.status is JobStatus.SUCCEEDED for one in watched)
    told = {
        "faults": len(chaos.done),
        "jobs": len(watched),
        "succeeded": succeeded,
        "lost_answers": books.lost_answers,
        "double_charged": books.double_charged,
        "overspent": books.overspent,
        "unconfirmed": books.unconfirmed,
        "stuck": books.stuck,
        "idle": _seconds(chaos.recovery.longest),
        "idle_by_clock": _seconds(chaos.recovery.by_clock),
        "seconds": round(seconds, 1),
        "complaints": len(books.complaints),
    }
    typer.echo(json.dumps(told))
    too_late = lease is None and (chaos.recovery.longest or 0.0) > LONGEST_IDLE
    if not books.balanced or too_late or succeeded < 0.9 * len(watched):
        sys.exit(1)


def build_zoo(folder: Path) -> Path:
    """Four quickly trained glyph teachers."""
    build = ["zoo", "build", "--dataset", "glyphs", "--teachers", "4", "--ways", "5", "--epochs", "1"]
    subprocess.run([sys.executable, "-m", "metazoo", *build, "--out", str(folder)], check=True, capture_output=True)
    return folder


def run(
    chaos: Chaos,
    books: Books,
    client: Metazoo,
    faults: int,
    jobs: int,
    every: float,
    deadline: float,
    **body: Any,
) -> list[Watched]:
    """Keep a few jobs running, break things, until there were enough of both and every job has ended."""
    watched: list[Watched] = []
    sampler = Sampler(chaos.service)
    strike_at = time.monotonic() + chaos.random.expovariate(1 / every)
    while time.monotonic() < deadline:
        open_jobs = [one for one in watched if not one.ended]
        enough = len(watched) >= jobs and len(chaos.done) >= faults
        if enough and not open_jobs:
            break
        wanted = AT_ONCE if len(watched) < jobs else 1  # one more at a time when only faults are missing
        if not enough and len(open_jobs) < wanted:
            bought = submit(chaos.service, client, len(watched), **body)
            if bought is not None:
                watched.append(Watched(bought, client))
        due = faults * min(1.0, len(watched) / jobs)  # the later jobs are to have theirs
        if len(chaos.done) < due and time.monotonic() >= strike_at and (told := chaos.strike()):
            console.print(f"{len(chaos.done):3} {told}", markup=False)
            strike_at = time.monotonic() + chaos.random.expovariate(1 / every)
        for one in open_jobs:
            try:
                sampler.look(one.bought, books)
            except (redis.RedisError, OSError):
                break
        with suppress(redis.RedisError, OSError):
            chaos.recovery.look()
        time.sleep(0.25)
    return watched


async def check(service: Service, client: Metazoo, watched: list[Watched], books: Books) -> None:
    """The audit of all jobs; a job's holds have a minute to be closed after its end."""
    for one in watched:
        if not one.ended:
            books.stuck += 1
            books.complain(one.bought.job_id, f"it is stuck: {one.status}")
            continue
        deadline = time.monotonic() + 60
        with service.redis() as connection:
            while connection.hlen(keys.job(one.bought.job_id, "holds")) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        await check_job(service, client, one.bought, one.heard, books)


def _seconds(told: float | None) -> float | None:
    return None if told is None else round(told, 1)


def _table(watched: list[Watched], chaos: Chaos) -> Table:
    table = Table(title=f"{len(chaos.done)} faults: " + ", ".join(f"{chaos.done.count(kind)} {kind}" for kind in KINDS))
    for heading in ("job", "status", "events", "seconds"):
        table.add_column(heading)
    for one in watched:
        seconds = "" if one.seconds is None else f"{one.seconds:.0f}"
        table.add_row(one.bought.job_id, one.status, str(len(one.heard)), seconds)
    return table


if __name__ == "__main__":
    typer.run(main)
