"""Small jobs, one after the other: what a job leaves must have a time to live or an owner.

After each job (and its deletion, unless `--keep`) are written down: memory and file handles of every process, Redis's keys
and memory, and what lies in the artefact store. The last line printed is JSON: by how much each grew a job, from a line through
the second half of the run, the first half being warm-up, and where each stood in the end. What is kept for a month after its
deletion (the record and the files of a meta-model) is counted by itself.
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

# Query sets of all jobs together: a worker keeps 128 MiB of query images, which would else fill up for hundreds of jobs.
SEEDS = 8


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
    names = list(rows[-1])
    table = Table(title=f"{len(rows)} jobs in {minutes:g} minutes", box=None)
    for name in names:
        table.add_column(name.replace(" ", "\n"), justify="right")
    for row in rows:
        table.add_row(*(f"{row.get(name, 0):,.1f}".removesuffix(".0") for name in names))
    Console(stderr=True, width=200).print(table)
    later = rows[len(rows) // 2 :]
    growth = {name: round(slope([row.get(name, 0.0) for row in later]), 4) for name in names}
    last = {name: round(rows[-1][name], 1) for name in names}
    told = {"jobs": len(rows), "minutes": minutes, "kept": keep, "growth_a_job": growth, "in_the_end": last}
    typer.echo(json.dumps(told))


def one_job(service: Service, client: Metazoo, number: int, queries: int, keep: bool) -> None:
    """From its creation to its deletion. Raises what the SDK raises when it does not succeed."""
    bought = submit(service, client, number % SEEDS, queries=queries, rate=1000.0, apis=2)
    if bought is None:
        raise RuntimeError("the service takes no job")
    job = client.jobs.retrieve(bought.job_id).wait(timeout=300)
    if not keep:
        if job.meta_model is not None:
            client.meta_models.delete(job.meta_model)
        job.delete()


def measure(service: Service) -> dict[str, float]:
    """Sizes now, by name and unit. Memory is what a process keeps resident; a worker's child is named after it."""
    sizes: dict[str, float] = {}
    handles = 0
    for name, part in service.parts.items():
        if part.process is None:
            continue
        first = psutil.Process(part.process.pid)
        handles += first.num_fds()
        sizes[f"{name} MiB"] = first.memory_info().rss / 2**20
        for number, child in enumerate(sorted(first.children(recursive=True), key=lambda child: child.pid)):
            handles += child.num_fds()
            sizes[f"{name}/{number} MiB"] = child.memory_info().rss / 2**20
    with service.redis() as redis:
        told: Any = redis.info("memory")
        # what has a time to live goes by itself; the keys of the zoo are this benchmark's own
        found = [key for key in redis.scan_iter(count=1000) if b"mz:zoo:" not in key and redis.ttl(key) < 0]
        deleted = [key for key in found if b":meta-model:" in key and redis.hexists(key, "deleted")]
    stored = [path for path in Path(service.artifacts).rglob("*") if path.is_file()]
    of_models = [path for path in stored if Path(service.artifacts, "meta-models") in path.parents]
    return sizes | {
        "handles": handles,
        "Redis MiB": told["used_memory"] / 2**20,
        "Redis keys": len(found) - len(deleted),
        "files": len(stored) - len(of_models),
        "disk KiB": (size(stored) - size(of_models)) / 1024,
        "models' records": len(deleted),
        "models' KiB": size(of_models) / 1024,
    }


def size(files: list[Path]) -> int:
    """Bytes of all together."""
    return sum(path.stat().st_size for path in files)


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
