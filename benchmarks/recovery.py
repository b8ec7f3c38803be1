"""FREE's claim: recovering a teacher's task with FIVE, five steps from a meta-generator, against a long inversion of its own.

For each of some teachers, both recover `images` images a class through the same generator; a fresh network learns the teacher's
answers about them, and is tested on real images of the teacher's classes, which is what recovered images are worth.
The meta-generator is trained on the other teachers first; its time is stated apart, and is paid once for any number of tasks.
The curve shows what the long inversion is worth after fewer steps: an earlier moment of the same run. Seconds are the CPU's,
so that other work on the machine does not count.

The last line printed is JSON: {"speedup", "quality": {"five", "per_teacher"}, "interval", …}; qualities are percent right.
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
from torch import Tensor

from benchmarks.rig.worth import worth
from contracts.methods import FreeOptions
from contracts.zoo import Manifest
from dfml.datasets import open_dataset
from dfml.methods import free
from dfml.nets.generator import Generator, build_generator
from dfml.numerics.inversion import Recovered, Terms, invert_generator
from dfml.teachers import ModuleTeacher, load_teacher


def main(
    teachers: Annotated[Path, typer.Option(help="Zoo folder with the teachers.")],
    tried: Annotated[int, typer.Option(min=1, help="Teachers whose tasks are recovered, the first of the folder.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Recoveries of each.")] = 3,
    images: Annotated[int, typer.Option(min=2, help="Images a class.")] = 20,
    steps: Annotated[int, typer.Option(min=6, help="Steps of the long inversion.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs in which the meta-generator is trained.")] = 30,
    student_steps: Annotated[int, typer.Option(min=1, help="Steps in which the fresh network learns.")] = 250,
    width: Annotated[int, typer.Option(help="Channels of the generator; the papers' have 64.")] = 16,
    batch_norm: Annotated[float, typer.Option(help="Weight of the batch-norm statistics.")] = 0.1,
    canvas: Annotated[float, typer.Option(help="Share of an image that is procedural; 0 is as published.")] = 0.5,
    conditional: Annotated[bool, typer.Option(help="Tell the generator the class.")] = False,
    dataset: Annotated[str, typer.Option(help="Data set of the teachers.")] = "cifar-fs",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Time and worth of images recovered in five steps and in many."""
    torch.set_num_threads(threads)
    manifest = Manifest.model_validate_json((teachers / "manifest.json").read_bytes())
    loaded = [load_teacher(manifest, entry, teachers / entry.file) for entry in manifest.teachers]
    data = os.environ.get("METAZOO_DATA")
    source, console = open_dataset(dataset, Path(data) if data else None), Console()
    options = FreeOptions(
        epochs=epochs, warm_up=0, images_per_class=images, shots=1, queries=1, generator_width=width,
        generator_rate=5e-3, latent_rate=5e-2, meta_rate=5e-3, batch_norm=batch_norm,
        canvas=canvas, conditional=conditional,
    )  # fmt: skip
    began = time.process_time()
    canvases = free.first_images(options, loaded[0].input_shape, 0)
    net = _meta_generator(loaded[tried:], options, canvases)
    meta_seconds = time.process_time() - began
    terms = Terms(total_variation=0, batch_norm=batch_norm, length=0)

    def recover(start: Generator, teacher: ModuleTeacher, count: int, seed: int) -> dict[int, tuple[Recovered, float]]:
        """What is recovered after each number of passes that is wanted, and the CPU seconds until then."""
        labels = torch.arange(teacher.ways).repeat(images)
        random, kept = torch.Generator().manual_seed(seed), dict[int, tuple[Recovered, float]]()

        def keep(done: int, best: Recovered) -> None:
            if done in points:
                kept[done] = best, time.process_time() - began

        painted = None if canvases is None else canvases[torch.randperm(len(canvases), generator=random)[: len(labels)]]
        began = time.process_time()
        invert_generator(
            start, teacher, labels, steps=count, generator=random,
            rate=options.generator_rate, latent_rate=options.latent_rate, terms=terms,
            canvas=painted, share=options.canvas, on_pass=keep,
        )  # fmt: skip
        return kept

    points = sorted({point for point in (5, 50) if point < steps} | {steps})
    runs: dict[str, list[tuple[float, float]]] = {"five": [], **{str(point): [] for point in points}}
    for index in range(tried):
        for seed in range(seeds):
            five = recover(net, loaded[index], 5, seed)[5]
            alone = recover(_fresh(loaded, options, seed), loaded[index], steps, seed)
            for name, (found, seconds) in {"five": five, **{str(point): alone[point] for point in points}}.items():
                known = manifest.teachers[index].classes
                value = worth(found.images, loaded[index], source, known, seed=seed, steps=student_steps)
                runs[name].append((value, seconds))
            told = {name: f"{rows[-1][0]:.0f} % in {rows[-1][1]:.2f} s" for name, rows in runs.items()}
            console.print(f"teacher {index}, seed {seed}: {told}", soft_wrap=True)
    what = f"{tried} teachers, {seeds} seeds, {threads} threads, canvas {canvas}, conditional {conditional}"
    typer.echo(json.dumps(_result(runs, steps, meta_seconds, what)))


def _result(runs: dict[str, list[tuple[float, float]]], steps: int, meta_seconds: float, what: str) -> dict[str, Any]:
    def mean(name: str, which: int) -> float:
        return fmean(row[which] for row in runs[name])

    apart = [long[0] - five[0] for long, five in zip(runs[str(steps)], runs["five"], strict=True)]
    gap = {"mean": fmean(apart), "half": 1.96 * stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None}
    return {
        "speedup": round(mean(str(steps), 1) / mean("five", 1), 1),
        "quality": {"five": round(mean("five", 0), 1), "per_teacher": round(mean(str(steps), 0), 1)},
        "interval": {name: round(value, 1) if value is not None else None for name, value in gap.items()},
        "gap_over_2_points": gap["mean"] > 2,  # type: ignore[operator]
        "curve": {name: [round(mean(name, 1), 2), round(mean(name, 0), 1)] for name in runs},
        "meta_generator_seconds": round(meta_seconds, 1),
        "measured": what,
    }


def _fresh(teachers: list[ModuleTeacher], options: FreeOptions, seed: int) -> Generator:
    return build_generator(
        latent=options.latent,
        classes=max(teacher.ways for teacher in teachers) if options.conditional else None,
        shape=teachers[0].input_shape,
        width=options.generator_width,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def _meta_generator(teachers: list[ModuleTeacher], options: FreeOptions, canvases: Tensor | None) -> Generator:
    """FIVE's own training, without the rest of FREE."""
    random = torch.Generator().manual_seed(0)
    net = _fresh(teachers, options, 0)
    meta = torch.optim.Adam(net.parameters(), lr=options.meta_rate)
    for _ in range(options.epochs):
        chosen = torch.randperm(len(teachers), generator=random)[: options.teachers].tolist()
        free.five(
            net, meta, [teachers[index] for index in chosen], options, student=None, generator=random, canvases=canvases
        )
    return net


if __name__ == "__main__":
    typer.run(main)
