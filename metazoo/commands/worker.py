"""`metazoo worker`: a Celery worker of one of the two kinds."""

import os
from enum import StrEnum
from tempfile import mkdtemp
from typing import Annotated

import typer


class Role(StrEnum):
    """What a worker does: query APIs, or train."""

    ACQUIRE = "acquire"
    LEARN = "learn"


def worker(
    role: Annotated[Role, typer.Argument(help="acquire: query APIs, many at once. learn: train and publish.")],
    name: Annotated[
        str | None, typer.Option(help="Name of this worker, unique on its Redis. Default: its role.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="APIs asked at once (default 32), or processes that train (default 1).")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="INDEX",
            help="Train on this GPU alone; none: on no GPU. Default: those that CUDA_VISIBLE_DEVICES names.",
        ),
    ] = None,
) -> None:
    """Take tasks until stopped; a task under way at SIGTERM is handed on. Settings come from the environment."""
    # Celery reads this as it is imported: SIGTERM then begins the soft shutdown that requeues running tasks.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if gpu == "none" else gpu
    if os.environ.get("METAZOO_METRICS_PORT"):  # child processes count in files there; read as metrics are imported
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", mkdtemp(prefix="metazoo-metrics-"))
    from meta_server.queue import ACQUIRE_QUEUES
    from metazoo import logs, tracing
    from worker.app import start
    from worker.devices import queues
    from worker.settings import Settings

    tracing.configure("metazoo-worker")
    acquires = role is Role.ACQUIRE
    start(
        Settings(),
        queues=ACQUIRE_QUEUES if acquires else queues(),
        name=name or role.value,
        concurrency=concurrency or (32 if acquires else 1),
        set_up_logging=logs.configure,
    )
