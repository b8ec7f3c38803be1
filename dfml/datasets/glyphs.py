"""Glyphs: a few-shot data set that is always there, because it is drawn from a seed. Images 3x32x32.

A class is a drawing: two to four strokes and up to two filled blobs at places of its own. An image of it is turned, scaled,
sheared, bent, painted in any colours, and laid over a texture, so that form alone tells classes apart.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfml.datasets.sources import check_split
from dfml.procedural import spectra

Array = NDArray[np.float64]
Rng = np.random.RandomState  # its streams are frozen (NEP 19)

VERSION = 1
"""Raised by any change that alters a single pixel."""
SPLITS: dict[str, range] = {"train": range(120), "val": range(120, 150), "test": range(150, 200)}
PER_CLASS = 100
SIDE = 32

_FIELD = 48  # a class's distance fields are drawn once on so many pixels a side, and sampled for each image
_REACH = 1.3  # the fields cover [-1.3, 1.3]; the picture shows [-1, 1] before jitter
_TEXTURES = 256


@dataclass(frozen=True)
class Glyphs:
    """The data set of one `seed`; another seed gives other classes."""

    seed: int = 0
    name: str = "glyphs"

    def classes(self, split: str) -> tuple[str, ...]:
        """`glyph-000` to `glyph-199`."""
        return tuple(f"glyph-{number:03d}" for number in _numbers(split))

    def images(self, split: str, classes: Sequence[str] | None = None) -> Tensor:
        """uint8 (classes, 100, 3, 32, 32). Drawn once a process, in a second or a few."""
        drawn = _DRAWN.get(self.seed, split)
        names = self.classes(split)
        return drawn if classes is None else drawn[[names.index(name) for name in classes]]


def draw_class(seed: int, number: int, textures: Array) -> NDArray[np.uint8]:
    """All images of one class: uint8 (100, 3, 32, 32). `textures`: float (n, 3, 32, 32) to lay them over."""
    strokes, blobs = _class_fields(Rng([VERSION, seed, number, 0]))
    rng = Rng([VERSION, seed, number, 1])
    n = PER_CLASS
    rows, columns = _jittered_grid(rng, n)
    width = rng.uniform(0.07, 0.13, (n, 1, 1))
    stroke = _soft(width - _sample(strokes, rows, columns))[:, None]
    blob = _soft(-_sample(blobs, rows, columns))[:, None]
    ground, fill, ink = _colours(rng, n)
    texture = textures[rng.randint(0, len(textures), n)]
    texture = np.where(rng.uniform(size=(n, 1, 1, 1)) < 0.5, texture, texture[..., ::-1]) - 0.5
    picture = ground + texture * rng.uniform(0.2, 0.9, (n, 1, 1, 1))
    picture += (fill - picture) * blob * rng.uniform(0.6, 1.0, (n, 1, 1, 1))
    picture += (ink - picture) * stroke * rng.uniform(0.7, 1.0, (n, 1, 1, 1))
    picture += 0.04 * rng.standard_normal(picture.shape)
    drawn: NDArray[np.uint8] = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return drawn


def _class_fields(rng: Rng) -> tuple[Array, Array]:
    """Signed distances (_FIELD, _FIELD): to the nearest stroke's middle line, and to the nearest blob's edge (inside < 0)."""
    axis = np.linspace(-_REACH, _REACH, _FIELD)
    down, across = axis[:, None], axis[None]
    strokes = np.full((_FIELD, _FIELD), 9.0)
    for _ in range(rng.randint(2, 5)):
        for y, x in _stroke(rng):
            np.minimum(strokes, np.hypot(down - y, across - x), out=strokes)
    blobs = np.full((_FIELD, _FIELD), 9.0)
    for _ in range(rng.randint(0, 3)):
        y, x = rng.uniform(-0.5, 0.5, 2)
        angle = np.arctan2(down - y, across - x)
        corners, depth = rng.randint(2, 6), rng.uniform(0, 0.45)
        outline = rng.uniform(0.2, 0.42) * (1 + depth * np.cos(corners * angle + rng.uniform(0, 2 * math.pi)))
        np.minimum(blobs, np.hypot(down - y, across - x) - outline, out=blobs)
    return strokes, blobs


def _stroke(rng: Rng) -> Array:
    """Points (40, 2) along a line, a bent line, an arc or a ring."""
    t = np.linspace(0, 1, 40)[:, None]
    if rng.uniform() < 0.3:
        centre, radius = rng.uniform(-0.4, 0.4, 2), rng.uniform(0.2, 0.5)
        turn = rng.uniform(0, 2 * math.pi) + t * rng.choice([math.pi, 1.5 * math.pi, 2 * math.pi])
        return np.asarray(centre + radius * np.concatenate([np.sin(turn), np.cos(turn)], 1))
    start, bend, end = rng.uniform(-0.75, 0.75, (3, 2))
    while np.hypot(*(end - start)) < 0.5:
        end = rng.uniform(-0.75, 0.75, 2)
    if rng.uniform() < 0.4:
        bend = (start + end) / 2
    return np.asarray((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)


def _jittered_grid(rng: Rng, n: int) -> tuple[Array, Array]:
    """Where each pixel looks in the class's fields: rows and columns (n, SIDE, SIDE)."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)
    down, across = np.broadcast_arrays(axis[:, None], axis[None])
    angle, shear = rng.uniform(-0.35, 0.35, (n, 1, 1)), rng.uniform(-0.2, 0.2, (n, 1, 1))
    scale = np.exp(rng.uniform(-0.2, 0.2, (2, n, 1, 1)))
    shift = rng.uniform(-0.2, 0.2, (2, n, 1, 1))
    rows = (down * np.cos(angle) - across * np.sin(angle)) * scale[0] + shift[0]
    columns = (down * np.sin(angle) + across * np.cos(angle)) * scale[1] + shift[1] + shear * down
    # a slow wave bends the drawing
    phase = rng.uniform(0, 2 * math.pi, (2, n, 1, 1))
    strength = rng.uniform(0, 0.08, (2, n, 1, 1))
    rows = rows + strength[0] * np.sin(3 * across + phase[0])
    return rows, columns + strength[1] * np.sin(3 * down + phase[1])


def _sample(field: Array, rows: Array, columns: Array) -> Array:
    """Bilinear; beyond the field its edge goes on."""
    scale = (_FIELD - 1) / (2 * _REACH)
    y, x = ((rows + _REACH) * scale).clip(0, _FIELD - 1.001), ((columns + _REACH) * scale).clip(0, _FIELD - 1.001)
    top, left = y.astype(np.int64), x.astype(np.int64)
    y, x = y - top, x - left
    flat, at = field.ravel(), top * _FIELD + left
    upper = flat[at] * (1 - x) + flat[at + 1] * x
    lower = flat[at + _FIELD] * (1 - x) + flat[at + _FIELD + 1] * x
    return np.asarray(upper * (1 - y) + lower * y)


def _soft(inside: Array) -> Array:
    """Coverage in [0, 1] from a distance; the edge is about a pixel wide."""
    return np.asarray((0.5 + inside * SIDE / 2).clip(0, 1))


def _colours(rng: Rng, n: int) -> tuple[Array, Array, Array]:
    """Ground, fill and ink (n, 3, 1, 1): any colours, but ink and ground differ in brightness by about 0.3 or more."""
    ground = rng.uniform(0, 1, (n, 1))
    step = rng.uniform(0.3, 0.6, (n, 1))
    ink = np.where(ground + step > 1, ground - step, ground + step)
    fill = rng.uniform(0, 1, (n, 1))
    tinted = (np.stack([ground, fill, ink]) + 0.15 * rng.standard_normal((3, n, 3))).clip(0, 1)
    first, second, third = tinted[..., None, None]
    return first, second, third


def _numbers(split: str) -> range:
    check_split(split)
    return SPLITS[split]


@dataclass
class _Drawn:
    """Splits drawn in this process."""

    held: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, seed: int, split: str) -> Tensor:
        numbers = _numbers(split)
        with self.lock:
            if (seed, split) not in self.held:
                textures = spectra(Rng([VERSION, seed]), _TEXTURES, (SIDE, SIDE))
                drawn = np.stack([draw_class(seed, number, textures) for number in numbers])
                self.held[seed, split] = torch.from_numpy(drawn)
            return self.held[seed, split]


_DRAWN = _Drawn()
