"""What is kept loaded, within a number of bytes: what was asked for last stays."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Memory:
    """At most `most` bytes of loaded things, and always the one that was asked for last, however large."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # the oldest first
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.bytes = 0

    async def get(self, name: str, load: Callable[[], Awaitable[tuple[T, int]]]) -> T:
        """What is called `name`; `load` answers it with its bytes, once however many ask at the same time.

        Those that are loaded wait for nobody. Raises what `load` raises.
        """
        if name not in self._held:
            lock = self._loading.setdefault(name, asyncio.Lock())
            async with lock:
                if name not in self._held:
                    self._keep(name, *await load())
        self.touch(name)
        found: T = self._held[name][0]
        return found

    def touch(self, name: str) -> None:
        """It was used just now, if it is there."""
        if name in self._held:
            self._held.move_to_end(name)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def drop(self, name: str) -> None:
        """Forget it, if it is there."""
        if name in self._held:
            self.bytes -= self._held.pop(name)[1]

    def _keep(self, name: str, thing: object, size: int) -> None:
        self._held[name] = (thing, size)
        self.bytes += size
        while self.bytes > self._most and len(self._held) > 1:
            self.drop(next(iter(self._held)))
