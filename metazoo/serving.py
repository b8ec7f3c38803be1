"""How an application is served: by this process, or by several behind one port that share everything through Redis."""

import gc
import os
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from metazoo import logs, tracing
from metazoo.children import die_with_parent

if TYPE_CHECKING:
    from fastapi import FastAPI


YOUNG = 20_000
"""Objects that are made before the new ones are looked through for garbage; Python's own is 700."""


def serve(
    make: Callable[[], "FastAPI"],
    *,
    name: str,
    factory: str,
    host: str,
    port: int,
    workers: int,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Serve what `make` makes until told to stop; traces tell that it is `name`.

    `factory` names a function `module:name` that makes the same by the environment, with `environment` in it: of several
    workers each calls it in a process of its own.
    """
    import uvicorn

    logs.configure()
    options: dict[str, Any] = {"host": host, "port": port, "log_config": None, "timeout_graceful_shutdown": 5}
    options["access_log"] = False  # /metrics counts requests; a line each takes as long as a small answer
    if workers == 1:
        tracing.configure(name)
        uvicorn.run(settled(make()), **options)
        return
    os.environ.update(environment)
    with TemporaryDirectory(prefix="metazoo-metrics-") as counts:  # each process answers /metrics for all
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", counts)
        uvicorn.run(factory, factory=True, workers=workers, **options)


def worker(make: Callable[[], "FastAPI"], *, name: str) -> "FastAPI":
    """What `make` makes, in one of several processes; it ends with the one that started it, however that ends."""
    die_with_parent()
    logs.configure()
    tracing.configure(name)
    return settled(make())


def settled(app: "FastAPI") -> "FastAPI":
    """`app`, in a process that is fit to serve it."""
    import torch

    torch.set_num_threads(1)  # requests run beside each other, each on one core
    gc.collect()
    gc.freeze()  # modules stay for good: to look through them again for garbage stopped all requests for 0.13 s each time
    gc.set_threshold(YOUNG)  # what a few dozen requests hold is looked through for garbage again and again by itself
    return app
