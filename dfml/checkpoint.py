"""A training's state as bytes, and the places where the newest is kept.

The bytes are safetensors with a JSON note that holds the names, the numbers and the SHA-256 of both: nothing is pickled, and
what was altered is refused before any of it is used.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_HEADER = 8  # bytes that tell how long the JSON is that a safetensors file begins with


class BadState(ValueError):
    """The bytes are not a state that `encode` made; the message says why."""


class Checkpoint(Protocol):
    """Where one training keeps its newest state."""

    def recall(self) -> bytes | None:
        """The newest state kept; None where there is none."""

    def due(self, done: int) -> bool:
        """Whether the state after `done` steps is to be kept."""

    def keep(self, content: bytes) -> None:
        """Keep this state in the place of the one before. It may raise to stop."""

    def refuse(self, reason: str) -> None:
        """What was recalled is not used, and the training begins anew."""


class CheckpointFile:
    """A file that holds the state after every `every` steps; it is left there. `refused`: why it was passed over."""

    def __init__(self, path: Path, *, every: int = 100) -> None:
        self.refused: str | None = None
        self._path, self._every = path, every

    def recall(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def due(self, done: int) -> bool:
        return done % self._every == 0

    def keep(self, content: bytes) -> None:
        """By rename, so that a file under this name is always whole."""
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(self._path)

    def refuse(self, reason: str) -> None:
        self.refused = reason


def encode(tree: Any) -> bytes:
    """Dictionaries, lists, tuples, numbers, strings, None and tensors, nested, as the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    told = json.dumps(_flat(tree, tensors))
    return save(tensors, {"tree": told, "sha256": _digest(told, tensors)})


def decode(content: bytes) -> Any:
    """What was encoded, tensors on the CPU and contiguous. Raises `BadState`."""
    try:
        tensors = load(content)
        length = int.from_bytes(content[:_HEADER], "little")
        note = json.loads(content[_HEADER : _HEADER + length])["__metadata__"]
        if _digest(note["tree"], tensors) != note["sha256"]:
            raise BadState("its SHA-256 is not the one it states")
        return _nested(json.loads(note["tree"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise error if isinstance(error, BadState) else BadState("it is damaged, or no state of a training") from error


def _digest(told: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(told.encode())
    for name in sorted(tensors, key=int):
        digest_tensor(digest.update, tensors[name])
    return digest.hexdigest()


def digest_tensor(update: Callable[[Any], object], tensor: Tensor) -> None:
    """Give a hash the type, shape and values of a tensor on the CPU."""
    update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    update(tensor.contiguous().numpy().data)


def _flat(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON: a tensor is its number in the file, a dictionary its pairs, so that keys may be other than text."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_flat(key, tensors), _flat(held, tensors)] for key, held in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flat(held, tensors) for held in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _nested(told: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(told, dict):
        return told
    ((kind, held),) = told.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {_nested(key, tensors): _nested(value, tensors) for key, value in held}
    each = [_nested(value, tensors) for value in held]
    return tuple(each) if kind == "tuple" else each
