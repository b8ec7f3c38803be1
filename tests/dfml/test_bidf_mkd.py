import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import BidfMkdOptions
from dfml import visits
from dfml.access import PROBE, probe
from dfml.methods import METHODS, bidf_mkd
from dfml.methods.bidf_mkd import Plateau
from dfml.nets import weights
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.inversion import likeness
from dfml.numerics.meta_learners import functional_learner
from dfml.recovery import RecoveredSet, Recovery, boundary_loss, recover
from dfml.replay import split_task
from dfml.teachers import ModuleTeacher, check_images
from dfml.visits import Plan, plan, visit_cost, visit_deadlines

MakeTeacher = Callable[..., ModuleTeacher]
SMALL = BidfMkdOptions(
    images_per_class=2,
    iterations=2,
    directions=2,
    antithetic=True,
    frequencies=4,
    latent=6,
    generator_width=4,
    updates=4,
    tasks=2,
    inner_steps=2,
    replay_steps=2,
    ways=3,
    diversity=0.0,
)
COSTS = {(True, 2): 4, (False, 2): 3, (False, 7): 8}


class Painted:
    """A teacher that one can check by hand: class k is the one whose colour channel is brightest, sharply."""

    ways, input_shape = 3, (3, 8, 8)

    def __init__(self, *, decimals: int | None = None, sharpness: float = 20.0) -> None:
        self.queries = 0
        self.decimals, self.sharpness = decimals, sharpness

    def predict(self, images: Tensor) -> Tensor:
        check_images(images, self.input_shape)
        self.queries += len(images)
        answers = (images.mean((2, 3)) * self.sharpness).softmax(-1)
        return answers if self.decimals is None else answers.round(decimals=self.decimals)


class Wide(Painted):
    """Large enough for a surrogate. `rounded`: whether all it was shown had 8 bits."""

    input_shape = (3, 16, 16)
    rounded = True

    def predict(self, images: Tensor) -> Tensor:
        self.rounded &= torch.allclose((images * 255).round() / 255, images, atol=1e-6)
        return super().predict(images)


def recovery(teacher: object, options: BidfMkdOptions, *, seed: int = 0, unit: float | None = None) -> Recovery:
    planned = Plan((0,), options.images_per_class or 2, options.iterations or 2, 0)
    generator = torch.Generator().manual_seed(seed)
    return Recovery(teacher, options, planned, unit, generator, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture
def teachers(make_teacher: MakeTeacher) -> list[ModuleTeacher]:
    return [make_teacher(seed, ways=ways) for seed, ways in enumerate((3, 5, 2))]


# --- recovery


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


def test_a_surrogate_learns_from_visit_to_visit(tiny: BackboneConfig, teachers: list[ModuleTeacher]) -> None:
    options = BidfMkdOptions.model_validate(
        {**SMALL.model_dump(), "source": "surrogate", "antithetic": False, "updates": 2}
    )
    one, two = (bidf_mkd.train(teachers[:2], tiny, options, queries=150, seed=0) for _ in range(2))
    assert sum(teacher.queries for teacher in teachers) == 2 * one.plan.queries <= 300
    assert all(torch.equal(tensor, weights(two.backbone)[name]) for name, tensor in weights(one.backbone).items())


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


# --- learning


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


ANY_OPTIONS = st.builds(
    BidfMkdOptions,
    images_per_class=st.none() | st.integers(1, 40),
    iterations=st.none() | st.integers(1, 300),
    directions=st.integers(1, 120),
    antithetic=st.booleans(),
    updates=st.integers(1, 300),
)


@settings(max_examples=40, deadline=None)
@given(
    options=ANY_OPTIONS,
    queries=st.integers(1, 3_000_000),
    per_api=st.none() | st.integers(1, 300_000),
    ways=st.lists(st.integers(2, 12), min_size=1, max_size=12),
    seed=st.integers(0, 5),
)
def test_no_budget_is_exceeded_by_one_image(
    options: BidfMkdOptions, queries: int, per_api: int | None, ways: list[int], seed: int
) -> None:
    try:
        made = plan(options, queries=queries, queries_per_api=per_api, ways=ways, seed=seed)
    except ValueError as error:
        assert "raise it" in str(error)  # noqa: PT017
        return
    costs = [visit_cost(options, ways=way, images=made.images, iterations=made.iterations) for way in ways]
    spent = [costs[api] * made.visits.count(api) + (PROBE if api in made.visits else 0) for api in range(len(ways))]
    assert sum(spent) == made.queries <= queries
    assert per_api is None or max(spent) <= per_api
    assert 1 <= len(made.visits) <= options.updates
    assert options.images_per_class in (None, made.images)
    assert options.iterations in (None, made.iterations)
    deadlines = visit_deadlines(len(made.visits), options.updates)
    assert deadlines == sorted(set(deadlines))
    assert deadlines[0] == 0
    assert deadlines[-1] < options.updates


def test_plans_by_hand() -> None:
    ample = plan(BidfMkdOptions(), queries=10**7, queries_per_api=None, ways=[5] * 4, seed=0)
    assert (ample.images, ample.iterations) == (30, 200)
    assert [ample.visits.count(api) for api in range(4)] == [4] * 4  # 2 * 5 * 30 * 2001 a visit
    tight = plan(BidfMkdOptions(), queries=40_000, queries_per_api=None, ways=[5] * 4, seed=0)
    assert sorted(set(tight.visits)) == [0, 1, 2, 3]
    assert 1 < tight.images < 30
    assert tight.iterations / 200 == pytest.approx(tight.images / 30, rel=0.2)
    assert tight.queries > 30_000
    poor = plan(BidfMkdOptions(), queries=300, queries_per_api=None, ways=[5] * 40, seed=0)
    assert (poor.images, poor.iterations, len(poor.visits)) == (1, 1, 2)
    with pytest.raises(ValueError, match="smallest visit of an API costs 118 queries"):
        plan(BidfMkdOptions(), queries=117, queries_per_api=None, ways=[5] * 40, seed=0)


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


def test_noise_has_no_frequencies() -> None:
    with pytest.raises(ValueError, match="latent space"):
        BidfMkdOptions(space="latent")
