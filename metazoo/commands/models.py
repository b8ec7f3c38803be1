"""`metazoo models`: the meta-models of a running server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metazoo.connection import USAGE, ApiKeyEnv, AsJson, ReadyFile, Url, connected, fail

if TYPE_CHECKING:
    from contracts.meta_models import MetaModel

IMAGES = {".png", ".jpg", ".jpeg", ".webp"}

app = typer.Typer(no_args_is_help=True, help="Meta-models: find, download, let them learn a new task.")

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="The meta-model's id.")]


@app.command("list")
def list_models(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most meta-models.")] = 20,
    after: Annotated[str | None, typer.Option(help="From the one after this: `next` of the page before.")] = None,
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    ready_file: ReadyFile = None,
    as_json: AsJson = False,
) -> None:
    """Meta-models, newest first."""
    with connected(url, api_key_env, ready_file) as metazoo:
        page = metazoo.meta_models.list(after=after, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("meta-model", "name", "method", "network", "created", "images", "accuracy", box=None)
    for model in page.items:
        network = f"{model.backbone.backbone}-{model.backbone.width}"
        created = f"{model.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(model.id, model.name, model.method, network, created, str(model.queries), _accuracy(model))
    Console().print(table)
    if page.next is not None:
        typer.echo(f"more: metazoo models list --after {page.next}")


@app.command()
def show(
    model_id: ModelId,
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    ready_file: ReadyFile = None,
    as_json: AsJson = False,
) -> None:
    """What is known of a meta-model."""
    with connected(url, api_key_env, ready_file) as metazoo:
        model = metazoo.meta_models.retrieve(model_id)
    if as_json:
        typer.echo(model.model_dump_json())
        return
    size = "x".join(map(str, model.input_shape))
    rows = {
        "name": model.name,
        "created": f"{model.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "job": model.job,
        "network": f"{model.backbone.backbone}-{model.backbone.width}, images of {size}",
        "method": f"{model.method}, seed {model.seed}, version {model.version}",
        "paid": f"{model.queries} images, {len(model.apis)} APIs",
        "accuracy": _accuracy(model) or "not evaluated",
        "files": ", ".join(sorted(model.files)),
    }
    typer.echo("\n".join([model.id, *(f"  {name:<9} {value}" for name, value in rows.items())]))


@app.command()
def download(
    model_id: ModelId,
    folder: Annotated[Path, typer.Argument(help="Where to put its files; made if need be.")],
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    ready_file: ReadyFile = None,
    as_json: AsJson = False,
) -> None:
    """Download a meta-model; each file is checked by its SHA-256."""
    with connected(url, api_key_env, ready_file) as metazoo:
        try:
            metazoo.meta_models.download(model_id, folder)
        except OSError as error:
            fail(f"{error.filename or folder}: {error.strerror}", USAGE)
    if as_json:
        import json

        typer.echo(json.dumps({"meta_model": model_id, "folder": str(folder.absolute())}))
    else:
        typer.echo(str(folder))


@app.command()
def predict(
    model_id: ModelId,
    query: Annotated[list[Path], typer.Argument(help="Images to label, or folders of them.")],
    support: Annotated[Path, typer.Option(help="A folder of labelled images: FOLDER/LABEL/image.png.")],
    method: Annotated[str, typer.Option(help="logistic, prototypes or fine-tune.")] = "logistic",
    url: Url = None,
    api_key_env: ApiKeyEnv = None,
    ready_file: ReadyFile = None,
    as_json: AsJson = False,
) -> None:
    """Learn a task from a few labelled images and label others."""
    labelled = [(image, image.parent.name) for image in _images(support, deep=True)]
    asked = [image for path in query for image in (_images(path) if path.is_dir() else [path])]
    if not labelled:
        fail(f"{support} holds no images: put them in {support}/LABEL/image.png", USAGE)
    if not asked:
        fail(f"{', '.join(map(str, query))}: no images to label (PNG, JPEG or WebP)", USAGE)
    with connected(url, api_key_env, ready_file) as metazoo:
        # what the server knows is which methods there are
        answer = metazoo.meta_models.predict(model_id, support=labelled, query=asked, method=method)  # type: ignore[arg-type]
    rows = list(zip(asked, answer.predictions, strict=True))
    if as_json:
        import json

        listed = [{"image": str(image), **prediction.model_dump()} for image, prediction in rows]
        typer.echo(json.dumps({"predictions": listed}))
        return
    for image, prediction in rows:
        typer.echo(f"{image}\t{prediction.label}\t{prediction.probabilities[prediction.label]:.1%}")


def _images(folder: Path, *, deep: bool = False) -> list[Path]:
    """Image files in `folder`, or with `deep` in the folders in it; sorted."""
    return sorted(path for path in folder.glob("*/*" if deep else "*") if path.suffix.lower() in IMAGES)


def _accuracy(model: "MetaModel") -> str:
    if model.score is None:
        return ""
    accuracies = model.score.accuracy.items()
    return ", ".join(f"{shots}-shot {value:.1f} ± {model.score.interval[shots]:.1f} %" for shots, value in accuracies)
