"""DRO fusion: its step against finite differences, the worst task is worse, equal teachers are found again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml import dro
from dfml.dro import EMBEDDING, Predictor, loss, worst
from dfml.fusion import filled, transplant
from dfml.nets import weights

RATE, GAMMA = 0.03, 2.0
SUPPORT, QUERY = torch.tensor([0, 2, 3]), torch.tensor([1, 4])


@pytest.fixture
def points(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 7, generator=generator, dtype=torch.float64)


@pytest.fixture
def predictor(generator: torch.Generator) -> Predictor:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * EMBEDDING**-0.5

    return Predictor(draw(7, EMBEDDING), draw(7), draw(5, EMBEDDING))


def test_a_round_is_gradient_descent_through_the_support(points: Tensor, predictor: Predictor) -> None:
    """Differences of the whole round's loss along random directions, the way to the worst tasks held."""
    later = dro.step(predictor, points, SUPPORT, QUERY, rate=RATE, gamma=GAMMA)
    slope = [(before - after) / RATE for before, after in zip(predictor.parts, later.parts, strict=True)]

    def by_hand(weight: Tensor, bias: Tensor, tasks: Tensor) -> Predictor:
        apart = tasks[SUPPORT] @ weight.T + bias - points[SUPPORT]  # (n, d); the loss is half its square, mean over n
        moved = tasks.clone()
        moved[SUPPORT] -= RATE * apart @ weight / len(SUPPORT)
        return Predictor(weight - RATE * apart.T @ tasks[SUPPORT] / len(SUPPORT), bias - RATE * apart.mean(0), moved)

    there = by_hand(*predictor.parts)
    away = worst(there, points, QUERY, rate=RATE, gamma=GAMMA) - there.tasks[QUERY]

    def value(parts: list[Tensor]) -> float:
        moved = by_hand(*parts)
        return loss(moved, points, QUERY, moved.tasks[QUERY] + away).item()

    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        along = [torch.randn(part.shape, generator=random, dtype=torch.float64) for part in predictor.parts]
        ends = [
            value([part + sign * 1e-5 * way for part, way in zip(predictor.parts, along, strict=True)])
            for sign in (1, -1)
        ]
        told = sum((one * way).sum().item() for one, way in zip(slope, along, strict=True))
        assert told == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_the_worst_task_is_less_likely_and_gamma_keeps_it_near(points: Tensor, predictor: Predictor) -> None:
    here = predictor.tasks[QUERY]
    near, far = (worst(predictor, points, QUERY, rate=RATE, gamma=gamma) for gamma in (8.0, 0.5))
    values = [loss(predictor, points, QUERY, at).item() for at in (here, near, far)]
    assert values == sorted(values)
    assert values[0] < values[2]
    assert (near - here).norm() < (far - here).norm()


def test_equal_teachers_are_found_again(make_teacher: Any) -> None:
    teacher = make_teacher(0)
    config = BackboneConfig(width=16)
    found = filled(dro.fused([teacher, teacher], seed=0, rounds=150), teacher.input_shape, config)
    wanted = weights(transplant(teacher, config))
    for name, tensor in weights(found).items():
        assert (tensor - wanted[name]).norm() < 0.05 * wanted[name].norm() + 1e-3, name


def test_the_prediction_lies_amid_the_teachers_and_follows_its_seed(points: Tensor) -> None:
    points = points.float()
    one, same, other = (dro.learn(points, seed=seed, rounds=100, rate=RATE, gamma=GAMMA) for seed in (0, 0, 1))
    middle = one(one.tasks.mean(0, keepdim=True))[0]
    spread = (points - points.mean(0)).norm(dim=1).mean()
    assert (middle - points.mean(0)).norm() < spread / 2
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def test_other_architectures_are_refused(make_teacher: Any) -> None:
    teachers = [make_teacher(0), make_teacher(1)]
    weights_of = teachers[1].weights
    teachers[1].weights = lambda: {name: tensor[:4] for name, tensor in weights_of().items()}
    with pytest.raises(ValueError, match="architectures differ"):
        dro.fused(teachers, seed=0, rounds=1)
