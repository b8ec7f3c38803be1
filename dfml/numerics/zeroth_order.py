"""Gradients of a function that can only be asked for its values, by finite differences along random directions.

Points are whatever the loss takes: images, the noise of a generator, features. `surrogate` carries an estimate on to whatever
the points were computed from, so a gradient in latent space is an estimate whose loss begins with the generator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Values = Callable[[Tensor], Tensor]
"""Points (k, n, *shape), k variants of each of n points -> losses (k, n). Each is a query, its loss depends on it alone."""

TOGETHER = 4096
"""Points given to the loss at once, at most, where one variant of all points is not more."""


@dataclass(frozen=True)
class Estimate:
    """gradient: (n, *shape). value: (n,), the loss at the points; of antithetic pairs their mean, right to O(step^2).
    queries: points that the loss was asked about."""

    gradient: Tensor
    value: Tensor
    queries: int


@dataclass(frozen=True)
class Estimator:
    """`g = (D / q) sum_j slope_j u_j` over q unit vectors `u_j` of a space of D dimensions, drawn anew for each point.

    Forward differences, `slope = (l(x + step u) - l(x)) / step`, are BiDf-MKD's (Hu et al. 2023): q + 1 queries a point,
    an error of O(step). Antithetic ones, `(l(x + step u) - l(x - step u)) / (2 step)`: 2 q queries, O(step^2).

    On a quadratic `l = b'x + x'Hx / 2` a forward slope is off by exactly `step u'Hu / 2`: linear in the step, zero for an
    antithetic pair. As `u` and `-u` are equally likely this is noise, not a shift of the mean; in general the mean is off
    by O(step^2), for both.

    orthogonal: the directions of a point are at right angles, needs q <= D. With q = D the estimate of a linear loss is exact.
    frequencies: directions are made of the lowest that many frequencies, down and across, of the discrete cosine transform of
    points (channels, height, width). What the gradient has beyond them is lost: a bias of its own, and fewer
    dimensions to search.

    Raises ValueError where options contradict each other.
    """

    directions: int
    antithetic: bool = False
    orthogonal: bool = False
    frequencies: int | None = None

    def __post_init__(self) -> None:
        if self.directions < 1 or (self.frequencies is not None and self.frequencies < 1):
            raise ValueError("directions and frequencies are at least one")

    @property
    def cost(self) -> int:
        """Queries a point."""
        return 2 * self.directions if self.antithetic else self.directions + 1

    @property
    def order(self) -> int:
        """The error of a slope is O(step ** order)."""
        return 2 if self.antithetic else 1

    def dimension(self, shape: tuple[int, ...]) -> int:
        """D for points of this shape."""
        return math.prod(_searched(shape, self.frequencies))

    def cosine(self, shape: tuple[int, ...]) -> float:
        """What the cosine of the estimate with the searched part of a linear loss's gradient comes to: sqrt(q / (q + D)).

        sqrt(q / D) where the directions are orthogonal (root mean square).
        """
        dimension = self.dimension(shape)
        return math.sqrt(self.directions / (dimension if self.orthogonal else self.directions + dimension))

    def estimate(
        self,
        loss: Values,
        points: Tensor,
        *,
        step: float,
        generator: torch.Generator,
        centre: Tensor | None = None,
    ) -> Estimate:
        """The gradient of `loss` at each of the points (n, *shape), for `cost` queries each. `step` is a length.

        centre: the loss at the points (n,), where it is known: forward differences then cost a query a point less.
        """
        points = points.detach()
        n, shape = len(points), tuple(points.shape[1:])
        dimension = self.dimension(shape)
        if self.orthogonal and self.directions > dimension:
            raise ValueError(
                f"{self.directions} directions cannot be orthogonal in {dimension} dimensions: ask for fewer"
            )
        with torch.no_grad():
            units = self.directions_at(n, shape, generator).to(points)
            known = centre is not None
            centre = None if self.antithetic else loss(points[None])[0] if centre is None else centre
            gradient, value = torch.zeros_like(points), points.new_zeros(n)
            for some in torch.split(units, max(1, TOGETHER // (2 * n if self.antithetic else n))):
                if centre is None:
                    ahead, behind = loss(torch.cat([points + step * some, points - step * some])).chunk(2)
                    slopes = (ahead - behind) / (2 * step)
                    value += (ahead + behind).sum(0) / (2 * self.directions)
                else:
                    slopes = (loss(points + step * some) - centre) / step
                gradient += torch.einsum("kn,kn...->n...", slopes, some)
        gradient *= dimension / self.directions
        cost = self.cost - 1 if known and not self.antithetic else self.cost
        return Estimate(gradient, value if centre is None else centre, n * cost)

    def directions_at(self, n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Unit vectors (directions, n, *shape), float32."""
        searched = _searched(shape, self.frequencies)
        drawn = torch.randn(self.directions, n, math.prod(searched), generator=generator)
        if self.orthogonal:
            drawn = torch.linalg.qr(drawn.permute(1, 2, 0)).Q.permute(2, 0, 1)  # signs do not matter here
        else:
            drawn = torch.nn.functional.normalize(drawn, dim=-1)
        drawn = drawn.reshape(self.directions, n, *searched)
        if self.frequencies is None:
            return drawn
        down, across = (cosines(size)[:kept] for size, kept in zip(shape[-2:], searched[-2:], strict=True))
        return down.T @ drawn @ across


def surrogate(points: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `points` is `gradient`: backpropagate it to what the points depend on."""
    return (points * gradient.detach()).sum()


def step_size(
    *,
    order: int,
    output_unit: float | None,
    input_unit: float | None = None,
    inputs: int = 1,
    curvature: float = 1.0,
) -> float:
    """The step that balances truncation against rounding (Gill et al. 1983): `2 sqrt(e / c)`, or `cbrt(3 e / c)` at order 2.

    e is the error of a value: half of `output_unit`, the unit that outputs are rounded to, or that of float32 where it is
    None. c is the second (third) derivative along a direction. Where inputs are rounded to `input_unit` too, such as 1 / 255,
    a step also moves each of the `inputs` numbers by two units in the root mean square: less is rounded away.
    """
    error = output_unit / 2 if output_unit is not None else 1e-7
    step = 2 * math.sqrt(error / curvature) if order == 1 else (3 * error / curvature) ** (1 / 3)
    if input_unit is not None:
        step = max(step, 2 * input_unit * math.sqrt(inputs))
    return step


def cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II): (frequency, place), lowest frequency first."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (place + 0.5) * place[:, None]) * math.sqrt(2 / size)
    rows[0] *= math.sqrt(0.5)
    return rows.float()


def _searched(shape: tuple[int, ...], frequencies: int | None) -> tuple[int, ...]:
    if frequencies is None:
        return shape
    if len(shape) != 3:
        raise ValueError(f"frequencies are those of images (channels, height, width), the points have shape {shape}")
    channels, height, width = shape
    return channels, min(frequencies, height), min(frequencies, width)
