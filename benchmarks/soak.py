"""Small jobs, one after the other: what a job leaves must have a time to live or an owner.

After each job (and its deletion, unless `--keep`) memory and file handles of every process, Redis's keys and memory, and
the files of the artefact store are written down. The last line printed is JSON: by how much each grew a job, from a line
through the second half of the run, the first half being warm-up.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.service import Service
from benchmarks.faults import build_zoo, submit
from client import Metazoo
from client.errors import MetazooError

COLUMNS = (
    "server_mib",
    "zoo_mib",
    "acquire_mib",
    "learn_mib",
    "handles",
    "redis_keys",
    "redis_mib",
    "files",
    "disk_kib",
)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="No new job begins after this.")] = 10.0,
    queries: Annotated[int, typer.Option(min=4, help="Budget of a job.")] = 60,
    keep: Annotated[bool, typer.Option(help="Do not delete jobs when they have ended.")] = False,
    zoo: Annotated[Path | None, typer.Option(help="Zoo folder. Default: a small one of glyphs is made.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where everything is written and kept.")] = None,
) -> None:
    """Run small jobs for so many minutes; tell what grows."""
    with tempfile.TemporaryDirectory() as made:
        place = (folder or Path(made)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        zoo_folder = zoo.absolute() if zoo else build_zoo(place / "zoo")
        rows: list[dict[str, float]] = []
        with Service(place, zoo_folder, acquirers=1, concurrency=2) as service:
            client = Metazoo(service.server_url, service.api_key)
            deadline = time.monotonic() + 60 * minutes
            while time.monotonic() < deadline or not rows:
                one_job(service, client, len(rows), queries, keep)
                rows.append(measure(service))
    table = Table(title=f"{len(rows)} jobs in {minutes:g} minutes")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{row[name]:,.1f}".removesuffix(".0") for name in COLUMNS))
    Console(stderr=True).print(table)
    growth = {name: round(slope([row[name] for row in rows[len(rows) // 2 :]]), 3) for name in COLUMNS}
    typer.echo(json.dumps({"jobs": len(rows), "minutes": minutes, "kept": keep, "growth_a_job": growth}))


def one_job(service: Service, client: Metazoo, number: int, queries: int, keep: bool) -> None:
    """From its creation to its deletion. Raises what the SDK raises when it does not succeed."""
    bought = submit(service, client, number, queries=queries, rate=1000.0, apis=2)
    if bought is None:
        raise RuntimeError("the service takes no job")
    job = client.jobs.wait(bought.job_id, timeout=300)
    if not keep:
        if job.meta_model is not None:
            client.meta_models.delete(job.meta_model)
        client.jobs.delete(job.id)


def measure(service: Service) -> dict[str, float]:
    """Sizes now; memory is resident, in MiB, of a part with its children."""
    families = {name: family(part.process.pid) for name, part in service.parts.items() if part.process}
    memory = {name: sum(one.memory_info().rss for one in members) / 2**20 for name, members in families.items()}
    with service.redis() as redis:
        told: Any = redis.info("memory")
        # what has a time to live goes by itself; the keys of the zoo are this benchmark's own
        found = [key for key in redis.scan_iter(count=1000) if b"mz:zoo:" not in key and redis.ttl(key) < 0]
    # a deleted meta-model can be restored for a month, then the server's sweeper removes it
    stored = [path for path in Path(service.artifacts, "jobs").rglob("*") if path.is_file()]
    return {
        "server_mib": memory["server"],
        "zoo_mib": memory["zoo"],
        "acquire_mib": memory["acquire-0"],
        "learn_mib": memory["learn"],
        "handles": sum(one.num_fds() for members in families.values() for one in members),
        "redis_keys": len(found),
        "redis_mib": told["used_memory"] / 2**20,
        "files": len(stored),
        "disk_kib": sum(path.stat().st_size for path in stored) / 1024,
    }


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def slope(values: list[float]) -> float:
    """Of the least-squares line through the values, a step; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    middle, mean = (len(values) - 1) / 2, fmean(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


if __name__ == "__main__":
    try:
        typer.run(main)
    except MetazooError as error:
        raise SystemExit(str(error)) from error
