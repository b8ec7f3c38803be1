"""Latency and faults on purpose: what a paid API does on a bad day, drawn from a seed."""

import random
import struct
from dataclasses import dataclass

from contracts.zoo import Behaviour

NAN = struct.pack("<f", float("nan"))


class Failed(Exception):
    """The request fails, as the model's behaviour says it should."""


@dataclass(frozen=True)
class Turn:
    """What happens to one request."""

    seconds: float  # before it is answered
    fails: bool
    short: bool  # its answer lacks a row
    nan: bool

    def spoil(self, answer: bytes, classes: int) -> bytes:
        """What the caller gets instead of `answer`, FP32 (n, classes). Raises `Failed`."""
        if self.fails:
            raise Failed
        row = 4 * classes
        if self.nan:
            answer = NAN * classes + answer[row:]
        return answer[:-row] if self.short else answer


class Rehearsal:
    """Draws the turns of one model."""

    def __init__(self, behaviour: Behaviour, name: str) -> None:
        self._behaviour = behaviour
        self._random = random.Random(f"{behaviour.seed} {name}")

    def turn(self) -> Turn:
        """What happens to the next request. Always draws as many numbers, so that rates do not move each other."""
        told = self._behaviour
        jitter, stalls, fails, short, nan = (self._random.random() for _ in range(5))
        milliseconds = max(0.0, told.latency + told.jitter * (2 * jitter - 1))
        late = told.stall if stalls < told.stalls else 0.0
        return Turn(milliseconds / 1000 + late, fails < told.errors, short < told.shapes, nan < told.nans)
