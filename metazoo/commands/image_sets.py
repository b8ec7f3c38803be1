"""`metazoo images`: images of one's own that jobs may ask APIs about."""

from pathlib import Path
from typing import Annotated

import typer

from metazoo.connection import AsJson, Server, connected, takes_server
from metazoo.latest import named

app = typer.Typer(no_args_is_help=True, help="Images of one's own that jobs may ask APIs about.")

SetId = Annotated[str, typer.Argument(metavar="SET", help="The image set's id, or `latest`.")]


@app.command()
@takes_server
def upload(
    server: Server,
    images: Annotated[
        Path, typer.Argument(exists=True, help="A folder with PNG, JPEG or WebP files, or a zip of such.")
    ],
    name: Annotated[str | None, typer.Option(help="A name to find it by.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload images, for `metazoo jobs submit --unlabeled SET`. They are sent to the APIs of jobs that name them."""
    with connected(server) as metazoo:
        made = metazoo.image_sets.create(images, name=name or images.resolve().stem)
    typer.echo(made.model_dump_json() if as_json else f"{made.id} {made.images} images")


@app.command("list")
@takes_server
def list_sets(
    server: Server,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most image sets.")] = 20,
    after: Annotated[str | None, typer.Option(help="From the one after this: `next` of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Image sets, newest first."""
    with connected(server) as metazoo:
        page = metazoo.image_sets.list(after=after, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    for one in page.items:
        typer.echo(f"{one.id} {one.images:>6} images  {one.name}")
    if page.next is not None:
        typer.echo(f"more: metazoo images list --after {page.next}")


@app.command()
@takes_server
def delete(
    server: Server,
    image_set: SetId,
) -> None:
    """Delete an image set; jobs that still have to ask about it fail."""
    with connected(server) as metazoo:
        image_set = named(metazoo.image_sets, image_set)
        metazoo.image_sets.delete(image_set)
    typer.echo(f"{image_set} deleted")
