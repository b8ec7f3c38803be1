"""Images recovered from answers alone: what they cost, whose they are, and what keeps them apart."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from contracts.methods import BidfMkdOptions
from dfml.access import PROBE, probe
from dfml.methods import bidf_mkd
from dfml.numerics.inversion import likeness
from dfml.recovery import boundary_loss, recover
from dfml.visits import visit_cost
from tests.dfml.black_boxes import SMALL, Painted, Wide, recovery

COSTS = {(True, 2): 4, (False, 2): 3, (False, 7): 8}


@pytest.mark.parametrize("space", ["pixels", "latent"])
@pytest.mark.parametrize(("antithetic", "directions"), [(True, 2), (False, 2), (False, 7)])
def test_a_set_costs_what_the_formula_says(antithetic: bool, directions: int, space: str) -> None:
    teacher = Painted()
    options = SMALL.model_copy(
        update={"antithetic": antithetic, "directions": directions, "space": space, "frequencies": None}
    )
    found = recover(recovery(teacher, options))
    assert teacher.queries == 3 * 2 * (2 * COSTS[antithetic, directions] + 1)
    assert 2 * teacher.queries == visit_cost(options, ways=3, images=2, iterations=2)
    assert found.images.shape == (6, 3, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(found.answers, teacher.predict(found.images))


@pytest.mark.parametrize(("source", "cost", "eight_bit"), [("surrogate", 1, False), ("guided", 4, True)])
def test_a_set_by_a_surrogate_costs_what_the_formula_says_and_finds_its_classes(
    source: str, cost: int, eight_bit: bool
) -> None:
    teacher, iterations = Wide(), 8
    change = {"source": source, "antithetic": False, "eight_bit": eight_bit, "step": 0.5, "generator_rate": 0.05}
    options = SMALL.model_copy(update={"images_per_class": 3, "iterations": iterations, **change})
    told = recovery(teacher, options)
    found = recover(replace(told, source=bidf_mkd.source(teacher, None, options=options, generator=told.generator)))
    assert teacher.queries == 3 * 3 * (cost * iterations + 1)
    assert 2 * teacher.queries == visit_cost(options, ways=3, images=3, iterations=iterations)
    assert (found.answers.argmax(-1) == found.labels).float().mean() > 0.7
    assert teacher.rounded == eight_bit


def test_what_a_surrogate_cannot_do_is_refused_whole() -> None:
    with pytest.raises(ValidationError) as refused:
        BidfMkdOptions(source="guided", antithetic=True, orthogonal=True, space="latent", frequencies=None)
    assert {error["loc"] for error in refused.value.errors()} == {("space",), ("antithetic",), ("orthogonal",)}


@pytest.mark.parametrize("space", ["pixels", "latent"])
def test_painted_images_are_in_part_procedural_ones_each_another(space: str) -> None:
    options = SMALL.model_copy(update={"canvas": 0.9, "space": space, "frequencies": None})
    one, two = Painted(), Painted()
    found, again = recover(recovery(one, options)), recover(recovery(two, options))
    plain = recover(recovery(Painted(), options.model_copy(update={"canvas": 0.0})))
    assert torch.equal(found.images, again.images)
    assert one.queries == 3 * 2 * (2 * COSTS[True, 2] + 1)
    painted = (found.images - 0.1 * plain.images) / 0.9  # the generator has hardly moved, and differently at most
    assert painted.min() > -0.12
    assert painted.max() < 1.12
    apart = (painted[:, None] - painted[None]).abs().mean((2, 3, 4))
    assert apart[~torch.eye(6, dtype=torch.bool)].min() > 0.05


def test_images_on_the_way_are_those_of_a_shorter_recovery() -> None:
    way: dict[int, Tensor] = {}
    recover(recovery(Painted(), SMALL.model_copy(update={"iterations": 3})), on_iteration=way.__setitem__)
    shorter = recover(recovery(Painted(), SMALL.model_copy(update={"iterations": 2})))
    assert sorted(way) == [0, 1, 2, 3]
    assert torch.equal(way[2], shorter.images)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"antithetic": False, "frequencies": None, "directions": 20, "step": 0.005},  # the paper's estimator
        {"space": "latent", "frequencies": None, "generator_rate": 0.1, "directions": 3},
        {"eight_bit": True},
    ],
    ids=str,
)
def test_recovered_images_are_of_the_class_they_were_made_for(change: dict[str, object]) -> None:
    options = SMALL.model_copy(update={"images_per_class": 3, "iterations": 30, "generator_rate": 0.02, **change})
    found = recover(recovery(Painted(), options))
    untouched = recover(recovery(Painted(), options.model_copy(update={"generator_rate": 1e-12})))
    own = torch.arange(9), found.labels
    assert (found.answers.argmax(-1) == found.labels).float().mean() > 0.7
    assert found.answers[own].log().mean() > untouched.answers[own].log().mean() + 0.3
    if options.eight_bit:
        assert torch.allclose((found.images * 255).round() / 255, found.images, atol=1e-7)


def test_answers_of_two_decimals_are_enough() -> None:
    teacher = Painted(decimals=2)
    unit = probe(teacher, torch.Generator().manual_seed(0))
    assert unit == pytest.approx(0.01)
    assert teacher.queries == PROBE
    options = SMALL.model_copy(update={"images_per_class": 3, "iterations": 30, "generator_rate": 0.02})
    found = recover(recovery(teacher, options, unit=unit))
    assert (found.answers.argmax(-1) == found.labels).float().mean() > 0.7
    assert recovery(teacher, options, unit=unit).step > recovery(teacher, options).step
    assert recovery(teacher, options, unit=unit).floor == pytest.approx(0.005)
    assert recovery(teacher, SMALL.model_copy(update={"step": 0.3}), unit=unit).step == 0.3


def test_the_boundary_loss_by_hand() -> None:
    answers = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    student = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    assert torch.allclose(boundary_loss(answers, student), torch.tensor([-0.4, 0.0]))


def test_likeness_by_hand() -> None:
    image = torch.zeros(3, 4, 4)
    image[0] = 1
    other = torch.zeros(3, 4, 4)
    other[1] = 1
    labels = torch.tensor([0, 0, 1, 1])
    assert likeness(torch.stack([image, image, other, other]), labels).item() == pytest.approx(1, abs=1e-5)
    assert likeness(torch.stack([image, other, image, other]), labels).item() == pytest.approx(-1, abs=1e-5)
    assert likeness(torch.stack([image, other]), torch.tensor([0, 1])).item() == 0  # no two of a class


def test_images_of_a_class_are_kept_apart() -> None:
    options = SMALL.model_copy(update={"images_per_class": 4, "iterations": 20, "generator_rate": 0.02})

    def alike(diversity: float) -> float:
        found = recover(recovery(Painted(), options.model_copy(update={"diversity": diversity})))
        return likeness(found.images, found.labels).item()

    assert alike(5.0) < alike(0.0) - 0.1


def test_boundary_images_are_those_on_which_a_student_is_further_off() -> None:
    """A student of the same kind that is less sure: with the term, the images are where both differ more, still agreeing."""
    options = SMALL.model_copy(update={"images_per_class": 4, "iterations": 30, "generator_rate": 0.02})

    class Unsure(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) * 8

    def gap(boundary: float) -> Tensor:
        found = recover(recovery(Painted(), options), student=Unsure(), boundary=boundary)
        return -boundary_loss(found.answers, Unsure()(found.images).softmax(-1)).mean()

    assert gap(3.0) > gap(0.0)


def test_noise_has_no_frequencies() -> None:
    with pytest.raises(ValueError, match="latent space"):
        BidfMkdOptions(space="latent")
