"""`latest`, which stands for the id of the newest job, meta-model or adapted model in every command that takes one."""

from collections.abc import Sequence
from typing import Protocol

from metazoo.connection import USAGE, fail

LATEST = "latest"


class _Told(Protocol):
    @property
    def id(self) -> str: ...


class _Page(Protocol):
    @property
    def items(self) -> Sequence[_Told]: ...


class _Listed(Protocol):
    def list(self, *, limit: int = ...) -> _Page: ...


def named(listed: _Listed, name: str) -> str:
    """The id that a person means; leaves with a message when `latest` is asked for and there is none."""
    if name != LATEST:
        return name
    newest = listed.list(limit=1).items
    if not newest:
        fail("there is none yet: `latest` stands for the newest", USAGE)
    return newest[0].id
