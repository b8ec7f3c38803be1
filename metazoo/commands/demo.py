"""`metazoo demo`: one whole job on this machine, and what it brought beside what it cost."""

import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from contracts.jobs import Phase
from metazoo.commands.up import DATA_DIR, interrupt

if TYPE_CHECKING:
    from contracts.jobs import Job
    from metazoo.stack import Ready

QUERIES_PER_TEACHER = 512
SHOWN_PHASES = (Phase.ACQUIRE, Phase.META_TRAIN, Phase.EVALUATE)


@dataclass(frozen=True)
class Result:
    """What one demonstration brought; `to_json` is the last line of `metazoo demo --json`."""

    job: "Job"
    zoo_counted: int
    build_seconds: float
    total_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Accuracies in percent, intervals in points, queries in images, times in seconds."""
        job, budget = self.job, self.job.budget
        return {
            "accuracy": job.score.accuracy if job.score else {},
            "interval": job.score.interval if job.score else {},
            "random": job.random_score.accuracy if job.random_score else {},
            "queries": {
                "limit": budget.limit,
                "spent": budget.confirmed + budget.unconfirmed,
                "zoo_counted": self.zoo_counted,
            },
            "seconds": {
                "build": round(self.build_seconds, 1),
                **{phase: round(job.seconds.get(phase, 0.0), 1) for phase in SHOWN_PHASES},
                "total": round(self.total_seconds, 1),
            },
            "meta_model": job.meta_model,
        }


def demo(
    zoo: Annotated[
        Path | None, typer.Option(help="Zoo folder to learn from. Default: glyph teachers made here.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Data set to evaluate on: glyphs or cifar-fs.")] = "glyphs",
    split: Annotated[str, typer.Option(help="Its split: train, val or test.")] = "val",
    queries: Annotated[int | None, typer.Option(min=1, help="Budget in images. Default: 512 a teacher.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the query images and the training.")] = 0,
    data_dir: Annotated[Path, typer.Option(envvar="METAZOO_HOME", help="Keeps the zoo and the results.")] = DATA_DIR,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")
    ] = False,
) -> None:
    """Host a zoo of classifiers as APIs, learn from them within a budget, and print what came of it."""
    from client import Metazoo, MetazooError
    from metazoo.demo_zoo import ensure
    from metazoo.stack import Stack, StackError
    from metazoo.watch import follow

    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, interrupt)
    data_dir = data_dir.absolute()
    began = time.monotonic()
    try:
        folder = zoo.absolute() if zoo else ensure(data_dir / "zoo", console)
        built = time.monotonic()
        with Stack(data_dir / "demo", folder, on_ready=lambda name: console.print(f"  {name:8} ready")) as stack:
            ready = stack.ready
            with Metazoo(ready.server_url, ready.api_key) as metazoo:
                request = _request(ready, dataset, split, queries, seed)
                before = _zoo_count(ready)
                job = metazoo.jobs.create(request)
                follow(job, console)
                job.wait()
                folder = metazoo.meta_models.download(
                    str(job.meta_model), data_dir / "meta-models" / str(job.meta_model)
                )
            result = Result(job, _zoo_count(ready) - before, built - began, time.monotonic() - began)
    except (StackError, MetazooError) as error:
        console.print(f"metazoo demo: {error}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130)
    _show(result, folder, dataset, split, len(ready.models))
    if as_json:
        typer.echo(json.dumps(result.to_json()))


def _request(ready: "Ready", dataset: str, split: str, queries: int | None, seed: int) -> dict[str, Any]:
    return {
        "name": "demo",
        "apis": [{"url": model["url"], "api_key": model["api_key"]} for model in ready.models],
        "budget": {"queries": queries or QUERIES_PER_TEACHER * len(ready.models)},
        "evaluation": {"dataset": dataset, "split": split},
        "seed": seed,
    }


def _zoo_count(ready: "Ready") -> int:
    """What the zoo has charged the key so far, by its own books."""
    from client import Metazoo

    with Metazoo(zoo_url=ready.zoo_url, zoo_api_key=ready.models[0]["api_key"]) as metazoo:
        return metazoo.zoo.usage().spent


def _show(result: Result, folder: Path, dataset: str, split: str, apis: int) -> None:
    values = result.to_json()
    table = Table(title=f"5-way accuracy on {dataset} {split}, 600 episodes, logistic head, inductive batch norm")
    table.add_column("")
    for shots in values["accuracy"]:
        table.add_column(f"{shots}-shot", justify="right")
    learned = [f"{mean:.1f} ± {values['interval'][shots]:.1f}" for shots, mean in values["accuracy"].items()]
    table.add_row("meta-model", *learned)
    table.add_row("untrained network (3 seeds)", *(f"{mean:.1f}" for mean in values["random"].values()))
    spent = values["queries"]
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"queries  {spent['spent']:,} of {spent['limit']:,} over {apis} APIs; the zoo counted {spent['zoo_counted']:,}"
    )
    console.print("seconds  " + "  ".join(f"{phase} {seconds}" for phase, seconds in values["seconds"].items()))
    console.print(f"model    {folder}", soft_wrap=True)
