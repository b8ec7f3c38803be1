"""What images recovered by zeroth-order gradients are worth, by estimator and budget: BiDf-MKD's recovery of one API's task.

The reference is the paper's: 100 directions on the unit sphere, forward, step 0.005. Each estimator spends a budget on one set
of `images` a class through the same conditional generator with the same diversity term, in as many iterations as it can afford.

The last line printed is JSON: {"curve": {estimator: {budget: [mean, half-width]}}, "plateau", "reference_queries",
"queries": {estimator: …}, "times_fewer": {estimator: …}}: how many times fewer queries than the reference, at its cheapest
budget within a point of its plateau, an estimator needs to be as good; null where it never is.
"""

import json
import os
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.rig.worth import worth
from contracts.methods import BidfMkdOptions
from contracts.zoo import Manifest
from dfml.access import probe
from dfml.datasets import open_dataset
from dfml.methods.bidf_mkd import source
from dfml.recovery import Recovery, recover
from dfml.teachers import ModuleTeacher, load_teacher
from dfml.visits import Plan, step_cost

ESTIMATORS: dict[str, dict[str, Any]] = {
    "reference": {"directions": 100, "frequencies": None, "step": 0.005},
    "few": {"directions": 9, "frequencies": None},
    "low": {"directions": 9, "frequencies": 8},
    "low_orthogonal": {"directions": 9, "frequencies": 8, "antithetic": True, "orthogonal": True},
    "surrogate": {"source": "surrogate"},
    "guided": {"source": "guided", "directions": 8, "frequencies": 8},
    "latent": {"directions": 9, "frequencies": None, "space": "latent"},
}


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers.")],
    estimators: Annotated[str, typer.Option(help=f"Comma list of {', '.join(ESTIMATORS)}.")] = ",".join(ESTIMATORS),
    budgets: Annotated[str, typer.Option(help="Comma list of queries of one API.")] = "10000,100000,1000000",
    tried: Annotated[int, typer.Option(min=1, help="Teachers, the first of the folder.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Recoveries of each.")] = 3,
    images: Annotated[int, typer.Option(min=1, help="Images a class.")] = 20,
    width: Annotated[int, typer.Option(help="Channels of the generator; the paper's has 64.")] = 16,
    rate: Annotated[float, typer.Option(help="Adam's rate for the generator.")] = 1e-3,
    student_steps: Annotated[int, typer.Option(min=1, help="Steps in which the fresh network learns.")] = 250,
    minutes: Annotated[float, typer.Option(help="No new recovery begins after this.")] = 60,
    dataset: Annotated[str, typer.Option(help="Data set of the teachers.")] = "cifar-fs",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Recover by every estimator at every budget, cheapest first."""
    torch.set_num_threads(threads)
    manifest = Manifest.model_validate_json((teachers / "manifest.json").read_bytes())
    data = os.environ.get("METAZOO_DATA")
    source, console = open_dataset(dataset, Path(data) if data else None), Console()
    found: dict[str, dict[int, list[float]]] = {name: {} for name in estimators.split(",")}
    deadline = time.monotonic() + 60 * minutes
    for budget in sorted(map(int, budgets.split(","))):
        for name in found:
            options = BidfMkdOptions(generator_width=width, generator_rate=rate, **ESTIMATORS[name])
            for index, entry in enumerate(manifest.teachers[:tried]):
                for seed in range(seeds):
                    if time.monotonic() > deadline:
                        break
                    teacher = load_teacher(manifest, entry, teachers / entry.file)
                    began = time.monotonic()
                    made = _recovered(teacher, options, budget, images, seed, device)
                    if made is None:
                        break
                    value = worth(made, teacher, source, entry.classes, seed=seed, steps=student_steps, device=device)
                    found[name].setdefault(budget, []).append(value)
                    told = f"{name}, {budget:,} queries, teacher {index}, seed {seed}: {value:.1f} %"
                    console.print(f"{told}, {time.monotonic() - began:.0f} s", soft_wrap=True)
    what = f"{tried} teachers, {seeds} seeds, {images} images a class, {threads} threads, {device}"
    typer.echo(json.dumps(_result(found) | {"measured": what}))


def _recovered(
    teacher: ModuleTeacher, options: BidfMkdOptions, budget: int, images: int, seed: int, device: str
) -> torch.Tensor | None:
    """Images (n, 3, h, w) for at most so many queries; None where not one iteration fits."""
    iterations = (budget // (teacher.ways * images) - 1) // step_cost(options)
    if iterations < 1:
        return None
    random = torch.Generator().manual_seed(seed)
    unit = probe(teacher, random)
    spent = teacher.queries
    planned = Plan((0,), images, iterations, 0)
    learned = source(teacher, options, unit, random)
    made = recover(Recovery(teacher, options, planned, unit, random, torch.device(device), learned)).images
    assert teacher.queries - spent <= budget
    return made


def _result(found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    means = {name: {budget: fmean(values) for budget, values in rows.items()} for name, rows in found.items()}
    curve = {
        name: {str(budget): [round(fmean(values), 1), _half(values)] for budget, values in rows.items()}
        for name, rows in found.items()
    }
    reference = means.get("reference", {})
    plateau = max(reference.values(), default=None)
    if plateau is None:
        return {"curve": curve}
    cheapest = min(budget for budget, mean in reference.items() if mean >= plateau - 1)
    needed = {
        name: min((budget for budget, mean in rows.items() if mean >= reference[cheapest]), default=None)
        for name, rows in means.items()
        if name != "reference"
    }
    return {
        "curve": curve,
        "plateau": round(plateau, 1),
        "reference_queries": cheapest,
        "queries": needed,
        "times_fewer": {name: None if at is None else round(cheapest / at, 1) for name, at in needed.items()},
    }


def _half(values: list[float]) -> float | None:
    return round(1.96 * stdev(values) / len(values) ** 0.5, 1) if len(values) > 1 else None


if __name__ == "__main__":
    typer.run(main)
