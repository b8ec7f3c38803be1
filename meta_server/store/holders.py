"""Who holds a lease, in words that tell a process of the same machine whether that one is gone.

A machine is known by the boot of its kernel and by the namespace in which its processes have their numbers, so that containers
that share a host name are told apart. Where Linux does not say them, nobody is ever found to be gone: leases then run out.
"""

import os
import socket
from functools import cache
from pathlib import Path


def holder() -> str:
    """This process: host, machine and process id, for people as well."""
    return f"{socket.gethostname()}:{_machine() or 'unknown'}:{os.getpid()}"


def is_gone(told: str) -> bool:
    """Whether `told` by `holder` is a process of this machine that runs no more. False where that cannot be known."""
    _, machine, pid = told.rsplit(":", 2) if told.count(":") >= 2 else ("", "", "")
    if not machine or machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:18]}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
