"""FREE: its meta step by hand, its walk by hand, and a meta-model better than it began, on a toy."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation
from contracts.methods import FreeOptions
from dfml.datasets import Dataset
from dfml.evaluate import evaluate
from dfml.methods import free
from dfml.nets.generator import Generator, build_generator
from dfml.nets.learner import build_learner
from dfml.numerics.inner_loop import functional
from dfml.numerics.inversion import Recovered, disagreement, invert_generator, roll
from dfml.numerics.meta_learners import functional_learner
from dfml.replay import TaskMemory
from dfml.teachers import ModuleTeacher

SMALL = {
    "epochs": 2, "warm_up": 1, "images_per_class": 4, "latent": 4, "generator_width": 2, "generator_steps": 2,
    "conditional": True, "ways": 3, "shots": 1, "queries": 3, "replay_tasks": 2, "patience": 1, "inner_steps": 1,
}  # fmt: skip
MakeTeacher = Callable[..., ModuleTeacher]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_generator() -> Generator:
    return build_generator(latent=4, classes=3, shape=(3, 16, 16), width=2, generator=seeded(0))


@pytest.mark.parametrize("which", ["last", "all"])
def test_the_meta_step_is_the_hand_written_one(make_teacher: MakeTeacher, which: str) -> None:
    """Two steps at one teacher: Adam's first step is `rate * g / (|g| + eps)`, in the copies and in the meta-generator."""
    teacher, net = make_teacher(0), small_generator()
    options = FreeOptions(**SMALL, batch_norm=0, meta_gradient=which, generator_rate=0.01, latent_rate=0.02)  # type: ignore[arg-type]
    weights = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    random, labels = seeded(5), torch.arange(3).repeat(4)
    z = torch.randn(12, 4, generator=random).requires_grad_()

    def slopes(now: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, ...]:
        images = torch.func.functional_call(net, now, (noise, labels))
        moved = roll(images, shift=2, flip=True, generator=random)
        loss = F.cross_entropy(teacher.logits(moved), labels)
        return torch.autograd.grad(loss, [*now.values(), noise])

    *first, first_z = slopes(weights, z)
    moved = {name: w - 0.01 * g / (g.abs() + 1e-8) for (name, w), g in zip(weights.items(), first, strict=True)}
    *second, _ = slopes(moved, z - 0.02 * first_z / (first_z.abs() + 1e-8))
    wanted = second if which == "last" else [a + b for a, b in zip(first, second, strict=True)]

    meta = torch.optim.Adam(net.parameters(), lr=options.meta_rate)
    free.five(net, meta, [teacher], options, student=None, generator=seeded(5))
    scale = max(slope.abs().max().item() for slope in wanted)
    for (name, now), before, slope in zip(net.named_parameters(), weights.values(), wanted, strict=True):
        assert now.grad is not None
        assert torch.allclose(now.grad, slope, atol=2e-3 * scale), name
        large = slope.abs() > 0.02 * scale  # where rounding cannot turn the sign
        expected = before - options.meta_rate * slope.sign()
        assert torch.allclose(now[large], expected[large], atol=1e-5), name


def test_the_meta_optimiser_is_one_and_stays(make_teacher: MakeTeacher) -> None:
    """A fresh Adam each epoch would move by the sign of the slope alone: the second step here depends on the first."""
    net, options = small_generator(), FreeOptions(**SMALL)  # type: ignore[arg-type]
    meta = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in (1, 2):
        free.five(net, meta, [make_teacher(0), make_teacher(1)], options, student=None, generator=seeded(0))
        assert {int(state["step"]) for state in meta.state.values()} == {step}


def test_the_walk_with_sgd_is_the_sum_of_the_slopes_on_the_way(make_teacher: MakeTeacher) -> None:
    options = FreeOptions(**SMALL, align_by="sgd", align_rate=0.1, align_step=0.5)  # type: ignore[arg-type]
    learner = build_learner(BackboneConfig(width=16), (3, 16, 16), ways=3, generator=seeded(0))
    call, theta = functional(learner, batch_norm="batch")
    before = {name: value.detach().clone() for name, value in theta.items()}
    batches = []
    for seed in range(2):
        images = torch.rand(6, 3, 16, 16, generator=seeded(seed))
        batches.append((images, make_teacher(seed).predict(images)))
    now = {name: value.clone().requires_grad_() for name, value in before.items()}
    for images, answers in batches:
        loss = (answers * (answers.log() - call(now, images).log_softmax(-1))).sum(1).mean()
        slopes = torch.autograd.grad(loss, list(now.values()))
        now = {name: value - 0.1 * g for (name, value), g in zip(now.items(), slopes, strict=True)}
    free.align(call, theta, batches, options)
    for name, value in theta.items():
        assert torch.allclose(value, before[name] - 0.5 * (before[name] - now[name]), atol=1e-5), name


def test_the_walk_raises_the_inner_product_of_the_slopes() -> None:
    """On losses (a_i theta - b_i)^2 / 2: the mean end of both orders minus the plain sum is -rate/2 grad <g_1, g_2>."""
    theta, rate = torch.tensor(0.7, dtype=torch.float64), 1e-3
    pairs = [(1.0, 2.0), (3.0, -1.0)]

    def slope(k: int, at: Tensor) -> Tensor:
        a, b = pairs[k]
        return a * (a * at - b)

    def walk(order: tuple[int, int]) -> Tensor:
        now = theta
        for k in order:
            now = now - rate * slope(k, now)
        return (theta - now) / rate

    both = (walk((0, 1)) + walk((1, 0))) / 2
    plain = slope(0, theta) + slope(1, theta)
    product = 1.0 * slope(1, theta) + 9.0 * slope(0, theta)  # d/dtheta of g_1 g_2: each slope's slope is a^2
    assert (both - plain).item() == pytest.approx((-rate / 2 * product).item(), rel=1e-6)


def test_replay_ends_when_it_learns_no_more_and_leaves_no_fast_weights() -> None:
    options = FreeOptions(**{**SMALL, "patience": 3})  # type: ignore[arg-type]
    learner = build_learner(BackboneConfig(width=16), (3, 16, 16), ways=3, generator=seeded(0))
    functions = functional_learner(learner)
    theta = functions.parameters
    memory, outer = TaskMemory(8), torch.optim.SGD(theta.values(), lr=0.0)
    assert free.replay(functions, outer, memory, options, generator=seeded(0))["replay_updates"] == 0
    memory.add(0, torch.rand(12, 3, 16, 16, generator=seeded(0)), torch.arange(3).repeat(4))
    before = {name: value.clone() for name, value in theta.items()}
    metrics = free.replay(functions, outer, memory, options, generator=seeded(0))
    assert metrics["replay_updates"] >= 4
    assert all(torch.equal(value, before[name]) for name, value in theta.items())
    limited = options.model_copy(update={"replay_updates": 2})
    assert free.replay(functions, outer, memory, limited, generator=seeded(0))["replay_updates"] == 2


def test_the_same_seed_gives_the_same_weights(make_teacher: MakeTeacher) -> None:
    def run(seed: int) -> Tensor:
        teachers = [make_teacher(0), make_teacher(1, ways=4)]
        options = FreeOptions(**SMALL)  # type: ignore[arg-type]
        learned = free.train(teachers, BackboneConfig(width=16), options, seed=seed)
        return torch.cat([p.detach().flatten() for p in [*learned.backbone.parameters(), *learned.head.parameters()]])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_it_counts_passes_asks_nothing_and_can_be_stopped(make_teacher: MakeTeacher) -> None:
    teachers = [make_teacher(0), make_teacher(1)]

    def stop(done: int, total: int, metrics: dict[str, float]) -> None:
        assert (done, total) == (1, 2)
        assert 0 <= metrics["agreement"] <= 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        free.train(teachers, BackboneConfig(width=16), FreeOptions(**SMALL), seed=0, on_step=stop)  # type: ignore[arg-type]
    for teacher in teachers:  # 12 images, two steps, and one pass for the probabilities
        assert (teacher.queries, teacher.forward_passes, teacher.backward_passes) == (0, 36, 24)


def test_every_teachers_images_are_remembered(make_teacher: MakeTeacher) -> None:
    """The released code kept the last teacher's alone."""
    options = FreeOptions(**SMALL)  # type: ignore[arg-type]
    learned = free.train([make_teacher(0), make_teacher(1)], BackboneConfig(width=16), options, seed=0)
    assert len(learned.memory) == 6
    assert learned.memory.images == 24


def test_options_that_cannot_work_are_refused(make_teacher: MakeTeacher) -> None:
    with pytest.raises(ValidationError, match="at least shots"):
        FreeOptions(images_per_class=10)
    with pytest.raises(ValidationError, match="fewer than epochs"):
        FreeOptions(epochs=5)
    with pytest.raises(ValueError, match="the teachers know 3 classes"):
        free.train([make_teacher(0)], BackboneConfig(width=16), FreeOptions(), seed=0)


def test_surprise_moves_images_to_where_the_student_is_wrong() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    assert disagreement(teacher, student) > disagreement(student, student)


def test_better_than_its_own_start_on_a_toy(blobs: Dataset, blob_teachers: list[ModuleTeacher]) -> None:
    options = FreeOptions(
        epochs=7, warm_up=4, images_per_class=8, latent=16, generator_width=6, ways=3, shots=2, queries=6, replay_tasks=3,
        patience=2, inner_steps=2, inner_rate=0.05, generator_rate=1e-2, meta_rate=1e-2, outer_rate=5e-3,
        second_order=False,
    )  # fmt: skip
    evaluation = Evaluation(dataset="blobs", ways=3, shots=[5], episodes=100)
    config = BackboneConfig(width=16)
    learned = free.train(blob_teachers, config, options, seed=0)
    started = build_learner(config, (3, 16, 16), ways=3, generator=seeded(0)).backbone
    mine, before = evaluate(learned.backbone, blobs, evaluation), evaluate(started, blobs, evaluation)
    assert mine.accuracy["5"] > before.accuracy["5"] + mine.interval["5"] + before.interval["5"]


def test_a_pass_on_the_way_is_the_end_of_a_shorter_inversion(make_teacher: MakeTeacher) -> None:
    teacher, labels = make_teacher(0), torch.arange(3).repeat(2)
    net = small_generator()

    def invert(steps: int, kept: dict[int, Recovered]) -> Recovered:
        found = invert_generator(
            net, teacher, labels, steps=steps, generator=seeded(1), rate=0.05, on_pass=kept.__setitem__
        )
        return found.recovered

    way: dict[int, Recovered] = {}
    longer = invert(4, way)
    assert sorted(way) == [1, 2, 3, 4]
    assert torch.equal(way[4].images, longer.images)
    assert torch.equal(way[2].images, invert(2, {}).images)
    assert way[4].loss <= way[2].loss <= way[1].loss


def test_a_canvas_makes_up_its_share_of_what_is_recovered(make_teacher: MakeTeacher) -> None:
    canvas = torch.rand(12, 3, 16, 16, generator=seeded(1))
    labels = torch.arange(3).repeat(4)
    found = invert_generator(
        small_generator(), make_teacher(0), labels, steps=2, generator=seeded(0), canvas=canvas, share=0.75
    )
    drawn = (found.recovered.images - 0.75 * canvas) / 0.25
    assert drawn.min() > -1e-5
    assert drawn.max() < 1 + 1e-5
    options = FreeOptions(canvas=0.5)
    pool = free.first_images(options, (3, 16, 16), seed=0)
    assert pool is not None
    assert pool.shape == (free.CANVASES, 3, 16, 16)
    assert free.first_images(options.model_copy(update={"canvas": 0.0}), (3, 16, 16), seed=0) is None
