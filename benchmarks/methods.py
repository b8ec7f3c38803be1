"""Few-shot accuracy of every method against the queries it spent: same teachers, same network, same episodes.

Rows that answer the same question stand together: methods that make a self-contained meta-model without real data; baselines;
and bounds, which need the APIs at test time or real images. The gain of a row over the untrained network is paired.

Writes `benchmarks/results/methods.json` and the plot that the README shows; the last line printed is JSON.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal, get_args

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.rig.accuracy import plot, table
from benchmarks.rig.degraded import degraded
from contracts.meta_models import BackboneConfig, Evaluation
from contracts.zoo import Manifest
from dfml.datasets import Dataset, open_dataset
from dfml.evaluate import difference, hits
from dfml.finetuning import finetuned_hits
from dfml.methods import METHODS, baselines
from dfml.nets import Backbone
from dfml.procedural import query_set
from dfml.teachers import ModuleTeacher, load_teacher

RESULTS = Path(__file__).parent / "results" / "methods.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "accuracy-against-queries.png"
UNLABELLED = "pqd_unlabelled"
"""pqd that asks about real images of the teachers' data set, without their labels: what better query images could give."""
WHITE_BOX = ("free", "purer")
"""Without a budget: they are run on the weights, and spend no queries."""
ONE_API = "single_teacher"
"""Spends the whole budget on the first API."""
BASELINES = ("best_single", "weight_average", "ota", "dro", ONE_API)
BOUNDS = ("outputs_as_features", "real_data", UNLABELLED)
"""No rivals: the first asks every API about every image for ever, the others have seen real images."""
Adaptation = Literal["logistic", "prototypes", "finetune"]
ADAPTATIONS: tuple[Adaptation, ...] = get_args(Adaptation)
Run = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every run shares. `stated`: held-out accuracy of each teacher, as its host states it."""

    teachers: Sequence[ModuleTeacher]
    stated: list[float]
    dataset: Dataset
    evaluation: Evaluation
    config: BackboneConfig
    device: str
    options: dict[str, dict[str, Any]]
    adaptations: tuple[Adaptation, ...]
    finetuned_episodes: int

    def run(self, method: str, queries: int | None, seed: int, random: dict[str, Tensor]) -> Run:
        """Train once; accuracies in percent, queries and passes as the teachers counted them. `queries` None: white-box."""
        before, began = self._spent(), time.monotonic()
        backbone = self._trained(method, queries, seed)
        seconds = time.monotonic() - began
        queries_now, passes_now = self._spent()
        spent = {"queries": queries_now - before[0], "teacher_passes": passes_now - before[1]}
        return {**self._accuracy(backbone, random), **spent, "seconds": seconds}

    def untrained(self) -> dict[str, Tensor]:
        """The control, by adaptation: `hits` of the untrained network, mean of three seeds."""
        shape = self.teachers[0].input_shape
        fresh = [baselines.random_initialisation(self.config, shape, seed=seed) for seed in range(3)]
        found = [self._hits(backbone) for backbone in fresh]
        return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}

    def _trained(self, method: str, queries: int | None, seed: int) -> Any:
        if method in (*METHODS, UNLABELLED):
            how = METHODS["pqd" if method == UNLABELLED else method]
            own = {"unlabelled": self.dataset.images("train").flatten(0, 1)} if method == UNLABELLED else {}
            options = how.options(**self.options.get("pqd" if own else method, {}))
            return how.train(
                self.teachers, self.config, options, queries=queries, seed=seed, device=self.device, **own
            ).backbone
        return self._baselines(queries, seed)[method]()

    def _baselines(self, queries: int | None, seed: int) -> dict[str, Callable[[], Any]]:
        first = self.teachers[0]
        pool = query_set({"objects": 1.0}, seed=seed, size=first.input_shape[1:])

        def single() -> Backbone:
            images = torch.from_numpy(pool.images(range(queries or 0)))
            return baselines.single_teacher(first, self.config, images=images, seed=seed, device=self.device).backbone

        return {
            "best_single": lambda: baselines.best_single(self.teachers, self.config, held_out_accuracies=self.stated),
            "weight_average": lambda: baselines.weight_average(self.teachers, self.config),
            "ota": lambda: baselines.ota(self.teachers, self.config),
            "dro": lambda: baselines.dro(self.teachers, self.config, seed=seed),
            ONE_API: single,
            "outputs_as_features": lambda: baselines.OutputsAsFeatures(self.teachers),
            "real_data": lambda: baselines.real_data(
                self.dataset.images("train"), self.config, seed=seed, device=self.device
            ),
        }

    def _spent(self) -> tuple[int, int]:
        """Queries; forward and backward passes of an image."""
        passes = sum(teacher.forward_passes + teacher.backward_passes for teacher in self.teachers)
        return sum(teacher.queries for teacher in self.teachers), passes

    def _hits(self, backbone: Any) -> dict[str, Tensor]:
        """By adaptation, inductive unless said: float64 (shots, episodes)."""
        found = {}
        for name in self.adaptations:
            if name == "finetune":
                if isinstance(backbone, Backbone):
                    few = self.evaluation.model_copy(update={"episodes": self.finetuned_episodes})
                    for mode in ("running", "batch"):
                        key = "finetune" if mode == "running" else "finetune_transductive"
                        found[key] = finetuned_hits(backbone, self.dataset, few, batch_norm=mode, device=self.device)
                continue
            found[name] = hits(backbone, self.dataset, self.evaluation, name, self.device)
            if isinstance(backbone, Backbone) and len(self.adaptations) > 1:
                found[f"{name}_transductive"] = hits(
                    backbone,
                    self.dataset,
                    self.evaluation,
                    name,
                    self.device,
                    batch_norm="batch",
                )
        return found

    def _accuracy(self, backbone: Any, random: dict[str, Tensor]) -> Run:
        found = self._hits(backbone)
        shots = [f"{number}shot" for number in self.evaluation.shots]
        row: Run = {}
        for name, right in found.items():
            half = 1.96 * right.std(1, correction=0) / right.shape[1] ** 0.5
            gain, gain_half = difference(right, random[name])
            told = {
                shot: {
                    "accuracy": right.mean(1)[k].item(), "half": half[k].item(),
                    "gain": gain[k].item(), "gain_half": gain_half[k].item(),
                }
                for k, shot in enumerate(shots)
            }  # fmt: skip
            row[name] = told
        return row


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
        str, typer.Option(help="Network of the meta-model; rows of another than conv4 bear its name.")
    ] = "conv4",
    keep: Annotated[bool, typer.Option(help="Keep rows of the results file that this run does not measure.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train every method at every budget and seed, and test all on the same 600 episodes."""
    if unknown := set(adaptations.split(",")).difference(ADAPTATIONS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(ADAPTATIONS)}")
    asked = {"logistic", *adaptations.split(",")}
    torch.set_num_threads(threads)
    data = os.environ.get("METAZOO_DATA")
    manifest = Manifest.model_validate_json((teachers / "manifest.json").read_bytes())
    entries = manifest.teachers[:teachers_used]
    bench = Bench(
        teachers=[load_teacher(manifest, entry, teachers / entry.file) for entry in entries],
        stated=[entry.held_out_accuracy or 0.0 for entry in entries],
        dataset=open_dataset(dataset, Path(data) if data else None),
        evaluation=Evaluation(dataset=dataset, split=split),
        config=BackboneConfig.model_validate({"backbone": student}),
        device=device,
        options=json.loads(options),
        adaptations=tuple(name for name in ADAPTATIONS if name in asked),
        finetuned_episodes=finetuned_episodes,
    )
    console = Console()
    random = bench.untrained()
    deadline = time.monotonic() + 60 * minutes
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["methods"] if keep else {}
    for policy in answers.split(","):
        told_of = replace(bench, teachers=degraded(bench.teachers, policy))
        for method in methods.split(","):
            unusual = [said for said, usual in ((policy, "probabilities"), (student, "conv4")) if said != usual]
            name = ", ".join((method, *unusual))
            row = rows.setdefault(name, {})
            asks = method in (*METHODS, UNLABELLED, ONE_API) and method not in WHITE_BOX
            for budget in map(int, budgets.split(",")) if asks else [None]:
                runs = []
                for seed in range(seeds if method in METHODS or asks else 1):
                    if time.monotonic() > deadline:
                        break
                    runs.append(told_of.run(method, budget, seed, random))
                    told = {shot: round(one["accuracy"], 1) for shot, one in runs[-1]["logistic"].items()}
                    console.print(f"{name} {budget} seed {seed}: {told} {runs[-1]['seconds']:.0f} s", soft_wrap=True)
                if runs:
                    row[_budget_name(method, budget)] = _summary(runs)
                row.setdefault(_budget_name(method, budget), "not_run")
                result = _result(bench, rows, random, f"{manifest.backbone}-{manifest.width} on {manifest.dataset}")
                RESULTS.write_text(json.dumps(result, indent=1) + "\n")  # what was measured outlives what interrupts
    plot(result, PLOT)
    console.print(table(result))
    typer.echo(json.dumps(result))


def _result(bench: Bench, rows: dict[str, Any], random: dict[str, Tensor], teachers: str) -> dict[str, Any]:
    shots = [f"{number}shot" for number in bench.evaluation.shots]
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {
        "methods": {name: dict(sorted(row.items(), key=_by_budget)) for name, row in rows.items()},
        "random": dict(zip(shots, random["logistic"].mean(1).tolist(), strict=True)),
        "bounds": [name for name in rows if name in BOUNDS],
        "device": bench.device if bench.device != "cpu" else machine,
        "teachers": f"{len(bench.teachers)} {teachers}",
        "dataset": f"{bench.evaluation.dataset} {bench.evaluation.split}",
    }


def _by_budget(row: tuple[str, Any]) -> int:
    return int(row[0]) if row[0].isdigit() else 0


def _budget_name(method: str, budget: int | None) -> str:
    if budget is not None:
        return str(budget)
    return "bound" if method in BOUNDS else "white-box"


def _summary(runs: list[Run]) -> dict[str, Any]:
    """Mean over seeds. `interval`: the 95 % half-width over episodes of one run; `seed_std`: the spread over seeds.

    `over_random`: points over the untrained network, paired, with their half-width. `adaptations`: the same accuracies under
    every other adaptation that was asked for.
    """
    shots = list(runs[0]["logistic"])

    def mean(name: str, shot: str, what: str) -> float:
        return round(fmean(run[name][shot][what] for run in runs), 2)

    others = [name for name in runs[0] if name not in ("logistic", "queries", "teacher_passes", "seconds")]
    spread = {shot: [run["logistic"][shot]["accuracy"] for run in runs] for shot in shots}
    return {
        **{shot: mean("logistic", shot, "accuracy") for shot in shots},
        "interval": {shot: mean("logistic", shot, "half") for shot in shots},
        "over_random": {shot: [mean("logistic", shot, "gain"), mean("logistic", shot, "gain_half")] for shot in shots},
        "seed_std": {shot: round(stdev(spread[shot]), 2) if len(runs) > 1 else None for shot in shots},
        "adaptations": {
            name: {
                shot: [mean(name, shot, what) for what in ("accuracy", "half", "gain", "gain_half")] for shot in shots
            }
            for name in others
        },
        "seeds": len(runs),
        "queries": int(runs[0]["queries"]),
        "teacher_passes": int(runs[0]["teacher_passes"]),
        "seconds": round(fmean(run["seconds"] for run in runs), 1),
    }


if __name__ == "__main__":
    typer.run(main)
