import math

import pytest
import torch
from torch import Tensor

from dfml.numerics.distillation import (
    centre_by_group,
    cosines,
    divergence,
    divergence_as_released,
    largest_by_group,
    log_probabilities,
    log_softmax_by_group,
    masked_mean,
    relational,
    rounding_unit,
    standardised,
)


@pytest.fixture
def answers() -> Tensor:
    return torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


@pytest.mark.parametrize("decimals", [1, 2, 3, 4])
def test_the_unit_of_rounded_answers_is_found(answers: Tensor, decimals: int) -> None:
    assert rounding_unit(torch.round(answers, decimals=decimals)) == pytest.approx(10**-decimals)


def test_the_unit_of_labels_and_of_full_precision(answers: Tensor) -> None:
    assert rounding_unit(torch.eye(5)[answers.argmax(-1)]) == 1.0
    assert rounding_unit(answers) is None
    assert rounding_unit(torch.tensor([[1.0, 1e-9]])) is None  # very sure, not rounded


def test_log_probabilities_by_hand() -> None:
    full = torch.tensor([[0.9, 0.09999, 1e-9]])
    assert torch.allclose(log_probabilities(full, floor=1e-3), torch.tensor([[0.9, 0.09999, 1e-3]]).log())
    rounded = torch.tensor([[0.75, 0.25, 0.0]])
    expected = (torch.tensor([[0.75, 0.25, 0.005]]) / 1.005).log()
    assert torch.allclose(log_probabilities(rounded, floor=1e-4), expected)


def test_labels_alone_give_two_values() -> None:
    z = standardised(log_probabilities(torch.eye(4)[[0, 1, 2, 3, 1]], floor=1e-4), torch.ones(5, dtype=torch.bool))
    high, low = z.max(), z.min()
    assert ((z - high).abs().lt(1e-5) | (z - low).abs().lt(1e-5)).all()
    assert high.item() == pytest.approx(-3 * low.item(), rel=1e-4)


def test_standardised_has_unit_scale_over_what_was_asked(answers: Tensor) -> None:
    asked = torch.arange(50) % 3 > 0
    z = standardised(answers.log() * 7, asked)
    assert z[asked].std().item() == pytest.approx(1.0, abs=1e-4)
    assert z[asked].mean(1).abs().max() < 1e-5
    assert not z[~asked].any()


def test_an_api_that_always_says_the_same_is_no_division_by_zero() -> None:
    z = standardised(torch.full((10, 3), 0.2).log(), torch.ones(10, dtype=torch.bool))
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 4, 3)])
def test_centred_heads_have_centred_outputs(sizes: tuple[int, ...]) -> None:
    weights = torch.randn(9, 6)
    centred = centre_by_group(weights, sizes)
    x = torch.randn(4, 6)
    for part, plain in zip((x @ centred.T).split(sizes, 1), (x @ weights.T).split(sizes, 1), strict=True):
        assert torch.allclose(part, plain - plain.mean(1, keepdim=True), atol=1e-5)
    assert centre_by_group(weights[:, 0], sizes).shape == (9,)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4)])
def test_the_largest_of_a_group_counts_from_its_first(sizes: tuple[int, int]) -> None:
    outputs = torch.randn(5, 6)
    first, second = torch.split(outputs, list(sizes), 1)
    found = largest_by_group(outputs, sizes)
    assert found.tolist() == [[a.argmax().item(), b.argmax().item()] for a, b in zip(first, second, strict=True)]


def test_a_masked_mean_against_a_loop() -> None:
    difference, seen = torch.randn(5, 4), torch.rand(5, 4) < 0.5
    plain = [difference[i, j].item() ** 2 for i in range(5) for j in range(4) if seen[i, j]]
    assert masked_mean(difference.square(), seen.float()).item() == pytest.approx(sum(plain) / len(plain), rel=1e-5)
    assert masked_mean(difference.square(), torch.ones(5, 4)).item() == pytest.approx(
        masked_mean(difference.square(), None).item()
    )


def test_cosines_over_shared_entries_against_a_loop() -> None:
    seen = torch.rand(6, 12, generator=torch.Generator().manual_seed(1)) < 0.6
    rows = torch.randn(6, 12) * seen
    alike, shared = cosines(rows, seen.float())
    for i in range(6):
        for j in range(6):
            both = seen[i] & seen[j]
            assert shared[i, j] == both.sum()
            expected = torch.cosine_similarity(rows[i, both], rows[j, both], dim=0)
            assert alike[i, j].item() == pytest.approx(expected.item(), abs=1e-5)
    full, _ = cosines(rows, torch.ones(6, 12))
    assert torch.allclose(full, cosines(rows, None)[0], atol=1e-5)


def test_the_relational_term_against_a_loop() -> None:
    features, target = torch.randn(7, 5), torch.rand(7, 7)
    target = (target + target.T) / 2
    centred = features - features.mean(0)
    wanted, got = [], []
    for i in range(7):
        for j in range(7):
            if i != j:
                wanted.append(target[i, j].item())
                got.append(torch.cosine_similarity(centred[i], centred[j], dim=0).item())
    mean = sum(wanted) / len(wanted)
    variance = sum((w - mean) ** 2 for w in wanted) / len(wanted)
    error = sum((g - w) ** 2 for g, w in zip(got, wanted, strict=True)) / len(wanted)
    assert relational(features, target, None).item() == pytest.approx(error / variance, rel=1e-4)
    assert relational(features, target, torch.full((7, 7), 3.0)).item() == pytest.approx(error / variance, rel=1e-4)


def test_pairs_that_share_no_answer_do_not_count() -> None:
    features, target = torch.randn(4, 5), torch.rand(4, 4)
    target = (target + target.T) / 2
    weight = torch.ones(4, 4)
    weight[0, 3] = weight[3, 0] = 0
    before = relational(features, target, weight)
    target[0, 3] = target[3, 0] = 100.0
    assert relational(features, target, weight).item() == pytest.approx(before.item(), rel=1e-5)


def test_alike_answers_throughout_give_no_infinite_loss() -> None:
    assert math.isfinite(relational(torch.randn(5, 3), torch.ones(5, 5), None).item())


def test_divergence_by_hand_and_where_it_is_least() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    expected = (p * (p.log() - logits.log_softmax(-1))).sum() / 2
    assert divergence(p, logits).item() == pytest.approx(expected.item(), rel=1e-6)
    assert divergence(p, p.log()).item() == pytest.approx(0, abs=1e-6)


def test_the_released_divergence_loses_what_the_teacher_knows() -> None:
    """Its slope is that of -mean(p * softmax): at the teacher's own answer it still pushes, towards one-hot."""
    p = torch.tensor([[0.5, 0.3, 0.2]])
    logits = p.log().requires_grad_()
    (slope,) = torch.autograd.grad(divergence_as_released(p, logits), [logits])
    (expected,) = torch.autograd.grad(-(p * logits.softmax(-1)).mean(), [logits])
    assert torch.allclose(slope, expected)
    assert slope[0, 0] < -1e-3
    (right,) = torch.autograd.grad(divergence(p, logits), [logits])
    assert torch.allclose(right, torch.zeros(1, 3), atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4)])
def test_probabilities_of_a_group_are_its_own_softmax(sizes: tuple[int, int]) -> None:
    outputs = torch.randn(5, 6)
    first, second = torch.split(outputs, list(sizes), 1)
    found = log_softmax_by_group(outputs, sizes).exp()
    assert torch.allclose(found, torch.cat([first.softmax(1), second.softmax(1)], 1))
