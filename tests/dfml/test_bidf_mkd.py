"""BiDf-MKD: a visit and a replay by hand, its trigger, and a meta-model better than it began, on a toy."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import BidfMkdOptions
from dfml import visits
from dfml.access import PROBE
from dfml.methods import METHODS, bidf_mkd
from dfml.methods.bidf_mkd import Plateau
from dfml.nets import weights
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.meta_learners import functional_learner
from dfml.recovery import RecoveredSet, Recovery, recover
from dfml.replay import split_task
from dfml.teachers import ModuleTeacher
from dfml.visits import visit_cost
from tests.dfml.black_boxes import SMALL, Painted, recovery

MakeTeacher = Callable[..., ModuleTeacher]


@pytest.fixture
def teachers(make_teacher: MakeTeacher) -> list[ModuleTeacher]:
    return [make_teacher(seed, ways=ways) for seed, ways in enumerate((3, 5, 2))]


def test_a_surrogate_learns_from_visit_to_visit(tiny: BackboneConfig, teachers: list[ModuleTeacher]) -> None:
    options = BidfMkdOptions.model_validate(
        {**SMALL.model_dump(), "source": "surrogate", "antithetic": False, "updates": 2}
    )
    one, two = (bidf_mkd.train(teachers[:2], tiny, options, queries=150, seed=0) for _ in range(2))
    assert sum(teacher.queries for teacher in teachers) == 2 * one.plan.queries <= 300
    assert all(torch.equal(tensor, weights(two.backbone)[name]) for name, tensor in weights(one.backbone).items())


@pytest.fixture
def student(tiny: BackboneConfig) -> Learner:
    return build_learner(tiny, (3, 16, 16), ways=3, generator=torch.Generator().manual_seed(0))


def unrolled(student: Learner, losses: Callable[[torch.nn.Module], Tensor], steps: int, lr: float) -> None:
    """Plain gradient descent on the module itself, batch norm by the batch."""
    for _ in range(steps):
        student.zero_grad()
        losses(student).backward()
        with torch.no_grad():
            for value in student.parameters():
                value -= lr * value.grad if value.grad is not None else 0


@pytest.mark.parametrize("released", [False, True])
def test_a_visit_against_a_hand_unrolled_one(
    student: Learner, make_teacher: MakeTeacher, released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First order: inner loop by hand on a copy, its outer gradient at the end is the meta-gradient."""
    options = SMALL.model_copy(update={"second_order": False, "released_divergence": released})
    teacher = make_teacher(0)
    sets = [recover(recovery(teacher, options, seed=seed)) for seed in (1, 2)]
    given_students = []

    def recovered(_: Recovery, *, student: torch.nn.Module | None = None, boundary: float = 0.0) -> RecoveredSet:
        given_students.append(student)
        return sets[len(given_students) - 1]

    monkeypatch.setattr(bidf_mkd, "recover", recovered)
    functions = functional_learner(student)
    parameters = functions.parameters
    loss, agreement, kept = bidf_mkd.visit(student, functions, recovery(teacher, options), boundary=1.0)
    got = torch.autograd.grad(loss, list(parameters.values()))

    def distilled(images: RecoveredSet) -> Callable[[torch.nn.Module], Tensor]:
        def loss(net: torch.nn.Module) -> Tensor:
            logits, told = net(images.images), images.answers
            if released:
                return (told * (told.log() - logits.softmax(-1))).mean()
            return (told * (told.log() - logits.log_softmax(-1))).sum(-1).mean()

        return loss

    plain = copy.deepcopy(student).train()
    unrolled(plain, distilled(sets[0]), options.inner_steps, options.inner_rate)
    outer = distilled(sets[1])(plain)
    wanted = torch.autograd.grad(outer, list(plain.parameters()))
    assert loss.item() == pytest.approx(outer.item(), rel=1e-4)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(got, wanted, strict=True))
    assert kept == (sets[0], sets[1])
    assert 0 <= agreement <= 1

    first, adapted = given_students
    assert first is None
    images = sets[0].images
    assert adapted is not None
    assert torch.allclose(adapted(images), plain(images), atol=0.1)  # the same, but for the variance's n or n - 1
    assert torch.allclose(adapted(images)[:2], adapted(images[:2]), atol=1e-5)  # and not by the batch


def test_replay_against_a_hand_unrolled_one(student: Learner, generator: torch.Generator) -> None:
    options = SMALL.model_copy(update={"second_order": False, "inner_rate": 0.1})
    task = split_task(torch.rand(2, 5, 3, 16, 16, generator=generator), shots=2)
    loss, accuracy = bidf_mkd.replay(functional_learner(student), task, options)
    plain = copy.deepcopy(student).train()
    unrolled(plain, lambda net: F.cross_entropy(net(task.support)[:, :2], task.support_labels), 2, 0.1)
    logits = plain(task.query)[:, :2]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, task.query_labels).item(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(-1) == task.query_labels).float().mean().item())


def test_the_trigger() -> None:
    plateau = Plateau(2)
    for accuracy in (0.2, 0.3, 0.3):
        plateau.saw(accuracy)
        assert not plateau.reached
    plateau.saw(0.1)
    assert plateau.reached
    plateau.reset()
    assert not plateau.reached


def test_a_plateau_brings_the_next_visit_forward(
    make_teacher: MakeTeacher, tiny: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "SPEND_BY", 1.0)

    def visited_at(patience: int) -> list[int]:
        options = SMALL.model_copy(update={"updates": 10, "patience": patience, "learning_rate": 1e-9, "tasks": 1})
        spent = [0.0]
        bidf_mkd.train(
            [make_teacher(0), make_teacher(1)],
            tiny,
            options,
            queries=2 * (108 + PROBE),
            seed=0,
            on_step=lambda step, steps, metrics: spent.append(metrics["queries"]),
        )
        return [update for update in range(10) if spent[update + 1] > spent[update]]

    assert visited_at(1000) == [0, 5]
    assert visited_at(1)[1] < 5


# --- the whole


class Coloured:
    """Sure of a class by how far an image's mean colour goes its way: three ways drawn from a seed."""

    ways, input_shape = 3, (3, 16, 16)

    def __init__(self, seed: int) -> None:
        self.queries = 0
        self.colours = F.normalize(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)), dim=1)

    def predict(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        return ((images.mean((2, 3)) - 0.5) @ self.colours.T * 25).softmax(-1)


def test_better_than_its_own_random_start_on_a_toy(tiny: BackboneConfig) -> None:
    """Tasks of new colours under noise, adapted to as in training: the meta-model against the network it began as."""
    options = SMALL.model_copy(
        update={
            "images_per_class": 5,
            "iterations": 8,
            "generator_rate": 0.02,
            "updates": 30,
            "inner_rate": 0.03,
            "learning_rate": 5e-3,
            "second_order": False,
        }
    )
    start = build_learner(tiny, Coloured.input_shape, ways=3, generator=torch.Generator().manual_seed(0))
    result = bidf_mkd.train([Coloured(seed) for seed in range(3)], tiny, options, queries=3_500, seed=0)
    learned = build_learner(tiny, Coloured.input_shape, ways=3, generator=torch.Generator().manual_seed(0))
    learned.backbone, learned.head = result.backbone, result.head

    generator = torch.Generator().manual_seed(9)
    hits = {start: 0.0, learned: 0.0}
    for _ in range(20):
        colours = F.normalize(torch.randn(3, 3, generator=generator), dim=1)
        noise = torch.randn(3, 10, 3, 16, 16, generator=generator)
        task = split_task((0.5 + 0.15 * colours[:, None, :, None, None] + 0.2 * noise).clamp(0, 1), shots=5)
        for student in hits:
            hits[student] += bidf_mkd.replay(functional_learner(student), task, options)[1] / 20
    assert hits[learned] > hits[start] + 0.1


def test_the_same_seed_gives_the_same_weights(teachers: list[ModuleTeacher], tiny: BackboneConfig) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        return weights(bidf_mkd.train(teachers, tiny, SMALL, queries=200, seed=seed).backbone)

    one, two, other = run(1), run(1), run(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["blocks.0.conv.weight"], other["blocks.0.conv.weight"])


def test_what_is_asked_is_what_was_planned(teachers: list[ModuleTeacher], tiny: BackboneConfig) -> None:
    result = bidf_mkd.train(teachers, tiny, SMALL, queries=600, queries_per_api=250, seed=0)
    assert sum(teacher.queries for teacher in teachers) == result.plan.queries <= 600
    assert all(teacher.queries <= 250 for teacher in teachers)
    assert len(result.plan.visits) >= 3
    for api, teacher in enumerate(teachers):
        cost = visit_cost(SMALL, ways=teacher.ways, images=2, iterations=2)
        assert teacher.queries == result.plan.visits.count(api) * cost + PROBE
    assert set(result.metrics) == {"loss", "accuracy", "queries", "classes"}
    assert result.metrics["queries"] == result.plan.queries
    assert not result.backbone.training


@pytest.mark.parametrize(
    "change",
    [
        {"released_divergence": True, "boundary_from": 0, "boundary": 2.0, "diversity": 3.0},
        {"space": "latent", "frequencies": None, "second_order": False, "orthogonal": True},
        {"memory": 2, "shots": 1, "queries": 1, "ways": 9, "patience": 1},
        {"eight_bit": True, "images_per_class": 1, "iterations": None},
    ],
    ids=str,
)
def test_every_option_is_taken(teachers: list[ModuleTeacher], tiny: BackboneConfig, change: dict[str, object]) -> None:
    result = bidf_mkd.train(teachers, tiny, SMALL.model_copy(update=change), queries=450, seed=0)
    assert np.isfinite(list(result.metrics.values())).all()


def test_progress_is_reported_and_can_stop(teachers: list[ModuleTeacher], tiny: BackboneConfig) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_two(step: int, steps: int, metrics: dict[str, float]) -> None:
        seen.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bidf_mkd.train(teachers, tiny, SMALL, queries=450, seed=0, on_step=stop_at_two)
    assert seen == [(1, 4), (2, 4)]


def test_apis_of_different_shapes_are_refused(make_teacher: MakeTeacher, tiny: BackboneConfig) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        bidf_mkd.train([make_teacher(0), Painted()], tiny, SMALL, queries=450, seed=0)
    with pytest.raises(ValueError, match="at least one API"):
        bidf_mkd.train([], tiny, SMALL, queries=450, seed=0)


def test_the_table_of_methods() -> None:
    for name, method in METHODS.items():
        assert method.options().name == name
    assert [name for name, method in METHODS.items() if not method.adaptive] == ["pqd", "distill_average"]
