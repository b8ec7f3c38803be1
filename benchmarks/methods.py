"""Few-shot accuracy of every method against the queries it spent: same teachers, same network, same episodes.

Writes `benchmarks/results/methods.json` and the plot that the README shows; the last line printed is JSON.
"""

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.zoo import Manifest
from dfml.datasets import Dataset, open_dataset
from dfml.evaluate import evaluate, evaluate_random
from dfml.methods import METHODS, OPTIONS, WHITE_BOX
from dfml.nets import Backbone
from dfml.teachers import ModuleTeacher, load_teacher

RESULTS = Path(__file__).parent / "results" / "methods.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "accuracy-against-queries.png"
Run = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What every run shares."""

    teachers: list[ModuleTeacher]
    dataset: Dataset
    evaluation: Evaluation
    config: BackboneConfig
    device: str
    options: dict[str, dict[str, Any]]

    def run(self, method: str, queries: int | None, seed: int) -> Run:
        """Train once; accuracies in percent, queries and passes as the teachers counted them. `queries` None: white-box."""
        queries_before, passes_before = self._spent()
        began = time.monotonic()
        options = OPTIONS[method](**self.options.get(method, {}))
        budget = {} if queries is None else {"queries": queries}
        train = (METHODS | WHITE_BOX)[method].train
        trained = train(self.teachers, self.config, options, **budget, seed=seed, device=self.device)
        seconds = time.monotonic() - began
        queries_after, passes_after = self._spent()
        spent = {"queries": queries_after - queries_before, "teacher_passes": passes_after - passes_before}
        return {**self._accuracy(trained.backbone), **spent, "seconds": seconds}

    def _spent(self) -> tuple[int, int]:
        """Queries; forward and backward passes of an image."""
        passes = sum(teacher.forward_passes + teacher.backward_passes for teacher in self.teachers)
        return sum(teacher.queries for teacher in self.teachers), passes

    def _accuracy(self, backbone: Backbone) -> Run:
        score = evaluate(backbone, self.dataset, self.evaluation, device=self.device)
        row = {f"{shots}shot": mean for shots, mean in score.accuracy.items()}
        return row | {f"{shots}shot_interval": half for shots, half in score.interval.items()}


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers.")],
    dataset: Annotated[str, typer.Option(help="Data set of the episodes.")] = "cifar-fs",
    split: Annotated[str, typer.Option(help="Its split; choices are made on val.")] = "val",
    methods: Annotated[str, typer.Option(help=f"Comma list of {', '.join(METHODS | WHITE_BOX)}.")] = "pqd",
    options: Annotated[str, typer.Option(help='JSON: options by method, {"free": {"epochs": 100}}.')] = "{}",
    budgets: Annotated[str, typer.Option(help="Comma list of images in all.")] = "1280,5120,20480,81920",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, seeded 0, 1, …")] = 3,
    minutes: Annotated[float, typer.Option(help="No new run begins after this; its row says not_run.")] = 60,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train every method at every budget and seed, and test all on the same 600 episodes."""
    torch.set_num_threads(threads)
    data = os.environ.get("METAZOO_DATA")
    manifest = Manifest.model_validate_json((teachers / "manifest.json").read_bytes())
    bench = Bench(
        teachers=[load_teacher(manifest, entry, teachers / entry.file) for entry in manifest.teachers],
        dataset=open_dataset(dataset, Path(data) if data else None),
        evaluation=Evaluation(dataset=dataset, split=split),  # type: ignore[arg-type]
        config=BackboneConfig(),
        device=device,
        options=json.loads(options),
    )
    console = Console()
    random = evaluate_random(bench.config, bench.teachers[0].input_shape, bench.dataset, bench.evaluation)
    deadline = time.monotonic() + 60 * minutes
    rows: dict[str, dict[str, Any]] = {}
    for method in methods.split(","):
        rows[method] = {}
        for budget in map(int, budgets.split(",")) if method in METHODS else [None]:
            runs = []
            for seed in range(seeds):
                if time.monotonic() > deadline:
                    break
                runs.append(bench.run(method, budget, seed))
                console.print(f"{method} {budget} seed {seed}: {runs[-1]}", soft_wrap=True)
            rows[method]["white-box" if budget is None else str(budget)] = _summary(runs) if runs else "not_run"
    result = {
        "methods": rows,
        "random": {f"{shots}shot": mean for shots, mean in random.accuracy.items()},
        "device": device
        if device != "cpu"
        else f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}",
        "teachers": f"{len(bench.teachers)} {manifest.backbone}-{manifest.width} on {manifest.dataset}",
        "dataset": f"{dataset} {split}",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    _plot(result)
    console.print(_table(result))
    typer.echo(json.dumps(result))


def _summary(runs: list[Run]) -> dict[str, Any]:
    """Mean over seeds; `interval` is the 95 % half-width over episodes of one run, `seed_std` the spread over seeds."""
    shots = [name.removesuffix("_interval") for name in runs[0] if name.endswith("_interval")]
    return {
        **{name: round(fmean(run[name] for run in runs), 2) for name in shots},
        "interval": {name: round(fmean(run[f"{name}_interval"] for run in runs), 2) for name in shots},
        "seed_std": {name: round(stdev(run[name] for run in runs), 2) if len(runs) > 1 else None for name in shots},
        "seeds": len(runs),
        "queries": int(runs[0]["queries"]),
        "teacher_passes": int(runs[0]["teacher_passes"]),
        "seconds": round(fmean(run["seconds"] for run in runs), 1),
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"5-way accuracy, {result['dataset']}, {result['teachers']}; random init {result['random']}")
    for heading in ("method", "queries", "1-shot", "5-shot", "seeds", "seconds a run"):
        table.add_column(heading, justify="right")
    for method, budgets in result["methods"].items():
        for budget, row in budgets.items():
            if row == "not_run":
                table.add_row(method, budget, *["not run"] * 4)
                continue
            cells = [f"{row[shot]:.1f} ± {row['interval'][shot]:.1f}" for shot in ("1shot", "5shot")]
            table.add_row(method, f"{row['queries']:,}", *cells, str(row["seeds"]), f"{row['seconds']:.0f}")
    return table


def _plot(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {"5shot": "#0b7285", "1shot": "#e8590c"}
    for method, budgets in result["methods"].items():
        done = [row for row in budgets.values() if row != "not_run" and row["queries"]]
        if not done:
            continue
        for shot, colour in colours.items():
            axes.errorbar(
                [row["queries"] for row in done],
                [row[shot] for row in done],
                [row["interval"][shot] for row in done],
                marker="o", capsize=3, color=colour, label=f"{method}, {shot[0]}-shot",
            )  # fmt: skip
    for shot, colour in colours.items():
        axes.axhline(result["random"][shot], color=colour, linestyle=":", label=f"untrained network, {shot[0]}-shot")
    axes.set(
        xscale="log",
        xlabel="images sent to all APIs together",
        ylabel="5-way accuracy, %",
        title=f"{result['dataset']}: {result['teachers']}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
