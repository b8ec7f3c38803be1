"""Ports of a data directory: the same in each run, so that jobs find their APIs again after a restart."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from metazoo.redis_server import free_port

STILL_TAKEN = 15.0  # seconds for which a port is waited for: the run before may yet be stopping


def kept_ports(path: Path, names: Sequence[str], *, patience: float = STILL_TAKEN) -> list[int]:
    """A port for each name: the one that the file tells, if it is free or becomes so within `patience` seconds, else another.

    The file tells them from then on.
    """
    told: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    deadline = time.monotonic() + patience
    for name in names:
        while name in told and not _is_free(told[name]) and time.monotonic() < deadline:
            time.sleep(0.1)
        if name not in told or not _is_free(told[name]):
            told[name] = free_port()
    path.write_text(json.dumps(told))
    return [told[name] for name in names]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what ended does not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
