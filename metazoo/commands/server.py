"""`metazoo server`: the meta server, its settings, and who may call it."""

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.access import DEFAULT_TENANT, Role
from metazoo.connection import AsJson, Server, connected, takes_server

if TYPE_CHECKING:
    from fastapi import FastAPI

app = typer.Typer(invoke_without_command=True)
keys = typer.Typer(no_args_is_help=True, help="Keys of the server; needs one with the role admin.")
app.add_typer(keys, name="keys")


@app.callback()
def server(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; they share everything through Redis.")] = 1,
) -> None:
    """Serve jobs and meta-models over REST. Settings come from the environment (docs/operations.md)."""
    if context.invoked_subcommand is not None:
        return
    from metazoo.serving import serve

    serve(
        _make,
        name="metazoo-server",
        factory="metazoo.commands.server:application",
        host=host,
        port=port,
        workers=workers,
    )


def application() -> "FastAPI":
    """The server by the environment: one of several processes."""
    from metazoo.serving import worker

    return worker(_make, name="metazoo-server")


def _make() -> "FastAPI":
    from meta_server.app import create_app
    from meta_server.settings import Settings

    return create_app(Settings())


@app.command()
def config(as_json: AsJson = False) -> None:
    """Print every setting that the server reads from the environment; secrets are masked."""
    import json

    from meta_server.settings import Settings

    told = {
        str(field.validation_alias): Settings().model_dump(mode="json")[name]
        for name, field in Settings.model_fields.items()
    }
    if as_json:
        typer.echo(json.dumps(told))
        return
    for variable, value in told.items():
        typer.echo(f"{variable}={'' if value is None else value}")


@keys.command()
@takes_server
def create(
    server: Server,
    name: Annotated[str, typer.Argument(help="Whose it is or what it is for.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs and models it sees.")] = DEFAULT_TENANT,
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d"], help="When it ends; a date is UTC.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is printed this once."""
    wanted = {"name": name, "tenant": tenant, "role": role}
    if expires is not None:
        wanted["expires_at"] = (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).isoformat()
    with connected(server) as metazoo:
        key = metazoo.admin.create_key(wanted)
    typer.echo(key.model_dump_json() if as_json else key.secret)


@keys.command("list")
@takes_server
def list_keys(
    server: Server,
    as_json: AsJson = False,
) -> None:
    """Every key, oldest first, without its secret."""
    with connected(server) as metazoo:
        found = metazoo.admin.keys()
    for key in found:
        state = "revoked" if key.revoked else key.role
        typer.echo(key.model_dump_json() if as_json else f"{key.id} {key.tenant} {state} {key.name}")


@keys.command()
@takes_server
def revoke(
    server: Server,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key: from now on it grants nothing."""
    with connected(server) as metazoo:
        key = metazoo.admin.revoke_key(key_id)
    typer.echo(key.model_dump_json() if as_json else f"{key.id} revoked")


@app.command()
@takes_server
def audit(
    server: Server,
    limit: Annotated[int, typer.Option(min=1, help="Most entries.")] = 100,
    as_json: AsJson = False,
) -> None:
    """What callers asked for, newest first: every request that was more than a look."""
    with connected(server) as metazoo:
        for entry in islice(metazoo.admin.audit(), limit):
            when = f"{entry.time.astimezone():%Y-%m-%d %H:%M:%S}"
            line = f"{when}  {entry.tenant}  {entry.key}  {entry.status}  {entry.action}"
            typer.echo(entry.model_dump_json() if as_json else line)


@app.command()
@takes_server
def quota(
    server: Server,
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    running_jobs: Annotated[int | None, typer.Option(help="Jobs that have not ended, at once.")] = None,
    queries_a_day: Annotated[int | None, typer.Option(help="Images sent to APIs a day.")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Take both limits away.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a tenant may use and has used today; options change its quota."""
    limits = {"running_jobs": running_jobs, "queries_a_day": queries_a_day}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    with connected(server) as metazoo:
        usage = metazoo.admin.usage(tenant)
        if given or unlimited:
            kept = {} if unlimited else usage.quota.model_dump()
            usage = metazoo.admin.set_quota(tenant, {**kept, **given})
    told = f"{usage.queries_today} of {usage.quota.queries_a_day or 'unlimited'} queries today"
    jobs = f"{usage.quota.running_jobs if usage.quota.running_jobs is not None else 'unlimited'} running jobs"
    typer.echo(usage.model_dump_json() if as_json else f"{tenant}: {told}, {jobs}")
