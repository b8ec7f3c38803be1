"""`metazoo worker`: a Celery worker of one of the two kinds."""

import os
from enum import StrEnum
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
        int | None, typer.Option(min=1, help="Processes. Default: 4 to acquire, 1 to learn (one a device).")
    ] = None,
) -> None:
    """Take tasks until stopped; a task under way at SIGTERM is handed on. Settings come from the environment."""
    # Celery reads this as it is imported: SIGTERM then begins the soft shutdown that requeues running tasks.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from worker.app import start
    from worker.settings import Settings

    default = 4 if role is Role.ACQUIRE else 1
    start(Settings(), queue=role.value, name=name or role.value, concurrency=concurrency or default)
