"""`metazoo models`: the meta-models of a running server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metazoo.commands import registry
from metazoo.commands.registry import ModelId
from metazoo.connection import USAGE, AsJson, Server, connected, fail, takes_server
from metazoo.latest import named

if TYPE_CHECKING:
    from contracts.adaptation import PredictResponse
    from contracts.meta_models import MetaModel

IMAGES = {".png", ".jpg", ".jpeg", ".webp"}

app = typer.Typer(no_args_is_help=True, help="Meta-models: find, download, let them learn a new task.")
for _command in (registry.edit, registry.delete, registry.restore, registry.compare, registry.export):
    app.command(_command.__name__)(_command)

Support = Annotated[Path, typer.Option(help="A folder of labelled images: FOLDER/LABEL/image.png.")]
Method = Annotated[str, typer.Option(help="logistic, prototypes or fine-tune.")]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Calibrate the features by ICFIL first.")]
Steps = Annotated[int | None, typer.Option(help="Steps of fine-tuning.")]


@app.command("list")
@takes_server
def list_models(
    server: Server,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most meta-models.")] = 20,
    after: Annotated[str | None, typer.Option(help="From the one after this: `next` of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Meta-models, newest first."""
    with connected(server) as metazoo:
        page = metazoo.meta_models.list(after=after, limit=limit)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("meta-model", no_wrap=True), "name", "method", "network", "created", "images", "accuracy", box=None
    )
    for model in page.items:
        network = f"{model.backbone.backbone}-{model.backbone.width}"
        created = f"{model.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(model.id, model.name, model.method, network, created, str(model.queries), _accuracy(model))
    Console().print(table)
    if page.next is not None:
        typer.echo(f"more: metazoo models list --after {page.next}")


@app.command()
@takes_server
def show(
    server: Server,
    model_id: ModelId,
    as_json: AsJson = False,
) -> None:
    """What is known of a meta-model."""
    with connected(server) as metazoo:
        model = metazoo.meta_models.retrieve(named(metazoo.meta_models, model_id))
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
@takes_server
def download(
    server: Server,
    model_id: ModelId,
    folder: Annotated[Path, typer.Argument(help="Where to put its files; made if need be.")],
    as_json: AsJson = False,
) -> None:
    """Download a meta-model; each file is checked by its SHA-256."""
    with connected(server) as metazoo:
        try:
            model_id = named(metazoo.meta_models, model_id)
            metazoo.meta_models.download(model_id, folder)
        except OSError as error:
            fail(f"{error.filename or folder}: {error.strerror}", USAGE)
    if as_json:
        import json

        typer.echo(json.dumps({"meta_model": model_id, "folder": str(folder.absolute())}))
    else:
        typer.echo(str(folder))


@app.command()
@takes_server
def predict(
    server: Server,
    model_id: ModelId,
    query: Annotated[list[Path], typer.Argument(help="Images to label, or folders of them.")],
    support: Support,
    method: Method = "logistic",
    calibrate: Calibrate = False,
    steps: Steps = None,
    as_json: AsJson = False,
) -> None:
    """Learn a task from a few labelled images and label others."""
    labelled, asked = labelled_images(support), images_of(query)
    with connected(server) as metazoo:
        answer = metazoo.meta_models.predict(
            named(metazoo.meta_models, model_id), support=labelled, query=asked, **_options(method, calibrate, steps)
        )
    show_predictions(asked, answer, as_json=as_json)


@app.command()
@takes_server
def adapt(
    server: Server,
    model_id: ModelId,
    support: Support,
    method: Method = "logistic",
    calibrate: Calibrate = False,
    steps: Steps = None,
    name: Annotated[str | None, typer.Option(help="To find it by.")] = None,
    ttl: Annotated[int | None, typer.Option(help="Seconds for which it is served. Default: a day.")] = None,
    keep_support: Annotated[bool, typer.Option(help="Keep the labelled images beside it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn a task from a few labelled images, and serve what was learned as an API for a while."""
    options = _options(method, calibrate, steps) | {"keep_support": keep_support}
    options |= {key: value for key, value in {"name": name, "ttl": ttl}.items() if value is not None}
    labelled = labelled_images(support)
    with connected(server) as metazoo:
        model = metazoo.meta_models.adapt(named(metazoo.meta_models, model_id), support=labelled, **options)
    typer.echo(model.model_dump_json() if as_json else model.id)


def _options(method: str, calibrate: bool, steps: int | None) -> Any:
    """As the server takes them: it knows which methods there are."""
    return {"method": method} | ({"calibration": {}} if calibrate else {}) | ({} if steps is None else {"steps": steps})


def labelled_images(support: Path) -> list[tuple[Path, str]]:
    """The images in a folder of folders, each with the name of its folder."""
    labelled = [(image, image.parent.name) for image in _images(support, deep=True)]
    if not labelled:
        fail(f"{support} holds no images: put them in {support}/LABEL/image.png", USAGE)
    return labelled


def images_of(paths: list[Path]) -> list[Path]:
    """The images named, and those in the folders named."""
    asked = [image for path in paths for image in (_images(path) if path.is_dir() else [path])]
    if not asked:
        fail(f"{', '.join(map(str, paths))}: no images to label (PNG, JPEG or WebP)", USAGE)
    return asked


def show_predictions(images: list[Path], answer: "PredictResponse", *, as_json: bool) -> None:
    """A line an image: path, label, probability."""
    rows = list(zip(images, answer.predictions, strict=True))
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
