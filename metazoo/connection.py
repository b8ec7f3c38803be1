"""How commands reach a running service: where it is, which key to send, and what to say when it cannot be used."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from client import Metazoo

# Exit codes that scripts can tell apart.
JOB_FAILED = 1  # the job failed or was cancelled
USAGE = 2  # the call is at fault: nothing was done
UNREACHABLE = 3  # the service cannot be reached, refuses the key, or is none of ours

Url = Annotated[str | None, typer.Option("--url", help="The server. Default: METAZOO_URL.", show_default=False)]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        metavar="NAME",
        help="Environment variable that holds the key. Default: METAZOO_API_KEY.",
        show_default=False,
    ),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option(
        "--ready-file",
        envvar="METAZOO_READY_FILE",
        help="What `metazoo up --ready-file` wrote: server and key.",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        envvar="METAZOO_PROFILE",
        help="Server and key of this profile in ~/.config/metazoo.toml.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Server:
    """Where a command's server is, and which key to send, as its options say."""

    url: Url = None
    api_key_env: ApiKeyEnv = None
    ready_file: ReadyFile = None
    profile: Profile = None


def takes_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose first parameter is a `Server` the options that make one."""
    named = list(signature(Server).parameters.values())
    others = list(signature(command).parameters.values())[1:]

    @wraps(command)
    def run(**given: Any) -> None:
        server = Server(**{parameter.name: given.pop(parameter.name) for parameter in named})
        command(server, **given)

    told = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in (*others, *named)]
    run.__signature__ = Signature(told)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in told}
    return run


@contextmanager
def connected(server: Server) -> Iterator["Metazoo"]:
    """A client, whose errors become one line and an exit code. A profile goes before a ready file."""
    from client import Metazoo

    key: str | None
    url: str | None
    if server.profile is not None:
        url, key = _of_profile(server.profile, server.url, server.api_key_env)
    else:
        ready = read_ready_file(server.ready_file) if server.ready_file is not None else {}
        key = secret_from(server.api_key_env) if server.api_key_env is not None else ready.get("api_key")
        url = server.url or ready.get("server_url")
    with told(), Metazoo(url, key) as metazoo:
        yield metazoo


@contextmanager
def told() -> Iterator[None]:
    """Turns what the SDK raises into one line and an exit code."""
    from client import ApiUnavailable, InvalidAnswer, MetazooError, RateLimited, Unauthorized

    try:
        yield
    except (ApiUnavailable, InvalidAnswer, RateLimited, Unauthorized) as error:
        fail(str(error), UNREACHABLE)
    except MetazooError as error:
        fail(str(error), USAGE)


def _of_profile(name: str, url: str | None, api_key_env: str | None) -> tuple[str, str | None]:
    """Server and key. Another URL beside it is refused: the profile's key would go to a server that it is not for."""
    from metazoo import profiles

    if url is not None:
        fail(f"give --url or a profile ({name}, by --profile or METAZOO_PROFILE), not both", USAGE)
    try:
        found = profiles.read(name)
        return found.url, found.api_key() if api_key_env is None else secret_from(api_key_env)
    except profiles.ProfileFault as error:
        fail(str(error), USAGE)


def read_ready_file(path: Path) -> dict[str, Any]:
    """What a ready file holds that commands need: where the server is, its key, and the models with theirs."""
    try:
        ready = json.loads(path.read_bytes())
        models = [{"url": str(model["url"]), "api_key": str(model["api_key"])} for model in ready["models"]]
        return {"server_url": str(ready["server_url"]), "api_key": str(ready["api_key"]), "models": models}
    except OSError as error:
        fail(f"{path}: {error.strerror}: is `metazoo up --ready-file {path}` running, and ready?", USAGE)
    except (ValueError, TypeError, KeyError):
        fail(f"{path} is no ready file: give the one that `metazoo up --ready-file` wrote", USAGE)


def secret_from(variable: str) -> str:
    """A secret from the environment: arguments would show it to everyone who can list processes."""
    value = os.environ.get(variable)
    if not value:
        fail(f"the environment variable {variable} is not set: put the key there", USAGE)
    return value


def fail(message: str, code: int) -> NoReturn:
    """Say in one line what to do, and leave with `code`."""
    typer.echo(f"metazoo: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
