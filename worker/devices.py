"""Which device a learner computes on, which queues that makes it take from, and what follows when memory does not suffice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from meta_server.queue import GPU_QUEUES, LEARN_QUEUES

T = TypeVar("T")
Wanted = Literal["auto", "cpu", "cuda"]
Compute = Callable[[str, int], T]
"""(device, part) -> the result; with a part of n it works on chunks of 1 / n of their size."""

PARTS = (1, 4)  # whole chunks, then quarters


def gpus() -> int:
    """How many GPUs this process may use, found without torch: a worker's parent must not touch CUDA before it forks."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return there if visible is None else min(there, len([one for one in visible.split(",") if one.strip()]))


def queues() -> tuple[str, ...]:
    """What a learner of this process takes: also jobs that need a GPU, where it has one."""
    return GPU_QUEUES + LEARN_QUEUES if gpus() else LEARN_QUEUES


def devices(wanted: Wanted, *, cuda: bool) -> Iterator[tuple[str, int]]:
    """What to try, in order: the GPU with whole chunks, with smaller ones, then the CPU."""
    if cuda and wanted != "cpu":
        yield from (("cuda", part) for part in PARTS)
    yield "cpu", 1


def first(wanted: Wanted) -> str:
    """The device to compute on where nothing is tried twice."""
    import torch

    return next(devices(wanted, cuda=torch.cuda.is_available()))[0]


def compute(wanted: Wanted, work: Compute[T], *, told: Callable[[str], None]) -> T:
    """What `work` gives on the first device and part whose memory suffices; `told` hears of each that does not.

    Raises MemoryError when none does.
    """
    import torch

    tried = list(devices(wanted, cuda=torch.cuda.is_available()))
    for device, part in tried:
        try:
            return work(device, part)
        except (torch.OutOfMemoryError, MemoryError):
            told(f"out of memory on {device}" + (f" with 1/{part} of a chunk" if part > 1 else ""))
        torch.cuda.empty_cache()
    raise MemoryError(f"out of memory on {', '.join(sorted({device for device, _ in tried}))}: learn a smaller network")
