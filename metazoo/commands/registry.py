"""`metazoo models edit|delete|restore|compare|export`: what is done with meta-models beside using them."""

from pathlib import Path
from typing import Annotated

import typer

from metazoo.connection import USAGE, AsJson, Server, connected, fail, takes_server
from metazoo.latest import named

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="The meta-model's id, or `latest`.")]


@takes_server
def edit(
    server: Server,
    model_id: ModelId,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="A tag; all of its tags from now on. Repeat for several.")
    ] = None,
    notes: Annotated[str | None, typer.Option(help="Its notes from now on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change the name, tags or notes of a meta-model; what is not given stays."""
    with connected(server) as metazoo:
        model = metazoo.meta_models.edit(named(metazoo.meta_models, model_id), name=name, tags=tag, notes=notes)
    typer.echo(model.model_dump_json() if as_json else f"{model.id} {model.name} {' '.join(model.tags)}".rstrip())


@takes_server
def delete(
    server: Server,
    model_id: ModelId,
) -> None:
    """Delete a meta-model; `restore` brings it back."""
    with connected(server) as metazoo:
        model_id = named(metazoo.meta_models, model_id)
        metazoo.meta_models.delete(model_id)
    typer.echo(f"{model_id} deleted; metazoo models restore {model_id} brings it back")


@takes_server
def restore(
    server: Server,
    model_id: Annotated[str, typer.Argument(metavar="MODEL", help="The meta-model's id.")],
) -> None:
    """Bring a deleted meta-model back."""
    with connected(server) as metazoo:
        metazoo.meta_models.restore(model_id)
    typer.echo(f"{model_id} restored")


@takes_server
def export(
    server: Server,
    model_id: ModelId,
    file: Annotated[Path, typer.Argument(help="The zip to write.")],
) -> None:
    """Download a meta-model as one zip; `download` puts its files into a folder."""
    with connected(server) as metazoo:
        try:
            metazoo.meta_models.archive(named(metazoo.meta_models, model_id), file)
        except OSError as error:
            fail(f"{error.filename or file}: {error.strerror}", USAGE)
    typer.echo(str(file))


@takes_server
def compare(
    server: Server,
    first: Annotated[str, typer.Argument(help="A meta-model's id, or `latest`.")],
    second: Annotated[str, typer.Argument(help="Another one's.")],
    dataset: Annotated[str, typer.Option(help="A data set that the server has.")] = "glyphs",
    split: Annotated[str, typer.Option(help="Which of its classes: train, val or test.")] = "val",
    shots: Annotated[list[int] | None, typer.Option(help="Labelled images a class. Default: 1 and 5.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="How many tasks the mean is taken over.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Measure two meta-models on the same episodes; the difference has a paired interval."""
    evaluation = {"dataset": dataset, "split": split, "episodes": episodes, "shots": shots or [1, 5]}
    with connected(server) as metazoo:
        told = metazoo.meta_models.compare(named(metazoo.meta_models, first), second, evaluation=evaluation)
    if as_json:
        typer.echo(told.model_dump_json())
        return
    for shot in told.difference.accuracy:
        one, other, between = (
            f"{score.accuracy[shot]:.2f} ± {score.interval[shot]:.2f}"
            for score in (told.first, told.second, told.difference)
        )
        typer.echo(f"{shot}-shot  first {one} %  second {other} %  second - first {between} points")
