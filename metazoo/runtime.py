"""What every process of Metazoo and its children run with; set before torch is loaded."""

import ctypes
import os
import sys
from pathlib import Path

KEPT = 256 << 20
"""Bytes of freed memory at its end that a process keeps for itself."""
LARGE = 32 << 20
"""Bytes from which an allocation is given back as soon as it is freed; the most that glibc takes."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def prepare() -> None:
    """Set up this process, and by the environment those it starts; what the caller has set stays."""
    # Children start in other folders: a relative path would point elsewhere there.
    if data := os.environ.get("METAZOO_DATA"):
        os.environ["METAZOO_DATA"] = str(Path(data).absolute())
    # Torch's threads wait for each other asleep, not spinning: beside other work on the same cores, training with two
    # threads ran at 14 steps a second instead of 2 to 5. Read when torch is loaded, by children as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()


def keep_memory() -> None:
    """Have glibc keep what activations and gradients took for the next batch, which takes as much again.

    By itself it gives them back to the system each time, and the next batch waits for each page to be zeroed: 40,000 page
    faults for 512 images of Conv4-32, and half the speed; training took 1.4 times as long. Elsewhere than on glibc: nothing.
    """
    if sys.platform != "linux":
        return
    c = ctypes.CDLL(None)
    for option, name, size in (
        (_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", KEPT),
        (_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", LARGE),
    ):
        if name not in os.environ:  # else glibc has read it by itself
            os.environ[name] = str(size)
            if hasattr(c, "mallopt"):  # musl has none
                c.mallopt(option, size)
