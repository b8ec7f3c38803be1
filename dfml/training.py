"""A training that can be interrupted: where it stands is kept, and whoever takes it up again ends with the same weights.

    training = Training(checkpoint, [options, seed], tensors)    # what it follows from
    training.resume(generator, network=…, optimiser=…)          # its parts, as they were kept
    for step in range(training.done, steps):
        …
        training.keep(step + 1, history=…)                      # `training.values` next time

Every method trains so; what it needs to keep is in these two calls.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dfml.checkpoint import BadState, Checkpoint, decode, digest_tensor, encode
from dfml.teachers import Teacher


class Stateful(Protocol):
    """A part of a training: a network, an optimiser, a memory. Its state is what `dfml.checkpoint.encode` takes."""

    def state_dict(self) -> dict[Any, Any]:
        """All that it needs to go on from here."""

    def load_state_dict(self, state: dict[Any, Any], /) -> Any:
        """Go on from there."""


class Training:
    """done: steps done when the state was kept, 0 where there is none; values: what the loop gave to `keep` then.

    checkpoint: where the state is kept; None keeps nothing. told, tensors: all that the training follows from, JSON values and
    tensors on the CPU: a state that was kept of anything else is refused.
    """

    def __init__(self, checkpoint: Checkpoint | None, told: Sequence[Any], tensors: Iterable[Tensor] = ()) -> None:
        self.done = 0
        self.values: dict[str, Any] = {}
        self._checkpoint = checkpoint
        self._parts: dict[str, Stateful] = {}
        self._states: dict[str, Any] = {}
        if checkpoint is None:
            return
        self._name = _name(told, tensors)
        content = checkpoint.recall()
        if content is None:
            return
        try:
            kept = _kept(content, self._name)
        except BadState as error:
            checkpoint.refuse(str(error))
            return
        self.done, self.values, self._states = kept["done"], kept["values"], kept["parts"]

    def resume(self, generator: torch.Generator, **parts: Stateful) -> None:
        """These are the parts of the training, and what it draws from. They are put to where they were, if that was kept."""
        self._parts = {**parts, "generator": _Stream(generator)}  # last: making a part may draw
        if not self._states:
            return
        for name, part in self._parts.items():
            part.load_state_dict(self._states[name])
            if isinstance(part, torch.optim.Optimizer):
                _lay_out(part)
        self._states = {}

    def keep(self, done: int, **values: Any) -> None:
        """`done` steps are done: keep the state, if it is time to."""
        if self._checkpoint is None or not self._checkpoint.due(done):
            return
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        self._checkpoint.keep(encode({"name": self._name, "done": done, "values": values, "parts": parts}))


class Counts:
    """What teachers were asked so far, as a part of a training: a teacher whose counts can be set counts on from there."""

    NAMES = ("queries", "forward_passes", "backward_passes")

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = teachers

    def state_dict(self) -> dict[Any, Any]:
        held = enumerate(self._teachers)
        return {index: {name: getattr(one, name) for name in self.NAMES if hasattr(one, name)} for index, one in held}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        for index, counts in state.items():
            for name, count in counts.items():
                try:
                    setattr(self._teachers[index], name, count)
                except AttributeError:  # a property: it counts what it is asked from here on
                    break


class _Stream:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[Any, Any]:
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._generator.set_state(state["state"])


def _name(told: Sequence[Any], tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(told).encode())
    for tensor in tensors:
        digest_tensor(digest.update, tensor)
    return digest.hexdigest()


def _kept(content: bytes, name: str) -> dict[str, Any]:
    """The state of the training called `name`. Raises `BadState`."""
    kept: Any = decode(content)
    if not isinstance(kept, dict) or kept.keys() != {"name", "done", "values", "parts"}:
        raise BadState("it is no state of a training")
    if kept["name"] != name:
        raise BadState("it is of another training: of other answers, options or limits")
    return kept


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Put what was loaded into the memory format of its parameter, or other kernels would compute with it."""
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
