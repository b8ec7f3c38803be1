"""What in PURER and FREE moves a meta-model towards the published accuracies: one condition changed at a time.

Both run on the teachers' weights. Every meta-model is tested on the same episodes by a logistic head and by the papers'
adaptation, all weights fine-tuned, each with running (inductive) and with the batch's own statistics (transductive).

Writes `benchmarks/results/ablations.json`; the last line printed is JSON: {"rows": {condition: …}, "random", "device"}.
"""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.rig.few_shot import Bench, Run, summary

RESULTS = Path(__file__).parent / "results" / "ablations.json"


@dataclass(frozen=True)
class Condition:
    """options: over the method's `BASE`; teachers: the first so many alone, None for all."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    teachers: int | None = None


BASE: dict[str, dict[str, Any]] = {
    "purer": {
        "updates": 1400, "teachers": 1, "images_per_class": 8, "shots": 2, "episodes": 1, "learner": "protonet",
        "outer_rate": 5e-3, "adversarial": 0,
    },
    "free": {
        "epochs": 25, "warm_up": 5, "learner": "protonet", "ways": 10, "replay_updates": 20, "replay_tasks": 1,
        "generator_width": 16, "latent": 64, "generator_rate": 5e-3, "latent_rate": 5e-3, "meta_rate": 5e-3,
        "outer_rate": 5e-3,
    },
}  # fmt: skip
"""A minute or two of one core: what the pages of the methods state."""
CONDITIONS = {
    "purer": Condition("purer"),
    "purer, from the average of the weights": Condition("purer", {"start": "average"}),
    "purer, 13 teachers": Condition("purer", teachers=13),
    "purer, a quarter of the updates": Condition("purer", {"updates": 350}),
    "purer, images begin as noise": Condition("purer", {"initial": "noise"}),
    "purer, learner maml": Condition("purer", {"learner": "maml", "inner_rate": 0.05}),
    "purer, harder episodes": Condition("purer", {"adversarial": 10.0, "adversarial_from": 350}),
    "free": Condition("free"),
    "free, the released divergence": Condition("free", {"divergence": "released"}),
    "free, 13 teachers": Condition("free", teachers=13),
    "free, no canvas": Condition("free", {"canvas": 0.0}),
    "free, learner maml": Condition("free", {"learner": "maml", "inner_rate": 0.05}),
    "purer, four times the updates": Condition("purer", {"updates": 5600}),
    "free, four times the epochs": Condition("free", {"epochs": 100}),
}


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers; their weights are used.")],
    dataset: Annotated[str, typer.Option(help="Data set of the episodes.")] = "cifar-fs",
    split: Annotated[str, typer.Option(help="Its split; choices are made on val.")] = "val",
    conditions: Annotated[str, typer.Option(help=f"Beginnings of names: {'; '.join(CONDITIONS)}.")] = "purer;free",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, seeded 0, 1, …")] = 3,
    finetuned_episodes: Annotated[int, typer.Option(min=1, help="Episodes that fine-tuning is tried on.")] = 60,
    minutes: Annotated[float, typer.Option(help="No new run begins after this; its row says not_run.")] = 120,
    keep: Annotated[bool, typer.Option(help="Keep rows of the results file that this run does not measure.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train under every condition and seed, and test all on the same episodes."""
    chosen = {name: one for name, one in CONDITIONS.items() if name.startswith(tuple(conditions.split(";")))}
    if not chosen:
        raise typer.BadParameter(f"{conditions}: begins none of {'; '.join(CONDITIONS)}")
    torch.set_num_threads(threads)
    bench = Bench.opened(
        teachers,
        dataset=dataset,
        split=split,
        adaptations=("logistic", "finetune"),
        finetuned_episodes=finetuned_episodes,
        device=device,
    )
    console, random = Console(), bench.untrained()
    shots = [f"{number}shot" for number in bench.evaluation.shots]
    result: dict[str, Any] = {
        "rows": json.loads(RESULTS.read_text())["rows"] if keep else {},
        "random": {name: dict(zip(shots, hits.mean(1).tolist(), strict=True)) for name, hits in random.items()},
        "device": bench.machine,
        "teachers": bench.name,
        "dataset": f"{dataset} {split}",
        "finetuned_episodes": finetuned_episodes,
    }
    deadline = time.monotonic() + 60 * minutes
    for name, condition in chosen.items():
        changed = replace(
            bench,
            teachers=bench.teachers[: condition.teachers],
            options={condition.method: BASE[condition.method] | condition.options},
        )
        runs: list[Run] = []
        for seed in range(seeds):
            if time.monotonic() > deadline:
                break
            runs.append(changed.run(condition.method, None, seed, random))
            console.print(f"{name}, seed {seed}: {_told(runs[-1])}", soft_wrap=True)
        result["rows"][name] = summary(runs) if runs else "not_run"
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(json.dumps(result))


def _told(run: Run) -> str:
    """Each adaptation's accuracies, 1 shot / 5 shots, and the seconds of training."""
    parts = []
    for name, found in run.items():
        if isinstance(found, dict):
            parts.append(name + " / ".join(f" {shot['accuracy']:.1f}" for shot in found.values()))
    return f"{', '.join(parts)}; {run['seconds']:.0f} s"


if __name__ == "__main__":
    typer.run(main)
