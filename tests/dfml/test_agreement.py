"""Trust in APIs: the closed form against loops, and that what answers at random counts for nothing."""

import math

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import PqdOptions
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import weights
from dfml.numerics.agreement import agreement, trust


def profiles_of(asked: Tensor, answers: list[Tensor]) -> list[Tensor]:
    found = []
    for api, given in enumerate(answers):
        held = asked[:, api]
        found.append(torch.where(held[:, None], given - given[held].mean(0), 0.0))
    return found


def honest(count: int, ways: int, generator: torch.Generator, hidden: Tensor) -> Tensor:
    """Probabilities that follow from what is in the images, as each API's classes see it."""
    seen = torch.randn(hidden.shape[1], ways, generator=generator)
    return (hidden[:count] @ seen).softmax(-1)


@pytest.fixture
def zoo(generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Six honest APIs of 3 to 5 classes and two that answer at random, about 300 images."""
    hidden = torch.randn(300, 4, generator=generator)
    answers = [honest(300, 3 + api % 3, generator, hidden) for api in range(6)]
    answers += [torch.rand(300, ways, generator=generator) for ways in (3, 5)]
    return answers, torch.ones(300, 8, dtype=torch.bool)


def test_agreement_against_loops(generator: torch.Generator) -> None:
    asked = torch.rand(12, 3, generator=generator) < 0.8
    profiles = profiles_of(asked, [torch.rand(12, ways, generator=generator) for ways in (2, 3, 4)])
    expected = []
    for t in range(3):
        above, below = 0.0, 0.0
        for s in {0, 1, 2} - {t}:
            kernels = []
            for api in (t, s):
                kernel = {
                    (i, j): (profiles[api][i] @ profiles[api][j]).item() for i in range(12) for j in range(12) if i != j
                }
                length = math.sqrt(sum(value**2 for value in kernel.values()))
                kernels.append({at: value / length for at, value in kernel.items()})
            above += sum(kernels[0][at] * kernels[1][at] for at in kernels[0])
            n_t, n_s, n_both = (int(held.sum()) for held in (asked[:, t], asked[:, s], asked[:, t] & asked[:, s]))
            pairs = n_both * (n_both - 1)
            below += pairs / math.sqrt(n_t * (n_t - 1) * n_s * (n_s - 1))
        expected.append(above / below)
    assert agreement(profiles, asked)[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("images", "shown"), [(200, 1.0), (100, 0.4)])
def test_chance_is_how_far_random_answers_scatter(generator: torch.Generator, images: int, shown: float) -> None:
    asked = torch.rand(images, 60, generator=generator) < shown
    found, chance = agreement(
        profiles_of(asked, [torch.rand(images, 6, generator=generator) for _ in range(60)]), asked
    )
    assert found.std().item() == pytest.approx(chance.mean().item(), rel=0.35)
    assert abs(found.mean().item()) < chance.mean().item()


def test_few_answers_are_no_ground_for_distrust(generator: torch.Generator) -> None:
    hidden = torch.randn(12, 4, generator=generator)
    answers = [honest(12, 4, generator, hidden) for _ in range(6)]
    asked = torch.rand(12, 6, generator=generator) < 0.6
    assert trust(*agreement(profiles_of(asked, answers), asked)).min() == 1


@pytest.mark.parametrize("shown", [1.0, 0.5])
def test_random_answers_are_not_trusted_and_honest_ones_are(
    zoo: tuple[list[Tensor], Tensor], shown: float, generator: torch.Generator
) -> None:
    answers, asked = zoo
    asked = torch.rand(asked.shape, generator=generator) < shown
    found = trust(*agreement(profiles_of(asked, answers), asked))
    assert found[:6].tolist() == [1.0] * 6
    assert found[6:].max() < 0.5


def test_an_api_that_always_says_the_same_is_not_trusted(zoo: tuple[list[Tensor], Tensor]) -> None:
    answers, asked = zoo
    answers[7] = torch.full_like(answers[7], 0.2)
    assert trust(*agreement(profiles_of(asked, answers), asked))[7] == 0


def test_where_nothing_tells_them_apart_all_are_trusted(zoo: tuple[list[Tensor], Tensor]) -> None:
    answers, asked = zoo
    two = trust(*agreement(profiles_of(asked[:, :2], [answers[0], answers[6]]), asked[:, :2]))
    assert two.tolist() == [1.0, 1.0]
    assert trust(torch.tensor([-0.1, -0.2, 0.0, -0.3]), torch.zeros(4)).tolist() == [1.0] * 4


def test_what_is_not_trusted_does_not_move_the_backbone(zoo: tuple[list[Tensor], Tensor], images: Tensor) -> None:
    """Of an API that always says the same, any other constant gives the same meta-model."""
    answers, _ = zoo
    asked = torch.ones(40, 4, dtype=torch.bool)

    def learned(constant: list[float]) -> dict[str, Tensor]:
        held = [one[:40].contiguous() for one in answers[:3]] + [torch.tensor([constant]).repeat(40, 1)]
        done = pqd.distil(Answers(images, held, asked), BackboneConfig(width=16), PqdOptions(steps=3, batch=8), seed=0)
        return weights(done.backbone)

    one, other = learned([0.2, 0.8]), learned([0.9, 0.1])
    assert all(torch.equal(one[name], other[name]) for name in one)
