"""`metazoo zoo models|predict|usage`: a zoo as those see it who have a key of it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from metazoo.commands.models import images_of, show_predictions
from metazoo.connection import AsJson, secret_from, told

ZooUrl = Annotated[str | None, typer.Option("--url", help="The zoo. Default: METAZOO_ZOO_URL.", show_default=False)]
KeyEnv = Annotated[str, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")]
KEY = "METAZOO_ZOO_API_KEY"


def models(url: ZooUrl = None, api_key_env: KeyEnv = KEY, as_json: AsJson = False) -> None:
    """The models that the key may ask, with the URLs that a job takes."""
    from client import Metazoo

    with told(), Metazoo(zoo_url=url, zoo_api_key=secret_from(api_key_env)) as metazoo:
        found = metazoo.zoo.models()
    if as_json:
        typer.echo(json.dumps([model.model_dump() for model in found]))
        return
    for model in found:
        typer.echo(f"{model.name}\t{model.url}\t{model.state.lower()}")


def predict(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    query: Annotated[list[Path], typer.Argument(help="Images to label, or folders of them.")],
    url: ZooUrl = None,
    api_key_env: KeyEnv = KEY,
    as_json: AsJson = False,
) -> None:
    """Have a model label images; each is charged to the key."""
    from client import Metazoo

    asked = images_of(query)
    with told(), Metazoo(zoo_url=url, zoo_api_key=secret_from(api_key_env)) as metazoo:
        answer = metazoo.zoo.predict(model, asked)
    show_predictions(asked, answer, as_json=as_json)


def usage(url: ZooUrl = None, api_key_env: KeyEnv = KEY, as_json: AsJson = False) -> None:
    """What the key has been charged, in images."""
    from client import Metazoo

    with told(), Metazoo(zoo_url=url, zoo_api_key=secret_from(api_key_env)) as metazoo:
        used = metazoo.zoo.usage()
    if as_json:
        typer.echo(used.model_dump_json())
        return
    typer.echo(f"{used.spent} of {used.budget if used.budget is not None else 'unlimited'} images")
    for name, images in used.per_model.items():
        typer.echo(f"  {name}  {images}")
