"""The weights that are in memory: those used last, up to so many bytes; the others are read again when they are asked for."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from torch import nn


class Shelf:
    """Modules by name, shared by all threads.

    Holds at most `most` bytes of parameters, buffers and what parts say they hold beside them (`held_bytes`), but always the
    module used last. What is taken off while it computes ends with its last user.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, tuple[nn.Module, int]] = OrderedDict()
        self._bytes = 0
        self._guard = Lock()
        self._reading: dict[str, Lock] = {}

    @property
    def bytes(self) -> int:
        """Bytes of what is held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: str, read: Callable[[], nn.Module]) -> nn.Module:
        """The module of that name, made by `read` unless it is held: once, however many ask. Raises what `read` raises."""
        if (module := self._found(name)) is not None:
            return module
        with self._guard:
            reading = self._reading.setdefault(name, Lock())
        with reading:
            if (module := self._found(name)) is not None:  # by another thread meanwhile
                return module
            module = read()
            self._put(name, module)
        return module

    def _found(self, name: str) -> nn.Module | None:
        with self._guard:
            held = self._held.get(name)
            if held is None:
                return None
            self._held.move_to_end(name)
            return held[0]

    def _put(self, name: str, module: nn.Module) -> None:
        size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        size += sum(getattr(part, "held_bytes", 0) for part in module.modules())
        with self._guard:
            self._held[name] = (module, size)
            self._bytes += size
            while self._bytes > self._most and len(self._held) > 1:
                _, (_, freed) = self._held.popitem(last=False)
                self._bytes -= freed
