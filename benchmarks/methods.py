"""Few-shot accuracy of every method against the queries it spent: same teachers, same network, same episodes.

Rows that answer the same question stand together: methods that make a self-contained meta-model without real data; baselines;
and bounds, which need the APIs at test time or real images. The gain of a row over the untrained network is paired.

Writes `benchmarks/results/methods.json` and the plot that the README shows; the last line printed is JSON.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.rig.accuracy import plot, table
from benchmarks.rig.degraded import degraded
from benchmarks.rig.few_shot import ADAPTATIONS, BASELINES, BOUNDS, NETWORKS, Bench, summary
from benchmarks.rig.options import by_method, listed, named, numbers
from dfml.methods import METHODS

RESULTS = Path(__file__).parent / "results" / "methods.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "accuracy-against-queries.png"


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers.")],
    dataset: Annotated[str, typer.Option(help="Data set of the episodes.")] = "cifar-fs",
    split: Annotated[str, typer.Option(help="Its split; choices are made on val.")] = "val",
    methods: Annotated[str, typer.Option(help=f"Comma list of {', '.join((*METHODS, *BASELINES, *BOUNDS))}.")] = "pqd",
    options: Annotated[str, typer.Option(help='JSON: options by method, {"free": {"epochs": 100}}.')] = "{}",
    budgets: Annotated[str, typer.Option(help="Comma list of images in all.")] = "1280,5120,20480,81920",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, seeded 0, 1, …")] = 3,
    answers: Annotated[
        str,
        typer.Option(
            help="Comma list: probabilities, a response policy such as round:2 or label, useless:N for N that guess."
        ),
    ] = "probabilities",
    minutes: Annotated[float, typer.Option(help="No new run begins after this; its row says not_run.")] = 60,
    adaptations: Annotated[
        str, typer.Option(help=f"Comma list of {', '.join(ADAPTATIONS)}; with more than one, transductive ones too.")
    ] = "logistic",
    finetuned_episodes: Annotated[
        int, typer.Option(min=1, help="Episodes that finetune is tried on: it is slow.")
    ] = 60,
    teachers_used: Annotated[int | None, typer.Option(min=1, help="The first so many teachers alone.")] = None,
    student: Annotated[
        str,
        typer.Option(help=f"Network of the meta-model: {', '.join(NETWORKS)}. Rows of another than conv4 name it."),
    ] = "conv4",
    label: Annotated[
        str, typer.Option(help="Said behind the names of rows, to tell their options from the usual.")
    ] = "",
    keep: Annotated[bool, typer.Option(help="Keep rows of the results file that this run does not measure.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train every method at every budget and seed, and test all on the same 600 episodes."""
    chosen = named(methods, (*METHODS, *BASELINES, *BOUNDS), option="--methods")
    adapted = named(adaptations, ADAPTATIONS, option="--adaptations")
    if student not in NETWORKS:
        raise typer.BadParameter(f"{student}: not one of {', '.join(NETWORKS)}", param_hint="--student")
    spent = numbers(budgets, option="--budgets")
    torch.set_num_threads(threads)
    bench = Bench.opened(
        teachers,
        dataset=dataset,
        split=split,
        options=by_method(options, option="--options"),
        adaptations=adapted,
        finetuned_episodes=finetuned_episodes,
        teachers_used=teachers_used,
        student=student,
        device=device,
    )
    try:
        benches = {
            policy: replace(bench, teachers=degraded(bench.teachers, policy)) for policy in listed(answers) or [answers]
        }
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--answers") from error
    console = Console()
    random = bench.untrained()
    deadline = time.monotonic() + 60 * minutes
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["methods"] if keep else {}
    for policy, told_of in benches.items():
        for method in chosen:
            usual = ((policy, "probabilities"), (student, "conv4"), (label, ""))
            unusual = [said for said, known in usual if said != known]
            name = ", ".join((method, *unusual))
            row = rows.setdefault(name, {})
            asks = bench.asks(method)
            for budget in spent if asks else [None]:
                place, runs = _budget_name(method, budget), []
                for seed in range(seeds if method in METHODS or asks else 1):
                    if time.monotonic() > deadline:
                        break
                    runs.append(told_of.run(method, budget, seed, random))
                    told = {shot: round(one["accuracy"], 1) for shot, one in runs[-1]["logistic"].items()}
                    console.print(f"{name} {budget} seed {seed}: {told} {runs[-1]['seconds']:.0f} s", soft_wrap=True)
                    own = {"options": bench.options[method]} if method in bench.options else {}
                    row[place] = summary(runs) | own
                    _written(bench, rows, random)  # what was measured outlives what interrupts
                row.setdefault(place, "not_run")
    result = _written(bench, rows, random)
    plot(result, PLOT)
    console.print(table(result))
    typer.echo(json.dumps(result))


def _written(bench: Bench, rows: dict[str, Any], random: dict[str, Tensor]) -> dict[str, Any]:
    """Write all rows to the results file; what it holds now."""
    shots = [f"{number}shot" for number in bench.evaluation.shots]
    result = {
        "methods": {name: dict(sorted(row.items(), key=_by_budget)) for name, row in rows.items()},
        "random": dict(zip(shots, random["logistic"].mean(1).tolist(), strict=True)),
        "bounds": [name for name in rows if name in BOUNDS],
        "device": bench.machine,
        "teachers": bench.name,
        "dataset": f"{bench.evaluation.dataset} {bench.evaluation.split}",
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _by_budget(row: tuple[str, Any]) -> int:
    return int(row[0]) if row[0].isdigit() else 0


def _budget_name(method: str, budget: int | None) -> str:
    if budget is not None:
        return str(budget)
    return "bound" if method in BOUNDS else "white-box"


if __name__ == "__main__":
    typer.run(main)
