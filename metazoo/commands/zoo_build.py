"""`metazoo zoo build`: train teachers into a zoo folder."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from metazoo.connection import fail

if TYPE_CHECKING:
    from api_zoo.scenarios import Architecture, Width
    from contracts.zoo import TeacherEntry

BAD_ZOO = 1  # the folder cannot be built


class ScenarioName(StrEnum):
    """How teachers differ."""

    SS = "ss"
    SH = "sh"
    MH = "mh"


class ArchitectureName(StrEnum):
    """What teachers are."""

    CONV4 = "conv4"
    RESNET10 = "resnet10"
    RESNET18 = "resnet18"


class Split(StrEnum):
    """Classes that no two splits share."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Device(StrEnum):
    """Where teachers are trained."""

    CPU = "cpu"
    CUDA = "cuda"


def build(
    out: Annotated[Path, typer.Option(help="The zoo folder to make, or to go on with.")],
    scenario: Annotated[
        ScenarioName,
        typer.Option(help="ss: one data set, one architecture; sh: several architectures; mh: several data sets too."),
    ] = ScenarioName.SS,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="As `metazoo data list` names it; repeatable. Default: glyphs.", show_default=False),
    ] = None,
    architecture: Annotated[
        list[ArchitectureName] | None,
        typer.Option(help="Repeatable. Default: conv4 for ss, all three for sh and mh.", show_default=False),
    ] = None,
    teachers: Annotated[int, typer.Option(min=1, max=10_000, help="How many to train.")] = 12,
    ways: Annotated[
        list[int] | None,
        typer.Option(
            min=2,
            help="Classes of each, drawn at random; repeatable. Default: 5; for mh 3, 5 and 8.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=16,
            max=512,
            help="Pixels a side of the images that it takes; repeatable. Default: the data set's.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the first block: 16, 32 or 64.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="The same seed gives the same zoo.")] = 0,
    split: Annotated[Split, typer.Option(help="Of the data set.")] = Split.TRAIN,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Default: enough for small images, 10 or more.", show_default=False),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many epochs without a better one. Default: never.", show_default=False),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Teachers trained at once. Default: one a core, one on a GPU.", show_default=False),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.CPU,
    compiled: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
) -> None:
    """Train teachers into a zoo folder. The same command goes on with an interrupted build and leaves a complete one."""
    from concurrent.futures.process import BrokenProcessPool

    from api_zoo.build import build as make
    from api_zoo.folder import BadZoo
    from api_zoo.scenarios import plan_for
    from dfml.datasets import DatasetMissing

    if width not in (16, 32, 64):
        raise typer.BadParameter("give 16, 32 or 64", param_hint="--width")
    data = os.environ.get("METAZOO_DATA")
    again = "what is done is kept: run the same command again to go on"
    try:
        plan = plan_for(
            scenario.value,
            dataset or (),
            architectures=cast("list[Architecture]", [each.value for each in architecture or ()]),
            ways=ways or (),
            sides=size or (),
            split=split.value,
            teachers=teachers,
            width=cast("Width", width),
            seed=seed,
            epochs=epochs,
            patience=patience,
        )
        with _progress(teachers) as on_teacher:
            manifest = make(
                plan,
                out.absolute(),
                Path(data) if data else None,
                processes=processes or (1 if device is Device.CUDA else os.cpu_count() or 1),
                on_teacher=on_teacher,
                device=device.value,
                compiled=compiled,
            )
    except (BadZoo, DatasetMissing, ValueError) as error:
        fail(str(error), BAD_ZOO)
    except BrokenProcessPool:
        fail(f"a training process was killed, perhaps for want of memory; {again}", BAD_ZOO)
    except KeyboardInterrupt:
        fail(f"stopped; {again}", 130)
    of = ", ".join(plan.datasets)
    typer.echo(f"{out}: {len(manifest.teachers)} teachers of {of}. Next: metazoo zoo serve {out}")


@contextmanager
def _progress(teachers: int) -> Iterator[Any]:
    """A bar in a terminal, a line a teacher elsewhere."""

    def told(done: int, entry: "TeacherEntry") -> str:
        network = f"  {entry.network.backbone} on {entry.dataset}" if entry.network else ""
        return (
            f"teacher {done}/{teachers}  {entry.file}{network}  {entry.held_out_accuracy or 0:.1%} on held-out images"
        )

    if not sys.stderr.isatty():
        yield lambda done, _, entry: typer.echo(told(done, entry), err=True)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=teachers)
        yield lambda done, _, entry: progress.update(task, completed=done)
