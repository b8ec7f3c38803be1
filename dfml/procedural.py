"""Query images made from a seed: dead leaves, objects, spectra, and mixes of two of them.

A query set is named by a few bytes (seed, size, mixture, `VERSION`), so that a worker that has none of its images can make
any of them again. Statistics follow Baradad et al. 2021, "Learning to See by Looking at Noise", in spirit; the numbers are
our own and are explained in `docs/methods/pqd.md`.

numpy only. Arithmetic is float64 throughout: CPUs differ in the last bits of `exp` and of the FFT, and in float64 such a
difference practically never reaches a rounded grey level.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.methods import Source

VERSION = 1
"""Raised by any change that alters a single pixel of any query set."""

SOURCES: tuple[Source, ...] = ("leaves", "objects", "spectra", "mixes")
BLOCK = 64
"""Images are made in blocks of this many, because numpy is slow on one image at a time."""

Array = NDArray[np.float64]
# The streams of RandomState are frozen by numpy's compatibility policy (NEP 19); those of Generator may change.
Rng = np.random.RandomState

_SMALLEST = 8  # pixels a side; below, the images hold nothing
_EXPONENTS = (1, 2, 2, 2, 6)  # of the super-ellipses: diamond, ellipse (three times as often), rounded box
_OUT_OF_SIGHT = 1e3  # where the leaves lie that an object does not have
_LARGE_LEAVES = 6  # painted first, so that the small ones stay visible


@dataclass(frozen=True)
class QuerySet:
    """An endless sequence of images; image i depends on the fields, `VERSION` and i alone.

    `seed` in [0, 2**31); `size` is (height, width) in pixels, at least 8 each; `mixture` pairs each source with its relative
    share. Shares are of the images within each block of 64, to the nearest image.
    """

    seed: int
    size: tuple[int, int]
    mixture: tuple[tuple[Source, float], ...] = tuple((source, 1.0) for source in SOURCES)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed {self.seed}: give a whole number in [0, 2**31)")
        if min(self.size) < _SMALLEST:
            raise ValueError(f"size {self.size}: give at least {_SMALLEST} pixels a side")
        unknown = sorted({source for source, _ in self.mixture} - set(SOURCES))
        if unknown:
            raise ValueError(f"mixture: unknown source {', '.join(unknown)}; there are {', '.join(SOURCES)}")
        if any(share < 0 for _, share in self.mixture) or not sum(share for _, share in self.mixture) > 0:
            raise ValueError("mixture: shares must not be negative, and one must be above zero")

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at these indices, in this order: uint8 (n, 3, height, width)."""
        height, width = self.size
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and chosen.min() < 0:
            raise ValueError("indices must not be negative")
        out = np.empty((len(chosen), 3, height, width), np.uint8)
        blocks = chosen // BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            out[here] = _BLOCKS.get(self, int(block))[chosen[here] % BLOCK]
        return out


def query_set(mixture: Mapping[Source, float], *, seed: int, size: tuple[int, int]) -> QuerySet:
    """The query set of a mapping of shares. Their order does not matter; sources without a share are left out."""
    return QuerySet(seed, size, tuple((source, float(mixture[source])) for source in SOURCES if mixture.get(source)))


class _BlockCache:
    """The blocks used last, up to `limit` bytes, each made once: many APIs are asked about one pool at about the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._blocks: OrderedDict[tuple[QuerySet, int], NDArray[np.uint8]] = OrderedDict()
        self._making: dict[tuple[QuerySet, int], Future[NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()

    def get(self, queries: QuerySet, block: int) -> NDArray[np.uint8]:
        key = (queries, block)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
            waiting = self._making.get(key)
            if waiting is None:
                making = self._making[key] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            making.set_result(_make_block(queries, block))
        except BaseException as error:
            making.set_exception(error)
        with self._lock:
            del self._making[key]
            made = making.result()
            self._blocks[key] = made
            self._held += made.nbytes
            while self._held > self._limit and len(self._blocks) > 1:
                self._held -= self._blocks.popitem(last=False)[1].nbytes
        return made


_BLOCKS = _BlockCache(128 * 2**20)  # of all pools of a process: some 40,000 images of 32 x 32


def _make_block(queries: QuerySet, block: int) -> NDArray[np.uint8]:
    """uint8 (BLOCK, 3, height, width)."""
    rng = Rng([VERSION, queries.seed, block])
    shares = dict(queries.mixture)
    bounds = np.cumsum([shares.get(source, 0.0) for source in SOURCES])
    # Systematic sampling: every block holds each source in its share, whatever the seed.
    drawn = (np.arange(BLOCK) + rng.uniform()) / BLOCK * bounds[-1]
    source_of = rng.permutation(np.searchsorted(bounds, drawn, side="right"))
    images = np.empty((BLOCK, 3, *queries.size))
    for index, source in enumerate(SOURCES):
        here = source_of == index
        if here.any():
            images[here] = _MAKERS[source](rng, int(here.sum()), queries.size)
    rounded: NDArray[np.uint8] = np.rint(images.clip(0, 1) * 255).astype(np.uint8)
    rounded.setflags(write=False)
    return rounded


# Sources: (rng, n, size) -> (n, 3, height, width), nominally in [0, 1], not clipped.


def spectra(rng: Rng, n: int, size: tuple[int, int]) -> Array:
    """Coloured 1/f^a noise, a ~ U(0.5, 2.2)."""
    noise = _mix_channels(_noise(rng, n, size, 0.5, 2.2), _luminance_mixing(rng, n, 0.3, 1.0))
    noise *= rng.uniform(0.07, 0.32, (n, 1, 1, 1)) / _spread(noise, (1, 2, 3))
    return noise + 0.5 + 0.18 * rng.standard_normal((n, 1, 1, 1)) + 0.09 * rng.standard_normal((n, 3, 1, 1))


def leaves(rng: Rng, n: int, size: tuple[int, int]) -> Array:
    """Dead leaves: 24 occluding leaves, the first six large, then radii from p(r) ~ r^-3 on [0.08, 1.2]."""
    smallest, largest = 0.08**-2, 1.2**-2

    def leaf(k: int) -> tuple[Array, Array, Array]:
        if k < _LARGE_LEAVES:
            radius = rng.uniform(0.3, 1.2, n)
        else:
            radius = (smallest + rng.uniform(size=n) * (largest - smallest)) ** -0.5
        return rng.uniform(-1.2, 1.2, n), rng.uniform(-1.2, 1.2, n), radius

    return _paint(rng, n, size, 24, leaf)


def objects(rng: Rng, n: int, size: tuple[int, int]) -> Array:
    """Something in the middle: 3 to 11 leaves, the first third clutter, the rest centred, shrinking and closing in."""
    count = rng.randint(3, 12, n)

    def leaf(k: int) -> tuple[Array, Array, Array]:
        clutter = k < count // 3
        far = np.minimum(k / (count - 1), 1.0)
        spread = 0.25 + 0.3 * far
        x = np.where(clutter, rng.uniform(-1, 1, n), rng.standard_normal(n) * spread)
        y = np.where(clutter, rng.uniform(-1, 1, n), rng.standard_normal(n) * spread)
        u = rng.uniform(size=n)
        radius = np.where(clutter, 0.3 + 0.9 * u, (0.75 - 0.6 * far) * (0.5 + 0.8 * u))
        return np.where(k < count, x, _OUT_OF_SIGHT), y, radius

    return _paint(rng, n, size, 11, leaf)


def mixes(rng: Rng, n: int, size: tuple[int, int]) -> Array:
    """Two images of the other sources joined by a blob mask, 30 % by a constant one, with a random gamma."""
    first, second = _any_of_the_others(rng, n, size), _any_of_the_others(rng, n, size)
    centre = 0.35 * rng.standard_normal((2, n))
    mask = _leaf_mask(rng, n, size, centre[0], centre[1], rng.uniform(0.3, 0.9, n))
    blend = rng.uniform(size=(n, 1, 1, 1)) < 0.3
    mask = np.where(blend, rng.uniform(0.1, 0.9, (n, 1, 1, 1)), mask)
    mixed = first.clip(0, 1) * (1 - mask) + second.clip(0, 1) * mask
    return np.asarray(mixed ** np.exp(0.25 * rng.standard_normal((n, 1, 1, 1))))


_MAKERS: dict[Source, Callable[[Rng, int, tuple[int, int]], Array]] = {
    "leaves": leaves,
    "objects": objects,
    "spectra": spectra,
    "mixes": mixes,
}


def _any_of_the_others(rng: Rng, n: int, size: tuple[int, int]) -> Array:
    source_of = rng.randint(0, 3, n)
    images = np.empty((n, 3, *size))
    for index, make in enumerate((leaves, objects, spectra)):
        here = source_of == index
        if here.any():
            images[here] = make(rng, int(here.sum()), size)
    return images


# What the sources are made of.


def _paint(
    rng: Rng, n: int, size: tuple[int, int], count: int, leaf: Callable[[int], tuple[Array, Array, Array]]
) -> Array:
    """`count` leaves over a textured background; `leaf(k)` gives centres x, y and radii (n,) of the k-th."""
    canvas = _colours(rng, n) + _texture(rng, n, size, 0.2)
    texture = canvas
    for k in range(count):
        # textures are the costly part: five leaves of six wear a flipped and rolled copy
        worn = np.roll(np.flip(texture, 2 + k % 2), (7 * k, 5 * k), (2, 3))
        texture = worn if k % 6 else _texture(rng, n, size, 0.15)
        x, y, radius = leaf(k)
        mask = _leaf_mask(rng, n, size, x, y, radius)
        canvas = canvas + (_colours(rng, n) + texture - canvas) * mask
    return canvas


def _leaf_mask(rng: Rng, n: int, size: tuple[int, int], x: Array, y: Array, radius: Array) -> Array:
    """Soft masks (n, 1, height, width) of wobbly super-ellipses; the edge is about a pixel wide."""
    rows, columns = _grid(size)
    angle = rng.uniform(0, 2 * math.pi, (n, 1, 1))
    aspect = np.exp(
        0.225 * rng.standard_normal((n, 1, 1))
    )  # the square root of exp(0.45 N): one axis grows, one shrinks
    exponent = np.take(_EXPONENTS, rng.randint(0, len(_EXPONENTS), (n, 1, 1)))
    wobbly = rng.uniform(size=(n, 1, 1)) < 0.6
    across, down = columns - x[:, None, None], rows - y[:, None, None]
    # the leaf's own axes as one complex number
    place = (across * np.cos(angle) + down * np.sin(angle)) * aspect + 0j
    place.imag = (down * np.cos(angle) - across * np.sin(angle)) / aspect
    horizontal, vertical, distance = np.abs(place.real), np.abs(place.imag), np.abs(place)
    rho = np.where(exponent == 1, horizontal + vertical, distance)
    rho = np.where(exponent == 6, (horizontal**6 + vertical**6) ** (1 / 6), rho)
    # cos(k phi + shift) by powers of the unit vector: no arc tangent, no cosine for each pixel
    unit = place / np.maximum(distance, 1e-9)
    outline = np.ones_like(rho)
    for k in (2, 3, 5):
        shift = np.exp(1j * rng.uniform(0, 2 * math.pi, (n, 1, 1)))
        outline += wobbly * (0.35 / k) * rng.standard_normal((n, 1, 1)) * (unit**k * shift).real
    softness = 0.06 * 32 / min(size)
    inside = radius[:, None, None] * outline - rho
    return np.asarray(0.5 + 0.5 * np.tanh(inside / (2 * softness)))[:, None]


def _texture(rng: Rng, n: int, size: tuple[int, int], amplitude: float) -> Array:
    """1/f noise of random strength, plus a linear gradient, plus stripes on 15 %: (n, 3, height, width), mean about 0."""
    rows, columns = _grid(size)
    noise = _mix_channels(_noise(rng, n, size, 0.3, 2.0), _luminance_mixing(rng, n, 0.6, 1.0))
    strength = rng.uniform(size=(n, 1, 1, 1)) ** 2 * amplitude * 2
    slope = 0.15 * rng.standard_normal((2, n, 1, 1, 1))
    angle, phase = rng.uniform(0, math.pi, (n, 1, 1, 1)), rng.uniform(0, 2 * math.pi, (n, 1, 1, 1))
    stripes = np.sin(rng.uniform(5, 25, (n, 1, 1, 1)) * (columns * np.cos(angle) + rows * np.sin(angle)) + phase)
    striped = rng.uniform(size=(n, 1, 1, 1)) < 0.15
    return np.asarray(noise * strength + slope[0] * columns + slope[1] * rows + 0.2 * striped * stripes)


def _noise(rng: Rng, n: int, size: tuple[int, int], low: float, high: float) -> Array:
    """Anisotropic noise with amplitude r^-a, a ~ U(low, high): (n, 3, height, width), each channel mean 0 and std 1."""
    height, width = size
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    angle = rng.uniform(0, math.pi, (n, 1, 1))
    stretch = np.exp(0.4 * rng.standard_normal((n, 1, 1)))
    u = (across * np.cos(angle) + down * np.sin(angle)) * stretch
    v = (down * np.cos(angle) - across * np.sin(angle)) / stretch
    radius = np.maximum(np.hypot(u, v), 1 / (1.5 * min(size)))
    amplitude = radius ** -rng.uniform(low, high, (n, 1, 1))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, 3, height, width))) * amplitude[:, None], s=size)
    noise -= noise.mean((2, 3), keepdims=True)
    return np.asarray(noise / _spread(noise, (2, 3)))


def _luminance_mixing(rng: Rng, n: int, low: float, high: float) -> Array:
    """Random colour mixing matrices (n, 3, 3): the first channel goes to all three colours with weight U(low, high)."""
    weight = rng.uniform(low, high, (n, 1, 1))
    chroma = rng.standard_normal((n, 3, 3))
    chroma *= (1 - weight) / np.linalg.norm(chroma, axis=2, keepdims=True)
    chroma[:, :, :1] += weight
    return chroma


def _mix_channels(images: Array, matrices: Array) -> Array:
    n, _, height, width = images.shape
    return np.asarray((matrices @ images.reshape(n, 3, -1)).reshape(n, 3, height, width))


def _colours(rng: Rng, n: int) -> Array:
    """(n, 3, 1, 1) in [0, 1]: greys with a little colour, as in photographs."""
    grey = 0.5 + 0.27 * rng.standard_normal((n, 1))
    tint = 0.32 * rng.standard_normal((n, 3)) * rng.uniform(size=(n, 1))
    return np.asarray((grey + tint).clip(0, 1))[:, :, None, None]


def _grid(size: tuple[int, int]) -> tuple[Array, Array]:
    """Rows (height, 1) and columns (1, width); the shorter side spans [-1, 1]."""
    height, width = size
    half = (min(size) - 1) / 2
    rows: Array = (np.arange(height, dtype=np.float64)[:, None] - (height - 1) / 2) / half
    columns: Array = (np.arange(width, dtype=np.float64)[None] - (width - 1) / 2) / half
    return rows, columns


def _spread(images: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(np.maximum(images.std(axes, keepdims=True), 1e-6))
