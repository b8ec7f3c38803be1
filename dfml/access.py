"""What a method gets of its teachers: gradients exact or estimated, and a refusal before anything is spent."""

from collections.abc import Sequence

import numpy as np
import torch

from contracts.methods import GradientOptions
from dfml.numerics.distillation import rounding_unit
from dfml.numerics.gradient_sources import FLOOR, Asked, Guided, Source, Surrogate, ZerothOrder
from dfml.numerics.zeroth_order import Estimator, step_size
from dfml.teachers import DifferentiableTeacher, Teacher, WhiteBoxTeacher, rounds_images

PROBE = 8
"""Images asked of an API first, to learn how precise its answers are."""
CURVATURE = 0.01
"""Of the loss along a random direction, for the choice of a step: measured on Conv4 classifiers of 32 x 32 images."""


class WeightsNeeded(ValueError):
    """A method was asked for what an API does not give; the message names the black-box route."""


def differentiable(
    teachers: Sequence[Teacher], options: GradientOptions, *, generator: torch.Generator
) -> list[DifferentiableTeacher]:
    """The teachers with gradients from the source that the options name. Costs `probe_cost(options)` queries of each.

    Raises `WeightsNeeded` where exact gradients are asked of black boxes.
    """
    if options.source == "weights":
        return list(white_boxes(teachers))
    return [_asked(teacher, options, generator) for teacher in teachers]


def white_boxes(teachers: Sequence[Teacher]) -> list[WhiteBoxTeacher]:
    """The teachers as they are. Raises `WeightsNeeded` where one of them is a black box."""
    found = [teacher for teacher in teachers if isinstance(teacher, WhiteBoxTeacher)]
    if len(found) < len(teachers):
        raise WeightsNeeded(
            f"{len(teachers) - len(found)} of {len(teachers)} APIs do not publish their weights: set gradients.source to "
            "zeroth-order, surrogate or guided, which take answers alone and spend queries, or use pqd"
        )
    return found


def gradient_cost(options: GradientOptions) -> int:
    """Queries of an image's gradient, beside the one of the forward pass; that one costs nothing either with weights."""
    if options.source in ("weights", "surrogate"):
        return 0
    if options.source == "guided":
        return options.directions + 1
    return 2 * options.directions if options.antithetic else options.directions


def pass_cost(options: GradientOptions) -> int:
    """Queries of an image that goes through a teacher forward and back."""
    return 0 if options.source == "weights" else 1 + gradient_cost(options)


def probe_cost(options: GradientOptions) -> int:
    """Queries that each API costs before the first gradient."""
    return 0 if options.source == "weights" else PROBE


def probe(teacher: Teacher, generator: torch.Generator) -> float | None:
    """The unit that an API rounds its answers to, None for full precision. Costs `PROBE` queries."""
    return rounding_unit(teacher.predict(torch.rand(PROBE, *teacher.input_shape, generator=generator)))


def floor_of(unit: float | None, ways: int) -> float:
    """Smallest probability told apart from zero."""
    return FLOOR if unit is None else min(unit / 2, 0.1 / ways)


def step_of(estimator: Estimator, unit: float | None, shape: tuple[int, int, int], *, eight_bit: bool = False) -> float:
    """The step that suits answers rounded to `unit` (None: not rounded) and, if so, images rounded to 8 bits."""
    return step_size(
        order=estimator.order,
        output_unit=unit,
        input_unit=1 / 255 if eight_bit else None,
        inputs=int(np.prod(shape)),
        curvature=CURVATURE,
    )


def source_of(
    teacher: Teacher,
    options: GradientOptions,
    unit: float | None,
    *,
    generator: torch.Generator,
    eight_bit: bool = False,
) -> Source:
    """What says the gradients of a black box. unit: of its answers. eight_bit: it is shown images rounded so."""
    estimator = Estimator(options.directions, antithetic=options.antithetic, frequencies=options.frequencies)
    rounded = eight_bit or rounds_images(teacher)
    step = options.step or step_of(estimator, unit, teacher.input_shape, eight_bit=rounded)
    if options.source == "zeroth-order":
        return ZerothOrder(estimator, step, generator)
    copy = Surrogate(teacher.ways, teacher.input_shape, generator=generator)
    return Guided(copy, estimator, step=step, generator=generator) if options.source == "guided" else copy


def _asked(teacher: Teacher, options: GradientOptions, generator: torch.Generator) -> Asked:
    unit = probe(teacher, generator)
    source = source_of(teacher, options, unit, generator=generator)
    return Asked(teacher, source, floor=floor_of(unit, teacher.ways))
