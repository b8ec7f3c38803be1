"""What a method gets of its teachers: gradients exact or estimated, and a refusal before anything is spent."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from contracts.gradients import GradientOptions
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


class BlackBoxes:
    """APIs as they are met: what each rounds its answers to, and what says its gradients. A part of a training.

    source: (API, what its answers are rounded to) -> what says its gradients; None where nothing is learned of an API.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        source: Callable[[Teacher, float | None], Source | None],
        generator: torch.Generator,
    ) -> None:
        self.teachers = teachers
        self._source, self._generator = source, generator
        self._met: dict[int, tuple[float | None, Source | None]] = {}

    def meet(self, index: int) -> tuple[float | None, Source | None]:
        """What an API rounds to, and its source. The first time, that costs `PROBE` queries."""
        if index not in self._met:
            unit = probe(self.teachers[index], self._generator)
            self._met[index] = unit, self._source(self.teachers[index], unit)
        return self._met[index]

    def state_dict(self) -> dict[Any, Any]:
        return {index: (unit, None if made is None else made.state_dict()) for index, (unit, made) in self._met.items()}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        for index, (unit, held) in state.items():
            made = self._source(self.teachers[index], unit)
            if made is not None:
                made.load_state_dict(held)
            self._met[index] = unit, made


class Differentiable:
    """Teachers with gradients from the source that the options name: `[index]` is one. A part of a training.

    A black box is asked `probe_cost(options)` images when it is met. Raises `WeightsNeeded` where exact gradients are asked
    of black boxes; then nothing was asked.
    """

    def __init__(self, teachers: Sequence[Teacher], options: GradientOptions, *, generator: torch.Generator) -> None:
        self._white = white_boxes(teachers) if options.source == "weights" else None

        def source(teacher: Teacher, unit: float | None) -> Source:
            return source_of(teacher, options, unit, generator=generator)

        self._black = BlackBoxes(teachers, source, generator)

    def __getitem__(self, index: int) -> DifferentiableTeacher:
        if self._white is not None:
            return self._white[index]
        unit, source = self._black.meet(index)
        assert source is not None  # noqa: S101 - made above
        teacher = self._black.teachers[index]
        return Asked(teacher, source, floor=floor_of(unit, teacher.ways))

    def state_dict(self) -> dict[Any, Any]:
        return self._black.state_dict()

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._black.load_state_dict(state)


def common_shape(teachers: Sequence[Teacher]) -> tuple[int, int, int]:
    """Of the images that all of them take. Raises ValueError where there is no such shape."""
    shapes = {teacher.input_shape for teacher in teachers}
    if len(shapes) != 1:
        raise ValueError(f"the APIs take images of shapes {sorted(shapes)}: give APIs of one shape, at least one API")
    return shapes.pop()


def check_ways(teachers: Sequence[Teacher], ways: int) -> None:
    """Raises ValueError where all of them together know fewer classes than a task has."""
    known = sum(teacher.ways for teacher in teachers)
    if known < ways:
        raise ValueError(f"the teachers know {known} classes, a task has {ways}: ask for fewer ways")


def white_boxes(teachers: Sequence[Teacher]) -> list[WhiteBoxTeacher]:
    """The teachers as they are. Raises `WeightsNeeded` where one of them is a black box."""
    found = [teacher for teacher in teachers if isinstance(teacher, WhiteBoxTeacher)]
    if len(found) < len(teachers):
        raise WeightsNeeded(
            f"{len(teachers) - len(found)} of {len(teachers)} APIs do not publish their weights: set gradients.source to "
            "zeroth-order, surrogate or guided, which take answers alone and spend queries, or use pqd"
        )
    return found


def known_weights(teachers: Sequence[Teacher], options: GradientOptions) -> Iterator[torch.Tensor]:
    """The tensors, on the CPU, of the teachers whose weights a training follows from; of black boxes none."""
    for teacher in white_boxes(teachers) if options.source == "weights" else []:
        yield from (tensor.cpu() for tensor in teacher.weights().values())


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
    estimator = Estimator(
        options.directions,
        antithetic=options.antithetic,
        orthogonal=options.orthogonal,
        frequencies=options.frequencies,
    )
    rounded = eight_bit or rounds_images(teacher)
    step = options.step or step_of(estimator, unit, teacher.input_shape, eight_bit=rounded)
    if options.source == "zeroth-order":
        return ZerothOrder(estimator, step, generator)
    copy = Surrogate(teacher.ways, teacher.input_shape, generator=generator)
    return Guided(copy, estimator, step=step, generator=generator) if options.source == "guided" else copy
