"""PURER: every teacher weighs the same, one optimiser over the pseudo data, the switch, and what it learns on a toy."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from contracts.gradients import GradientOptions
from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import PurerOptions
from dfml import curriculum
from dfml.access import PROBE
from dfml.datasets import Dataset
from dfml.evaluate import evaluate
from dfml.fusion import average
from dfml.methods import purer
from dfml.nets.learner import build_learner
from dfml.numerics.inversion import Terms, inversion_loss, noise_images, roll
from dfml.numerics.meta_learners import functional_learner, maml_loss
from dfml.teachers import ModuleTeacher

CONFIG = BackboneConfig(width=16)
SMALL = {
    "updates": 3,
    "images_per_class": 4,
    "ways": 3,
    "shots": 1,
    "episodes": 2,
    "adversarial_from": 1,
    "patience": 1,
}
MakeTeacher = Callable[..., ModuleTeacher]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def options() -> PurerOptions:
    return PurerOptions(**SMALL)  # type: ignore[arg-type]


def test_every_teacher_weighs_the_same(make_teacher: MakeTeacher, options: PurerOptions) -> None:
    """The released code adds the running sum of the losses each time, so that the first teacher weighs most."""
    teachers = [make_teacher(seed) for seed in range(3)]
    images = [noise_images(12, (3, 16, 16), seeded(seed)).requires_grad_() for seed in range(3)]
    optimiser = torch.optim.Adam(images, lr=0.1)
    loss = curriculum.invert(teachers, images, [2, 0, 1], optimiser, options, generator=seeded(7))
    labels, random, losses = torch.arange(3).repeat_interleave(4), seeded(7), []
    for index in (2, 0, 1):
        moved = roll(images[index], shift=2, flip=False, generator=random)
        losses.append(inversion_loss(teachers[index], moved, labels, Terms(batch_norm=options.batch_norm)).total)
    assert loss == pytest.approx(sum(value.item() for value in losses) / 3, rel=1e-5)
    for image, slope in zip(images, torch.autograd.grad(torch.stack(losses).sum(), images), strict=True):
        assert image.grad is not None
        assert torch.allclose(image.grad, slope, atol=1e-7)


def test_images_of_teachers_not_drawn_stay(make_teacher: MakeTeacher, options: PurerOptions) -> None:
    teachers = [make_teacher(0), make_teacher(1)]
    images = [noise_images(12, (3, 16, 16), seeded(seed)).requires_grad_() for seed in range(2)]
    optimiser = torch.optim.Adam(images, lr=0.1)
    for drawn in ([0, 1], [0]):
        before = [image.detach().clone() for image in images]
        curriculum.invert(teachers, images, drawn, optimiser, options, generator=seeded(0))
        curriculum.take_step(optimiser, images)
        moved = [not torch.equal(image, old) for image, old in zip(images, before, strict=True)]
        assert moved == [index in drawn for index in range(2)]
        assert all(image.min() >= 0 and image.max() <= 1 for image in images)


def test_the_switch_asks_at_its_first_update_and_then_when_learning_stalls() -> None:
    switch = curriculum.Switch(first=2, patience=2)
    accuracies = [0.9, 0.1, 0.1, 0.5, 0.5, 0.6, 0.6, 0.4, 0.3, 0.3, 0.2]
    asked = [update for update, accuracy in enumerate(accuracies) if switch.asks(update, accuracy)]
    # update 2 is the first; best 0.5, stale once, best 0.6, stale twice (7); forgotten: best 0.3, stale twice (10)
    assert asked == [2, 7, 10]


def test_harder_episodes_are_harder_and_reach_support_and_query(make_teacher: MakeTeacher) -> None:
    options = PurerOptions(**{**SMALL, "adversarial": 10.0, "length": 0.0})  # type: ignore[arg-type]
    teachers = [make_teacher(0)]
    images = [noise_images(12, (3, 16, 16), seeded(0)).requires_grad_()]
    learner = build_learner(CONFIG, (3, 16, 16), ways=3, generator=seeded(0))
    functions = functional_learner(learner)
    call, theta = functions.logits, functions.parameters
    curriculum.ask_for_harder(functions, images, teachers, options, generator=seeded(3))
    slope = images[0].grad
    assert slope is not None
    assert (slope.abs().flatten(1).sum(1) > 0).all()  # one image of each class is support, three are query
    assert all(value.grad is None for value in theta.values())

    def loss(shown: Tensor) -> float:
        task = curriculum.episode(curriculum.by_class([shown], teachers), options, generator=seeded(3))
        adapted = maml_loss(call, theta, task, steps=1, lr=0.01, second_order=False)
        return adapted[0].item()

    with torch.no_grad():
        step = 0.5 * slope / slope.norm()
        assert loss(images[0] - step) > loss(images[0])


def test_one_update_is_the_hand_written_one(make_teacher: MakeTeacher) -> None:
    """One inner step, one episode, second order: the gradient of the query's loss at theta - lr * gradient of the support's."""
    options = PurerOptions(**{**SMALL, "episodes": 1, "shift": 0})  # type: ignore[arg-type]
    teachers, images = [make_teacher(0)], [noise_images(12, (3, 16, 16), seeded(0))]
    learner = build_learner(CONFIG, (3, 16, 16), ways=3, generator=seeded(0))
    functions = functional_learner(learner)
    call, theta = functions.logits, functions.parameters
    start = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    task = curriculum.episode(curriculum.by_class(images, teachers), options, generator=seeded(3))
    inner = F.cross_entropy(call(start, task.support), task.support_labels)
    slopes = torch.autograd.grad(inner, list(start.values()), create_graph=True)
    moved = {name: value - 0.01 * slope for (name, value), slope in zip(start.items(), slopes, strict=True)}
    query = F.cross_entropy(call(moved, task.query), task.query_labels)
    expected = torch.autograd.grad(query, list(start.values()))

    outer = torch.optim.SGD(theta.values(), lr=0.5)
    loss, _ = curriculum.learn(functions, outer, curriculum.by_class(images, teachers), options, generator=seeded(3))
    assert loss == pytest.approx(query.item(), rel=1e-5)
    for value, before, slope in zip(theta.values(), start.values(), expected, strict=True):
        assert torch.allclose(value, before - 0.5 * slope, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(make_teacher: MakeTeacher, options: PurerOptions) -> None:
    def run(seed: int) -> Tensor:
        learned = purer.train([make_teacher(0), make_teacher(1, ways=4)], CONFIG, options, seed=seed)
        return torch.cat([p.detach().flatten() for p in [*learned.backbone.parameters(), *learned.head.parameters()]])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_passes_are_counted_and_it_can_be_stopped(make_teacher: MakeTeacher, options: PurerOptions) -> None:
    teachers = [make_teacher(0), make_teacher(1)]

    def stop(done: int, total: int, metrics: dict[str, float]) -> None:
        assert total == 3
        assert metrics["harder"] in (0, 1)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purer.train(teachers, CONFIG, options, seed=0, on_step=stop)
    for teacher in teachers:
        assert (teacher.queries, teacher.forward_passes, teacher.backward_passes) == (0, 24, 24)


def test_it_can_start_from_the_average(make_teacher: MakeTeacher) -> None:
    options = PurerOptions(**{**SMALL, "start": "average"})  # type: ignore[arg-type]
    teachers = [make_teacher(0), make_teacher(1)]
    learner = purer.start(teachers, CONFIG, options, (3, 16, 16), seeded(0))
    mean = average(teachers, CONFIG)
    assert torch.equal(learner.backbone.body.blocks[0].conv.weight, mean.body.blocks[0].conv.weight)  # type: ignore[union-attr, index]


def test_options_that_cannot_work_are_refused(make_teacher: MakeTeacher) -> None:
    with pytest.raises(ValidationError, match="the rest are the queries"):
        PurerOptions(shots=20)
    with pytest.raises(ValueError, match="the teachers know 3 classes"):
        purer.train([make_teacher(0)], CONFIG, PurerOptions(), seed=0)


def test_better_than_its_own_start_on_a_toy(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    options = PurerOptions(
        updates=20, images_per_class=8, adversarial_from=10, patience=3, ways=3, shots=2, episodes=2, inner_steps=2,
        inner_rate=0.05, outer_rate=5e-3, second_order=False,
    )  # fmt: skip
    evaluation = Evaluation(dataset="blobs", ways=3, shots=[5], episodes=100)
    learned = purer.train(blob_teachers, CONFIG, options, seed=0)
    started = build_learner(CONFIG, (3, 16, 16), ways=3, generator=seeded(0)).backbone
    mine, before = evaluate(learned.backbone, blobs, evaluation), evaluate(started, blobs, evaluation)
    assert mine.accuracy["5"] > before.accuracy["5"] + mine.interval["5"] + before.interval["5"]


def test_better_than_its_own_start_from_answers_alone(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    """Zeroth-order gradients, within a budget that ends before the updates do."""
    options = PurerOptions(
        updates=25, images_per_class=6, adversarial=0, ways=3, shots=2, episodes=2, learner="protonet", outer_rate=5e-3,
        image_rate=0.05, gradients=GradientOptions(source="zeroth-order", directions=8, frequencies=6),
    )  # fmt: skip
    before = sum(teacher.queries for teacher in blob_teachers)
    learned = purer.train(blob_teachers, CONFIG, options, queries=14_000, queries_per_api=3_400, seed=0)
    spent = sum(teacher.queries for teacher in blob_teachers) - before
    assert spent == 4 * (PROBE + 20 * purer.inversion_cost(options, ways=3)) <= 14_000
    evaluation = Evaluation(dataset="blobs", ways=3, shots=[5], episodes=100)
    started = build_learner(CONFIG, (3, 16, 16), ways=3, generator=seeded(0)).backbone
    mine, first = evaluate(learned.backbone, blobs, evaluation), evaluate(started, blobs, evaluation)
    assert mine.accuracy["5"] > first.accuracy["5"] + mine.interval["5"] + first.interval["5"]
