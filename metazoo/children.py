"""Child processes that never outlive us: each leads a group of its own, which is killed as a whole in the end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Child:
    """A running child."""

    name: str
    process: subprocess.Popen[bytes]

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the leader alone: it winds its own children down."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def stop(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for an orderly end, then kill whatever is left of the group."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(name: str, arguments: list[str], *, environment: dict[str, str], log: Path) -> Child:
    """Start `metazoo ARGUMENTS` in a process group of its own. Secrets go in `environment`, never in `arguments`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "metazoo", *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Child(name, process)


def last_words(log: Path, lines: int = 20) -> str:
    """The end of a log; empty when nothing was logged."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def die_with_parent() -> None:
    """In a new child: ask the kernel for SIGTERM when the parent dies, even if it is killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
