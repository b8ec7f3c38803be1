"""`metazoo zoo`: make a zoo of teachers, host it, manage the keys of one that runs."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metazoo.commands import zoo_build, zoo_import, zoo_use
from metazoo.connection import UNREACHABLE, USAGE, AsJson, fail, secret_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI

    from api_zoo.inference import Model
    from api_zoo.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Make a zoo of teachers, host it as APIs, manage its keys; ask one.")
keys = typer.Typer(no_args_is_help=True, help="Keys of a running zoo. Needs its admin key in METAZOO_ZOO_ADMIN_KEY.")
app.add_typer(keys, name="keys")

BAD_ZOO = 1  # the folder cannot be built or hosted


app.command()(zoo_build.build)
app.command("import")(zoo_import.import_file)
for _command in (zoo_use.models, zoo_use.predict, zoo_use.usage):
    app.command(_command.__name__)(_command)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(envvar="METAZOO_ZOO_FOLDER", help="The zoo folder to host.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8001,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Also host teachers for which the manifest has no SHA-256.")
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What every model answers: probabilities, topk:K, round:DECIMALS or label; and how, after commas: "
            "latency=, jitter= (ms), errors=, stalls=, shapes=, nans= (shares of 1), stall= (s), seed=. "
            "Default: as the manifest says.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; they share limits and budgets.")] = 1,
) -> None:
    """Host a zoo folder as APIs. Needs REDIS_URL and METAZOO_ZOO_ADMIN_KEY."""
    from pydantic import ValidationError

    from api_zoo.folder import BadZoo
    from api_zoo.services import hosted
    from api_zoo.settings import Settings
    from metazoo.serving import serve as serve_application

    told: dict[str, Any] = {"folder": folder.absolute()}
    if unverified:
        told["unverified"] = True
    if policy is not None:
        told["policy"] = policy
    try:
        settings = Settings(**told)
    except ValidationError as error:
        fail(f"settings: {_told(error)}", BAD_ZOO)
    try:
        models = hosted(settings)
    except BadZoo as error:
        fail(str(error), BAD_ZOO)
    serve_application(
        lambda: _make(settings, models),
        name="metazoo-zoo",
        factory="metazoo.commands.zoo:application",
        environment={f"METAZOO_ZOO_{name.upper()}": str(value) for name, value in told.items()},
        host=host,
        port=port,
        workers=workers,
    )


def application() -> "FastAPI":
    """The zoo by the environment: one of several processes."""
    from api_zoo.settings import Settings
    from metazoo.serving import worker

    return worker(lambda: _make(Settings(), None), name="metazoo-zoo")


def _make(settings: "Settings", models: "Mapping[str, Model] | None") -> "FastAPI":
    from api_zoo.app import create_app

    return create_app(settings, registry=models)


ZooUrl = Annotated[str, typer.Option("--url", envvar="METAZOO_ZOO_URL", help="The zoo, such as http://127.0.0.1:8001.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")]


@keys.command()
def create(
    url: ZooUrl,
    name: Annotated[str, typer.Option(help="Whose it is.")] = "key",
    budget: Annotated[int | None, typer.Option(min=0, help="Images over its life. Default: no limit.")] = None,
    images_per_second: Annotated[float | None, typer.Option(help="Sustained rate. Default: no limit.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Most images at once.")] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(help="Sustained rate of requests. Default: no limit.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most requests at once. Default: no limit.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may use; repeatable. Default: all.")] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"], help="When it ends; a date is UTC.")
    ] = None,
    notes: Annotated[str | None, typer.Option(help="For the host.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown this once."""
    wanted = {
        "budget": budget,
        "images_per_second": images_per_second,
        "burst": burst,
        "requests_per_second": requests_per_second,
        "concurrency": concurrency,
        "models": model,
        "notes": notes,
    }
    given = {field: value for field, value in wanted.items() if value is not None}
    if expires is not None:
        given["expires_at"] = (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).isoformat()
    made = _call(url, "POST", "", {"name": name, **given})
    typer.echo(json.dumps(made) if as_json else f"{made['id']}\n{made['secret']}")


@keys.command("list")
def list_keys(url: ZooUrl, as_json: AsJson = False) -> None:
    """Every key, oldest first."""
    found = _call(url, "GET", "")
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("key", "name", "spent", "budget", "images/s", "models", "", box=None)
    for key in found:
        limits = [_or_dash(key[field]) for field in ("budget", "images_per_second")]
        models = "all" if key["models"] is None else str(len(key["models"]))
        table.add_row(key["id"], key["name"], str(key["spent"]), *limits, models, "revoked" if key["revoked"] else "")
    Console().print(table)


@keys.command()
def show(key: KeyId, url: ZooUrl, as_json: AsJson = False) -> None:
    """One key: its limits and what it has spent."""
    found = _call(url, "GET", f"/{key}")
    if as_json:
        typer.echo(json.dumps(found))
        return
    for field, value in found.items():
        told = ", ".join(value) if isinstance(value, list) else _or_dash(value)
        typer.echo(f"{field.replace('_', ' ')}: {told}")


@keys.command()
def audit(
    key: KeyId,
    url: ZooUrl,
    after: Annotated[str | None, typer.Option(help="The id of the last entry seen.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries to tell.")] = 100,
    as_json: AsJson = False,
) -> None:
    """A key's charges, refunds and top-ups, oldest first."""
    asked = f"/{key}/audit?limit={limit}" + (f"&after={after}" if after else "")
    for entry in _call(url, "GET", asked):
        if as_json:
            typer.echo(json.dumps(entry))
        else:
            told = [entry[field] for field in ("id", "time", "kind", "images", "model", "charge")]
            typer.echo("  ".join(str(value) for value in told if value is not None))


@keys.command()
def revoke(key: KeyId, url: ZooUrl, as_json: AsJson = False) -> None:
    """End a key; what it has used stays on record."""
    revoked = _call(url, "DELETE", f"/{key}")
    typer.echo(json.dumps(revoked) if as_json else f"{revoked['id']} revoked")


@keys.command()
def top_up(
    key: KeyId,
    url: ZooUrl,
    images: Annotated[int, typer.Option(min=1, help="Added to its budget.")],
    as_json: AsJson = False,
) -> None:
    """Raise a key's budget. Run twice, it raises it twice."""
    raised = _call(url, "POST", f"/{key}/top-up", {"images": images})
    typer.echo(json.dumps(raised) if as_json else f"{raised['id']}: {raised['spent']} of {raised['budget']} images")


@keys.command()
def usage(key: KeyId, url: ZooUrl, as_json: AsJson = False) -> None:
    """What a key has been charged, in images."""
    used = _call(url, "GET", f"/{key}/usage")
    if as_json:
        typer.echo(json.dumps(used))
        return
    typer.echo(f"{used['key']}: {used['spent']} of {_or_dash(used['budget'])} images")
    for model, images in used["per_model"].items():
        typer.echo(f"  {model}  {images}")
    for day, models in used.get("per_day", {}).items():
        for model, images in models.items():
            typer.echo(f"  {day}  {model}  {images}")


def _call(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One call of the admin API; what it refuses becomes one line and an exit code."""
    import httpx

    headers = {"Authorization": f"Bearer {secret_from('METAZOO_ZOO_ADMIN_KEY')}"}
    try:
        answer = httpx.request(method, f"{url.rstrip('/')}/admin/keys{path}", json=body, headers=headers, timeout=30)
        document = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        fail(f"{url} is not reachable or no zoo: {error}", UNREACHABLE)
    if answer.is_success:
        return document
    message = document.get("error") if isinstance(document, dict) else None
    fail(str(message or f"{url} answered {answer.status_code}"), UNREACHABLE if answer.status_code == 401 else USAGE)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _told(error: Any) -> str:
    """Every wrong setting by its variable, without its value."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
