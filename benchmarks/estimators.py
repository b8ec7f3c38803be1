"""What images recovered from one API's answers are worth, by where the gradient comes from and by budget: BiDf-MKD's recovery.

The reference is the paper's: 100 directions on the unit sphere, forward, step 0.005. Others differ in their directions, or in
what the images begin as. An estimator makes `images` a class and goes on with them: a smaller budget is an earlier moment
of the same run, the smallest one that nothing has moved. Those that name their `iterations` make as many images as the budget
allows instead. `procedural` moves nothing: it asks about pqd's images, whatever their class, and is no gradient at all.

The last line printed is JSON: {"curve": {estimator: {budget: [mean, half-width, runs]}}, "plateau", "reference_queries",
"queries": {estimator: …}, "times_fewer": {estimator: …}}: how many times fewer queries than the reference, at its cheapest
budget within a point of its plateau, an estimator needs to be as good; null where it never is.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.rig.options import named, numbers
from benchmarks.rig.worth import worth
from contracts.methods import BidfMkdOptions
from contracts.zoo import Manifest
from dfml.access import probe
from dfml.datasets import open_dataset
from dfml.methods.bidf_mkd import source
from dfml.procedural import query_set
from dfml.recovery import OnIteration, Recovery, recover
from dfml.teachers import ModuleTeacher, load_teacher
from dfml.visits import Plan, step_cost

_LOW: dict[str, Any] = {"directions": 9, "frequencies": 8}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "reference": {"directions": 100, "frequencies": None, "step": 0.005},
    "few": {"directions": 9, "frequencies": None},
    "low": _LOW,
    "low_orthogonal": {**_LOW, "antithetic": True, "orthogonal": True},
    "surrogate": {"source": "surrogate"},
    "guided": {"source": "guided", "directions": 8, "frequencies": 8},
    "latent": {"directions": 9, "frequencies": None, "space": "latent"},
    "painted": {**_LOW, "canvas": 0.5, "diversity": 0.0, "iterations": 2},
    "painted_surrogate": {"source": "surrogate", "canvas": 0.5, "diversity": 0.0, "iterations": 4},
}
PROCEDURAL = "procedural"


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers.")],
    estimators: Annotated[str, typer.Option(help=f"Comma list of {', '.join((*ESTIMATORS, PROCEDURAL))}.")] = ",".join(
        (*ESTIMATORS, PROCEDURAL)
    ),
    budgets: Annotated[str, typer.Option(help="Comma list of queries of one API.")] = "100,10200,101100,1000000",
    tried: Annotated[int, typer.Option(min=1, help="Teachers, the first of the folder.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Recoveries of each.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of these seeds.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="Images a class, where the budget does not say.")] = 20,
    width: Annotated[int, typer.Option(help="Channels of the generator; the paper's has 64.")] = 16,
    rate: Annotated[float, typer.Option(help="Adam's rate for the generator.")] = 1e-3,
    student_steps: Annotated[int, typer.Option(min=1, help="Steps in which the fresh network learns.")] = 250,
    minutes: Annotated[float, typer.Option(help="No new recovery begins after this.")] = 60,
    dataset: Annotated[str, typer.Option(help="Data set of the teachers.")] = "cifar-fs",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Recover by every estimator, and tell what the images are worth at every budget."""
    chosen = named(estimators, (*ESTIMATORS, PROCEDURAL), option="--estimators")
    spend = sorted(numbers(budgets, option="--budgets"))
    torch.set_num_threads(threads)
    manifest = Manifest.model_validate_json((teachers / "manifest.json").read_bytes())
    data = os.environ.get("METAZOO_DATA")
    held_out, console = open_dataset(dataset, Path(data) if data else None), Console()
    found: dict[str, dict[int, list[float]]] = {name: {} for name in chosen}
    deadline = time.monotonic() + 60 * minutes
    for name in found:
        for index, entry in enumerate(manifest.teachers[:tried]):
            for seed in range(first_seed, first_seed + seeds):
                if time.monotonic() > deadline:
                    break
                teacher = load_teacher(manifest, entry, teachers / entry.file)
                began = time.monotonic()
                for budget, made in _recovered(teacher, name, spend, images, width, rate, seed, device):
                    value = worth(made, teacher, held_out, entry.classes, seed=seed, steps=student_steps, device=device)
                    found[name].setdefault(budget, []).append(value)
                    told = (
                        f"{name}, {budget:,} queries, {len(made)} images, teacher {index}, seed {seed}: {value:.1f} %"
                    )
                    console.print(f"{told}, {time.monotonic() - began:.0f} s", soft_wrap=True)
    what = f"{tried} teachers, {seeds} seeds, {images} images a class, {threads} threads, {device}"
    typer.echo(json.dumps(_result(found) | {"measured": what}))


def _recovered(
    teacher: ModuleTeacher,
    name: str,
    budgets: Sequence[int],
    images: int,
    width: int,
    rate: float,
    seed: int,
    device: str,
) -> Iterator[tuple[int, Tensor]]:
    """Of each budget that allows any, images (n, 3, h, w) for at most so many queries, the answers about them included."""
    if name == PROCEDURAL:
        objects = query_set({"objects": 1.0}, seed=seed, size=teacher.input_shape[1:])
        yield from ((budget, torch.from_numpy(objects.images(range(budget))).float() / 255) for budget in budgets)
        return
    how = dict(ESTIMATORS[name])
    fixed = how.pop("iterations", None)
    options = BidfMkdOptions(generator_width=width, generator_rate=rate, **how)

    def run(images: int, iterations: int, on_iteration: OnIteration) -> None:
        random = torch.Generator().manual_seed(seed)
        unit, before = probe(teacher, random), teacher.queries
        learned = source(teacher, unit, options=options, generator=random)
        planned = Plan((0,), images, iterations, 0)
        recovery = Recovery(teacher, options, planned, unit, random, torch.device(device), learned)
        recover(recovery, on_iteration=on_iteration)
        assert teacher.queries - before == teacher.ways * images * (iterations * step_cost(options) + 1)

    if fixed is None:
        moments = {(budget // (teacher.ways * images) - 1) // step_cost(options): budget for budget in budgets[::-1]}
        kept: dict[int, Tensor] = {}
        run(images, max(moments), lambda done, now: kept.update({done: now} if done in moments else {}))
        yield from ((budget, kept[done]) for done, budget in sorted(moments.items()) if done in kept)
        return
    for budget in budgets:
        if each := budget // (teacher.ways * (fixed * step_cost(options) + 1)):
            last: list[Tensor] = [torch.empty(0)]
            run(each, fixed, lambda _, now, last=last: last.__setitem__(0, now))  # type: ignore[misc]
            yield budget, last[0]


def _result(found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    means = {name: {budget: fmean(values) for budget, values in rows.items()} for name, rows in found.items()}
    curve = {
        name: {str(budget): [round(fmean(values), 1), _half(values), len(values)] for budget, values in rows.items()}
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
