"""`metazoo data`: which data sets there are, which are here, and how to get the others."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metazoo.connection import USAGE, AsJson, fail

if TYPE_CHECKING:
    from dfml.datasets import Dataset

app = typer.Typer(no_args_is_help=True, help="Data sets that teachers are trained on and meta-models measured on.")

NOT_HERE = 1  # missing, incomplete or not fetched
SHOWN = 5  # faults of a split

NameOf = Annotated[str, typer.Argument(metavar="NAME", help="As `metazoo data list` names it.")]


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """Every data set: whether it is here, its classes, where it comes from."""
    from dfml.datasets import SOURCES, names_under

    root = _root()
    rows = [_state(name, root) for name in names_under(root)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("data set", "pixels", "train", "val", "test", "", box=None)
    for row in rows:
        counts = [str(number) for number in row["classes"].values()] or ["-"] * 3
        about = SOURCES[row["name"]].about if row["name"] in SOURCES else "a folder of images"
        table.add_row(row["name"], str(row["side"]), *counts, about)
    Console().print(table)
    if missing := [row["name"] for row in rows if not row["here"]]:
        where = root or "METAZOO_DATA, which is not set"
        typer.echo(f"not in {where}: {', '.join(missing)}. How to get one: metazoo data check NAME")


@app.command()
def check(name: NameOf, as_json: AsJson = False) -> None:
    """Look whether a data set is whole: every class has images, and one of each class can be read. Exit code 1 if not."""
    from dfml.datasets import SPLITS

    dataset = _open(name)
    found = {split: _looked_at(dataset, split) for split in SPLITS}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for split, state in found.items():
            typer.echo(f"{split:6} {state['classes']} classes, {state['images_a_class']} images of each")
            for fault in state["faults"][:SHOWN]:
                typer.echo(f"       {fault}")
            if len(state["faults"]) > SHOWN:
                typer.echo(f"       and {len(state['faults']) - SHOWN} more")
    if any(state["faults"] for state in found.values()):
        raise typer.Exit(NOT_HERE)


@app.command()
def path(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the folder of data sets.")] = None,
) -> None:
    """Where the data sets lie, or the folders and files of one."""
    from dfml.datasets.pictured import PictureSet

    if name is None:
        typer.echo(_root() or fail("the environment variable METAZOO_DATA is not set: name the folder there", USAGE))
        return
    dataset = _open(name)
    for place, _ in dataset.files.places if isinstance(dataset, PictureSet) else ():
        typer.echo(place)


@app.command()
def get(name: NameOf) -> None:
    """Download a data set into METAZOO_DATA, where it has a public address; every file is checked against its digest."""
    from dfml.datasets import NAMES, SOURCES
    from metazoo.downloads import NotFetched, fetch

    source = SOURCES.get(name)
    if source is None:
        fail(f"data set {name!r} is unknown: there are {', '.join(NAMES)}", USAGE)
    if not source.downloads:
        fail(f"{name} cannot be downloaded. {source.how}", NOT_HERE)
    root = _root() or fail("the environment variable METAZOO_DATA is not set: name the folder to put it into", USAGE)
    for download in source.downloads:
        try:
            typer.echo(fetch(download, root))
        except NotFetched as error:
            fail(str(error), NOT_HERE)
    typer.echo(f"{name}: {source.about}. Licence: {source.licence}.", err=True)


def _state(name: str, root: Path | None) -> dict[str, Any]:
    """A row of the list; opening a data set reads its index, none of its images."""
    from dfml.datasets import SOURCES, SPLITS, DatasetMissing, open_dataset
    from dfml.datasets.image_folder import SIDE

    source = SOURCES.get(name)
    row: dict[str, Any] = {
        "name": name,
        "side": source.side if source else SIDE,
        "here": True,
        "classes": {},
        "how": None,
    }
    try:
        dataset = open_dataset(name, root)
        row["classes"] = {split: len(dataset.classes(split)) for split in SPLITS}
    except (DatasetMissing, ValueError, OSError) as error:
        row |= {"here": False, "how": source.how if isinstance(error, DatasetMissing) and source else str(error)}
    return row


def _looked_at(dataset: "Dataset", split: str) -> dict[str, Any]:
    from dfml.datasets.pictured import PictureSet

    classes = dataset.classes(split)
    if isinstance(dataset, PictureSet):
        each, faults = dataset.per_class(split), dataset.faults(split)
    else:  # drawn
        each, faults = dataset.images(split).shape[1], []
    return {"classes": len(classes), "images_a_class": each, "faults": faults}


def _open(name: str) -> "Dataset":
    from dfml.datasets import DatasetMissing, open_dataset

    try:
        return open_dataset(name, _root())
    except DatasetMissing as error:
        fail(str(error), NOT_HERE)
    except (ValueError, OSError) as error:
        fail(str(error), USAGE if "unknown" in str(error) else NOT_HERE)


def _root() -> Path | None:
    value = os.environ.get("METAZOO_DATA")
    return Path(value).absolute() if value else None
