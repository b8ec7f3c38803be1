"""A method trained once or over seeds and tested on fixed few-shot episodes: what benchmarks of accuracy share."""

import os
import platform
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.zoo import Manifest
from dfml.datasets import Dataset, open_dataset
from dfml.evaluate import difference, hits
from dfml.finetuning import finetuned_hits
from dfml.methods import METHODS, baselines
from dfml.nets import Backbone
from dfml.procedural import query_set
from dfml.teachers import ModuleTeacher, load_teacher

UNLABELLED = "pqd_unlabelled"
"""pqd that asks about real images of the teachers' data set, without their labels: what better query images could give."""
ONE_API = "single_teacher"
"""Spends the whole budget on one API: that of the place that the seed names."""
BASELINES = ("best_single", "weight_average", "ota", "dro", ONE_API)
BOUNDS = ("outputs_as_features", "real_data", UNLABELLED)
"""No rivals: the first asks every API about every image for ever, the others have seen real images."""
Adaptation = Literal["logistic", "prototypes", "finetune"]
ADAPTATIONS: tuple[Adaptation, ...] = get_args(Adaptation)
_FIELDS = BackboneConfig.model_fields
NETWORKS = {
    backbone if width == _FIELDS["width"].default else f"{backbone}-{width}": BackboneConfig(
        backbone=backbone, width=width
    )
    for backbone in get_args(_FIELDS["backbone"].annotation)
    for width in get_args(_FIELDS["width"].annotation)
}
"""All that a meta-model may be: `resnet10`, or `resnet10-64` where its width is not the usual one."""
Run = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every run shares. `name`: what the teachers are; `stated`: held-out accuracy of each, as its host states it."""

    teachers: Sequence[ModuleTeacher]
    stated: list[float]
    dataset: Dataset
    evaluation: Evaluation
    config: BackboneConfig
    device: str
    options: dict[str, dict[str, Any]]
    adaptations: tuple[Adaptation, ...]
    finetuned_episodes: int
    name: str

    @classmethod
    def opened(
        cls,
        folder: Path,
        *,
        dataset: str,
        split: str,
        options: dict[str, dict[str, Any]] | None = None,
        adaptations: Collection[str] = (),
        finetuned_episodes: int = 60,
        teachers_used: int | None = None,
        student: str = "conv4",
        device: str = "cpu",
    ) -> Self:
        """Of the zoo's first `teachers_used` teachers, all by default; the data set is at `METAZOO_DATA`."""
        data = os.environ.get("METAZOO_DATA")
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        entries = manifest.teachers[:teachers_used]
        return cls(
            teachers=[load_teacher(manifest, entry, folder / entry.file) for entry in entries],
            stated=[entry.held_out_accuracy or 0.0 for entry in entries],
            dataset=open_dataset(dataset, Path(data) if data else None),
            evaluation=Evaluation(dataset=dataset, split=split),
            config=NETWORKS[student],
            device=device,
            options=options or {},
            adaptations=tuple(name for name in ADAPTATIONS if name in {"logistic", *adaptations}),
            finetuned_episodes=finetuned_episodes,
            name=f"{len(entries)} {manifest.backbone}-{manifest.width} on {manifest.dataset}",
        )

    def asks(self, method: str) -> bool:
        """Whether it is run at budgets; FREE and PURER are where their `gradients` are not those of the weights."""
        if method not in METHODS:
            return method in (UNLABELLED, ONE_API)
        gradients = getattr(METHODS[method].options(**self.options.get(method, {})), "gradients", None)
        return gradients is None or gradients.source != "weights"

    def run(self, method: str, queries: int | None, seed: int, random: dict[str, Tensor]) -> Run:
        """Train once; accuracies in percent, queries and passes as the teachers counted them. `queries` None: white-box."""
        before, began = self._spent(), time.monotonic()
        backbone = self._trained(method, queries, seed)
        seconds = time.monotonic() - began
        queries_now, passes_now = self._spent()
        spent = {"queries": queries_now - before[0], "teacher_passes": passes_now - before[1]}
        return {**self._accuracy(backbone, random), **spent, "seconds": seconds}

    @property
    def machine(self) -> str:
        """What it runs on, for people."""
        cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
        return cpu if self.device == "cpu" else self.device

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
        one = self.teachers[seed % len(self.teachers)]
        pool = query_set({"objects": 1.0}, seed=seed, size=one.input_shape[1:])

        def single() -> Backbone:
            images = torch.from_numpy(pool.images(range(queries or 0)))
            return baselines.single_teacher(one, self.config, images=images, seed=seed, device=self.device).backbone

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


def summary(runs: list[Run]) -> dict[str, Any]:
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
