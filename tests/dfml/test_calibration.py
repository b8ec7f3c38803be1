"""ICFIL's calibration loss against the formula, term by term."""

import math

import pytest
import torch

from dfml.numerics.calibration import calibration_loss, pairs


def test_the_formula_term_by_term(generator: torch.Generator) -> None:
    support, pseudo = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    labels, others, temperature = [0, 1, 1], [0, 1, 2, 1, 0], 0.7
    expected = 0.0
    for x, y in zip(support, labels, strict=True):
        bottom = sum(math.exp(float(x @ other) / temperature) for other in pseudo)
        for positive, z in zip(pseudo, others, strict=True):
            if y == z:
                expected -= math.log(math.exp(float(x @ positive) / temperature) / bottom)
    given = calibration_loss(support, torch.tensor(labels), pseudo, torch.tensor(others), temperature=temperature)
    assert given.item() == pytest.approx(expected, rel=1e-5)
    assert pairs(torch.tensor(labels), torch.tensor(others)) == 6


def test_it_is_log_m_where_all_pseudo_images_look_the_same() -> None:
    loss = calibration_loss(
        torch.eye(2), torch.tensor([0, 1]), torch.ones(4, 2), torch.tensor([0, 1, 1, 2]), temperature=1.0
    )
    assert loss.item() == pytest.approx(3 * math.log(4))


def test_descending_it_joins_an_image_with_its_class() -> None:
    support = torch.zeros(1, 2, requires_grad=True)
    pseudo = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = calibration_loss(support, torch.tensor([0]), pseudo, torch.tensor([0, 1]), temperature=1.0)
    (slope,) = torch.autograd.grad(loss, [support])
    assert slope[0, 0] < 0 < slope[0, 1]


def test_a_class_without_pseudo_images_adds_nothing() -> None:
    loss = calibration_loss(
        torch.ones(1, 2), torch.tensor([3]), torch.ones(2, 2), torch.tensor([0, 1]), temperature=1.0
    )
    assert loss.item() == 0
