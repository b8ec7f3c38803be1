"""Gradients of black boxes: what they cost, how right they are, and what is refused before anything is spent."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.gradients import GradientOptions
from dfml.access import PROBE, Differentiable, WeightsNeeded, gradient_cost, pass_cost, probe_cost
from dfml.datasets import Dataset
from dfml.numerics.gradient_sources import Asked, Guided, Surrogate, ZerothOrder, guided_cosine
from dfml.numerics.zeroth_order import Estimator, Values
from dfml.teachers import DifferentiableTeacher, ModuleTeacher, WhiteBoxTeacher

SHAPE = (3, 8, 8)
D = 192


class Linear:
    """Probabilities whose logarithms are linear in the image but for what makes them sum to one."""

    ways, input_shape = 2, SHAPE

    def __init__(self) -> None:
        self.queries = 0
        self.slope = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def predict(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        first = (images * self.slope).sum((1, 2, 3)) / 40
        return torch.stack([first, -first], 1).softmax(-1)


def exact(teacher: Linear, images: Tensor, labels: Tensor) -> Tensor:
    points = images.clone().requires_grad_()
    first = (points * teacher.slope).sum((1, 2, 3)) / 40
    loss = F.cross_entropy(torch.stack([first, -first], 1), labels, reduction="sum")
    return torch.autograd.grad(loss, [points])[0]


def estimated(asked: DifferentiableTeacher, images: Tensor, labels: Tensor) -> Tensor:
    points = images.clone().requires_grad_()
    loss = F.cross_entropy(asked.logits(points), labels, reduction="sum")
    return torch.autograd.grad(loss, [points])[0]


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return 0.3 + 0.4 * torch.rand(100, *SHAPE, generator=generator)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(100) % 2


def cosines_of(got: Tensor, wanted: Tensor) -> Tensor:
    return F.cosine_similarity(got.flatten(1), wanted.flatten(1))


def test_with_as_many_directions_as_dimensions_the_estimate_is_exact(images: Tensor, labels: Tensor) -> None:
    teacher, random = Linear(), torch.Generator().manual_seed(1)
    source = ZerothOrder(Estimator(D, orthogonal=True), 0.02, random)
    got = estimated(Asked(teacher, source), images[:5], labels[:5])
    assert torch.allclose(got, exact(teacher, images[:5], labels[:5]), atol=2e-3)
    assert teacher.queries == 5 * (1 + D)


def test_a_surrogate_learns_from_what_was_paid_for_and_points_the_right_way(
    blobs: Dataset, blob_teachers: list[ModuleTeacher]
) -> None:
    teacher = blob_teachers[0]
    shown = blobs.images("train")[:3, :30].flatten(0, 1).float() / 255
    labels = torch.arange(3).repeat_interleave(30)
    true = estimated(teacher, shown, labels)

    def found(steps: int) -> float:
        source = Surrogate(3, (3, 16, 16), generator=torch.Generator().manual_seed(0), width=16, steps=steps)
        asked, before = Asked(teacher, source), teacher.queries
        mean = cosines_of(estimated(asked, shown, labels), true).mean().item()
        assert teacher.queries == before + len(shown)  # the forward pass alone
        return mean

    assert found(60) > found(1) + 0.1


class Prior:
    """A surrogate whose direction is right by a stated cosine."""

    cost = 0

    def __init__(self, direction: Tensor) -> None:
        self.direction = direction

    def learn(self, images: Tensor, answers: Tensor) -> None: ...

    def gradient(self, loss: Values, images: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        return self.direction.expand_as(images)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_guided_estimates_are_as_right_as_stated(images: Tensor, labels: Tensor, alpha: float) -> None:
    teacher, random = Linear(), torch.Generator().manual_seed(1)
    along = teacher.slope / teacher.slope.norm()
    across = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    across = F.normalize((across - (across * along).sum() * along).flatten(), dim=0).view(SHAPE)
    prior = Prior(alpha * along + math.sqrt(1 - alpha**2) * across)
    source = Guided(prior, Estimator(9), step=0.01, generator=random)  # type: ignore[arg-type]
    got = cosines_of(estimated(Asked(teacher, source), images, labels), exact(teacher, images, labels))
    squared = got.square()
    error = squared.std() / len(squared) ** 0.5
    assert abs(squared.mean() - guided_cosine(alpha, 9, D) ** 2) < 3.5 * error + 2e-3
    assert teacher.queries == 100 * (1 + 9 + 1)


OPTIONS = [
    GradientOptions(source="zeroth-order", directions=3),
    GradientOptions(source="zeroth-order", directions=3, antithetic=True, frequencies=None),
    GradientOptions(source="zeroth-order", directions=3, orthogonal=True),
    GradientOptions(source="surrogate"),
    GradientOptions(source="guided", directions=2),
]


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: f"{options.source}-{options.antithetic}-{options.orthogonal}"
)
def test_queries_are_those_of_the_formula(
    make_teacher, images: Tensor, options: GradientOptions, generator: torch.Generator
) -> None:
    teacher = make_teacher(0)
    asked = Differentiable([teacher], options, generator=generator)[0]
    assert teacher.queries == probe_cost(options) == PROBE
    shown = torch.rand(4, 3, 16, 16, generator=generator).requires_grad_()
    F.cross_entropy(asked.logits(shown), torch.zeros(4, dtype=torch.int64)).backward()
    assert teacher.queries == PROBE + 4 * pass_cost(options)
    assert pass_cost(options) == 1 + gradient_cost(options)
    assert shown.grad is not None
    assert shown.grad.abs().sum() > 0
    assert asked.inspect(shown)[1] == []


def test_weights_of_black_boxes_are_refused_before_anything_is_asked(make_teacher, generator: torch.Generator) -> None:
    black, white = Linear(), make_teacher(0)
    assert isinstance(white, WhiteBoxTeacher)
    assert not isinstance(black, WhiteBoxTeacher)
    with pytest.raises(WeightsNeeded, match="1 of 2 APIs do not publish their weights"):
        Differentiable([white, black], GradientOptions(), generator=generator)
    assert (black.queries, white.queries) == (0, 0)
    assert Differentiable([white], GradientOptions(), generator=generator)[0] is white


def test_rounded_answers_take_longer_steps(make_teacher, generator: torch.Generator) -> None:
    class Rounded(ModuleTeacher):
        def predict(self, images: Tensor) -> Tensor:
            return (super().predict(images) * 100).round() / 100

    fine = make_teacher(0)
    coarse = Rounded(fine.module, ways=3, input_shape=(3, 16, 16))
    options = GradientOptions(source="zeroth-order")
    one, two = (Differentiable([teacher], options, generator=generator)[0] for teacher in (fine, coarse))
    assert two.source.step > 5 * one.source.step  # type: ignore[attr-defined]
