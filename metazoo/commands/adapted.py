"""`metazoo adapted`: the adapted models of a running server; `metazoo models adapt` makes them."""

from pathlib import Path
from typing import Annotated

import typer

from metazoo.commands.models import images_of, show_predictions
from metazoo.connection import USAGE, AsJson, Server, connected, fail, takes_server
from metazoo.latest import named

app = typer.Typer(
    no_args_is_help=True, help="Adapted models: list, ask, download, end. `metazoo models adapt` makes them."
)

AdaptedId = Annotated[str, typer.Argument(metavar="ADAPTED", help="The adapted model's id, or `latest`.")]


@app.command("list")
@takes_server
def list_adapted(
    server: Server,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most adapted models.")] = 20,
    after: Annotated[str | None, typer.Option(help="From the one after this: `next` of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Those served now, newest first."""
    with connected(server) as metazoo:
        page = metazoo.adapted_models.list(after=after, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("adapted model", "name", "method", "classes", "ends", "answered", box=None)
    for model in page.items:
        method = model.method + (", calibrated" if model.calibrated else "")
        ends = f"{model.expires_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(model.id, model.name or "", method, str(len(model.labels)), ends, str(model.answered))
    Console().print(table)
    if page.next is not None:
        typer.echo(f"more: metazoo adapted list --after {page.next}")


@app.command()
@takes_server
def show(
    server: Server,
    adapted_id: AdaptedId,
    as_json: AsJson = False,
) -> None:
    """What is known of one."""
    with connected(server) as metazoo:
        model = metazoo.adapted_models.retrieve(named(metazoo.adapted_models, adapted_id))
    if as_json:
        typer.echo(model.model_dump_json())
        return
    rows = {
        "name": model.name or "",
        "from": model.meta_model,
        "method": model.method + (", calibrated" if model.calibrated else ""),
        "learned": ", ".join(f"{label} ({count})" for label, count in model.shots.items()),
        "asked at": model.path,
        "ends": f"{model.expires_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "answered": f"{model.answered} images",
    }
    typer.echo("\n".join([model.id, *(f"  {name:<9} {value}" for name, value in rows.items())]))


@app.command()
@takes_server
def predict(
    server: Server,
    adapted_id: AdaptedId,
    query: Annotated[list[Path], typer.Argument(help="Images to label, or folders of them.")],
    as_json: AsJson = False,
) -> None:
    """Label images."""
    asked = images_of(query)
    with connected(server) as metazoo:
        answer = metazoo.adapted_models.predict(named(metazoo.adapted_models, adapted_id), asked)
    show_predictions(asked, answer, as_json=as_json)


@app.command()
@takes_server
def download(
    server: Server,
    adapted_id: AdaptedId,
    folder: Annotated[Path, typer.Argument(help="Where to put its files; made if need be.")],
) -> None:
    """Download its files; each is checked by its SHA-256."""
    with connected(server) as metazoo:
        try:
            metazoo.adapted_models.download(named(metazoo.adapted_models, adapted_id), folder)
        except OSError as error:
            fail(f"{error.filename or folder}: {error.strerror}", USAGE)
    typer.echo(str(folder))


@app.command()
@takes_server
def export(
    server: Server,
    adapted_id: AdaptedId,
    file: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
) -> None:
    """Write one as ONNX, network and head in one file. Needs torch and onnx on this machine."""
    with connected(server) as metazoo:
        try:
            metazoo.adapted_models.load(named(metazoo.adapted_models, adapted_id)).export_onnx(file)
        except OSError as error:
            fail(f"{error.filename or file}: {error.strerror}", USAGE)
    typer.echo(str(file))


@app.command()
@takes_server
def delete(
    server: Server,
    adapted_id: AdaptedId,
) -> None:
    """End one now."""
    with connected(server) as metazoo:
        adapted_id = named(metazoo.adapted_models, adapted_id)
        metazoo.adapted_models.delete(adapted_id)
    typer.echo(f"{adapted_id} ended")
