"""BiDf-MKD: bi-level data-free meta knowledge distillation from black-box APIs.

Hu, Shen, Wang, Wu, Yuan, Tao: Learning to Learn from APIs: Black-Box Data-Free Meta-Learning. ICML 2023, arXiv 2305.18413.

A visit to an API A, with theta the meta-model:

    S = recover(A)                                    zeroth-order inversion of A through a label-conditional generator
    theta_A = theta - inner_rate grad KD(A(S), theta(S)), `inner_steps` times
    Q = recover(A, theta_A)                           boundary query set: A and theta_A agree, but only just
    descend KD(A(Q), theta_A(Q)) in theta             second order

Between visits, MAML on tasks of classes drawn from everything recovered so far, across APIs; when that has nothing more to
give, the next API is visited.

Deviations from the authors' code, each with its reason in `docs/methods/bidf_mkd.md`: the Kullback-Leibler divergence is the
right one; queries are counted and planned for; the last images are kept, and no crop is asked about in their place; the student
is asked again at every perturbed image; the boundary term is of probabilities; visits have deadlines.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.methods import BidfMkdOptions
from dfml.nets import Backbone, build
from dfml.nets.generator import build_generator
from dfml.numerics.distillation import divergence, divergence_as_released, rounding_unit
from dfml.numerics.inner_loop import Call, Parameters, adapt, functional, set_running_statistics
from dfml.numerics.zeroth_order import Estimator, step_size, surrogate
from dfml.replay import Task, TaskMemory
from dfml.teachers import CHUNK, Teacher

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each update with (updates done, updates in all, metrics); it may raise to stop."""

PROBE = 8
"""Images asked at the first visit to an API, to learn how precise its answers are."""
IMAGES, ITERATIONS = 30, 200
"""The paper's images a class and iterations a set: what is planned where the budget allows it."""
SPEND_BY = 0.5
"""Part of the updates by which the last API has been visited, so that its task is learned too."""
CURVATURE = 0.01
"""Of the loss along a random direction, for the choice of the step: measured on Conv4 classifiers of 32 x 32 images."""
_FLOOR = 1e-6  # of probabilities before a logarithm, where answers are not rounded


@dataclass(frozen=True)
class Plan:
    """`visits`: which API is visited, in order. `images`: of a class, in each of a visit's two sets. `queries`: all it costs.

    A visit to an API of `ways` classes costs `2 ways images (iterations c + 1)`, c being `Estimator.cost`; the first one to an
    API `PROBE` more.
    """

    visits: tuple[int, ...]
    images: int
    iterations: int
    queries: int


@dataclass(frozen=True)
class Learned:
    """`backbone`: the meta-model, in evaluation mode on the device it was trained on; running statistics of recovered images.

    `head`: the meta-learned linear layer that tasks start from. `metrics`: means over the last tenth of the updates.
    `plan`: what was asked, exactly.
    """

    backbone: Backbone
    head: nn.Linear
    metrics: dict[str, float]
    plan: Plan


@dataclass(frozen=True)
class RecoveredSet:
    """images: float (n, 3, h, w) in [0, 1]. labels: int64 (n,), what they were made for. answers: (n, ways), the API's."""

    images: Tensor
    labels: Tensor
    answers: Tensor


class Student(nn.Module):
    """Backbone and linear head: images (n, 3, h, w) -> logits (n, outputs); a task of fewer ways uses the first of them."""

    def __init__(self, backbone: Backbone, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


def train(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: BidfMkdOptions,
    *,
    queries: int,
    queries_per_api: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Learned:
    """The whole method. Asks `queries` images in all, at most, and no API more than `queries_per_api`.

    Metrics: `loss` and `accuracy` on the query sets of an update's tasks, `queries` so far, `classes` in the memory. The same
    seed, teachers, device and number of threads give the same weights.
    Raises ValueError where the budget does not allow a single visit, or the APIs take images of different shapes.
    """
    shape = _common_shape(teachers)
    ways = [teacher.ways for teacher in teachers]
    planned = plan(options, queries=queries, queries_per_api=queries_per_api, ways=ways, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    student = _student(config, shape, max(*ways, options.ways), generator).to(device)
    call, parameters = functional(student, batch_norm="batch")
    optimiser = torch.optim.Adam(student.parameters(), lr=options.learning_rate)
    memory, plateau = TaskMemory(options.memory), Plateau(options.patience)
    units: dict[int, float | None] = {}
    boundary_from = options.updates // 15 if options.boundary_from is None else options.boundary_from
    deadlines = visit_deadlines(len(planned.visits), options.updates)
    done, spent, history = 0, 0, []
    for update in range(options.updates):
        due = done < len(deadlines) and (update >= deadlines[done] or plateau.reached)
        optimiser.zero_grad(set_to_none=True)
        losses, accuracies = [], []
        for episode in range(options.tasks):
            if due and episode == 0:
                api = planned.visits[done]
                teacher = teachers[api]
                before = teacher.queries
                if api not in units:
                    units[api] = probe(teacher, generator)
                recovery = Recovery(teacher, options, planned, units[api], generator, torch.device(device))
                boundary = options.boundary if update >= boundary_from else 0.0
                loss, accuracy, sets = visit(student, call, parameters, recovery, boundary=boundary)
                for one in sets:
                    memory.add(api, one.images.cpu(), one.labels.cpu())
                done, spent = done + 1, spent + teacher.queries - before
                plateau.reset()
            else:
                loss, accuracy = replay(call, parameters, _drawn(memory, options, planned, generator, device), options)
            torch.autograd.backward(loss / options.tasks)
            losses.append(loss.item())
            accuracies.append(accuracy)
        optimiser.step()
        metrics = {
            "loss": sum(losses) / len(losses),
            "accuracy": sum(accuracies) / len(accuracies),
            "queries": float(spent),
            "classes": float(len(memory)),
        }
        plateau.saw(metrics["accuracy"])
        history.append(metrics)
        if on_step is not None:
            on_step(update + 1, options.updates, metrics)
    set_running_statistics(student.backbone, (batch.to(device) for batch in memory.batches(64)))
    last = history[-max(1, options.updates // 10) :]
    means = {name: sum(row[name] for row in last) / len(last) for name in last[0]}
    return Learned(student.backbone.eval(), student.head, means, planned)


# --- recovery -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovery:
    """What recovering a set of images from one API takes. `unit`: what its answers are rounded to; None: not rounded."""

    teacher: Teacher
    options: BidfMkdOptions
    plan: Plan
    unit: float | None
    generator: torch.Generator
    device: torch.device

    @property
    def estimator(self) -> Estimator:
        return estimator_of(self.options)

    @property
    def floor(self) -> float:
        """Smallest probability told apart from zero."""
        return _FLOOR if self.unit is None else min(self.unit / 2, 0.1 / self.teacher.ways)

    @property
    def step(self) -> float:
        if self.options.step is not None:
            return self.options.step
        rounds = self.options.eight_bit and self.options.space == "pixels"
        return step_size(
            order=self.estimator.order,
            output_unit=self.unit,
            input_unit=1 / 255 if rounds else None,
            inputs=int(np.prod(self.teacher.input_shape)),
            curvature=CURVATURE,
        )

    def ask(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w), cut to [0, 1] -> the API's probabilities (n, ways). Costs n queries."""
        images = images.clamp(0, 1)
        if self.options.eight_bit:
            images = (images * 255).round() / 255
        return self.teacher.predict(images.cpu()).to(self.device)


def recover(recovery: Recovery, *, student: nn.Module | None = None, boundary: float = 0.0) -> RecoveredSet:
    """Images that the API takes for each of its classes: zeroth-order inversion through a fresh generator.

    Minimises `CE(A(x), y) + boundary l_bd(A(x), student(x)) + diversity likeness(x, y)` over `x = G(z, y)` in G and z, by
    Adam on the estimated gradient with respect to x, carried on to G and z by the chain rule. In latent space the gradient
    with respect to z is estimated, through G as it was drawn, and z alone is learned.

    Costs `ways images (iterations c + 1)` queries; the last one an image is the answer that distillation needs.
    """
    options, teacher, device = recovery.options, recovery.teacher, recovery.device
    labels = torch.arange(teacher.ways).repeat_interleave(recovery.plan.images).to(device)
    net = build_generator(
        latent=options.latent,
        classes=teacher.ways,
        shape=teacher.input_shape,
        width=options.generator_width,
        generator=recovery.generator,
    ).to(device)
    z = torch.randn(len(labels), options.latent, generator=recovery.generator).to(device).requires_grad_()
    learned = [z] if options.space == "latent" else [*net.parameters(), z]
    optimiser = torch.optim.Adam(learned, lr=options.generator_rate, betas=(0.5, 0.999))

    def of_images(images: Tensor) -> Tensor:  # (k, n, 3, h, w) -> (k, n)
        answers = recovery.ask(images.flatten(0, 1)).view(len(images), len(labels), teacher.ways)
        wanted = answers.gather(2, labels.expand(len(images), -1)[..., None])[..., 0]
        loss: Tensor = -wanted.clamp_min(recovery.floor).log()
        if student is not None and boundary:
            loss = loss + boundary * boundary_loss(answers, _probabilities(student, images, teacher.ways))
        return loss

    def of_noise(variants: Tensor) -> Tensor:  # (k, n, latent) -> (k, n)
        return of_images(torch.stack([net(variant, labels) for variant in variants]))

    for _ in range(recovery.plan.iterations):
        images = net(z, labels)
        points = z if options.space == "latent" else images
        loss = of_noise if options.space == "latent" else of_images
        estimate = recovery.estimator.estimate(loss, points, step=recovery.step, generator=recovery.generator)
        optimiser.zero_grad(set_to_none=True)
        apart = options.diversity * likeness(images, labels)
        torch.autograd.backward(surrogate(points, estimate.gradient) / len(labels) + apart)
        optimiser.step()
    with torch.no_grad():
        images = net(z, labels)
        if options.eight_bit:
            images = (images * 255).round() / 255
    return RecoveredSet(images, labels, recovery.ask(images))


def boundary_loss(answers: Tensor, student: Tensor) -> Tensor:
    """`l_bd = - sum_c |t_c - s_c|` where API and student name the same class, else 0; probabilities (…, ways) -> (…).

    An image that both see alike teaches nothing. Pushed apart while they still agree, it lies at the student's boundary.
    """
    agree = answers.argmax(-1) == student.argmax(-1)
    return -(answers - student).abs().sum(-1) * agree


def likeness(images: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine between two images of one class, coarse (a block of 4 x 4 is a number) and less the mean of all images.

    A generator that is told the class draws one image of it over and over, unless this is kept low. images: (n, 3, h, w).
    """
    coarse = F.avg_pool2d(images, 4, ceil_mode=True).flatten(1)
    unit = F.normalize(coarse - coarse.mean(0), dim=1)
    pairs = torch.eq(labels[:, None], labels).fill_diagonal_(False)
    return (unit @ unit.T)[pairs].sum() / pairs.sum().clamp_min(1)


def probe(teacher: Teacher, generator: torch.Generator) -> float | None:
    """The unit that an API rounds its answers to, None for full precision. Costs `PROBE` queries."""
    return rounding_unit(teacher.predict(torch.rand(PROBE, *teacher.input_shape, generator=generator)))


# --- learning -----------------------------------------------------------------------------------------------------------------


def visit(
    student: Student, call: Call, parameters: Parameters, recovery: Recovery, *, boundary: float
) -> tuple[Tensor, float, tuple[RecoveredSet, RecoveredSet]]:
    """Bi-level distillation of one API: the outer loss, the part of the query set on which both agree, and both sets."""
    options = recovery.options
    support = recover(recovery)
    adapted = adapt(
        lambda now: distillation(call, now, support, options),
        parameters,
        steps=options.inner_steps,
        lr=options.inner_rate,
        second_order=options.second_order,
    )
    query = recover(recovery, student=_settled(student, adapted, support.images), boundary=boundary)
    loss = distillation(call, adapted, query, options)
    with torch.no_grad():
        named = call(adapted, query.images)[:, : recovery.teacher.ways].argmax(-1)
    agreement = (named == query.answers.argmax(-1)).float().mean().item()
    return loss, agreement, (support, query)


def distillation(call: Call, parameters: Parameters, recovered: RecoveredSet, options: BidfMkdOptions) -> Tensor:
    """`KD = KL(A(x) || s(x))`, mean over the images."""
    logits = call(parameters, recovered.images)[:, : recovered.answers.shape[1]]
    kind = divergence_as_released if options.released_divergence else divergence
    return kind(recovered.answers, logits)


def replay(call: Call, parameters: Parameters, task: Task, options: BidfMkdOptions) -> tuple[Tensor, float]:
    """MAML with cross-entropy on a task from the memory: the outer loss, and the accuracy on its query images."""

    ways = int(task.support_labels.max()) + 1

    def on(images: Tensor, labels: Tensor) -> Callable[[Parameters], Tensor]:
        return lambda now: F.cross_entropy(call(now, images)[:, :ways], labels)

    adapted = adapt(
        on(task.support, task.support_labels),
        parameters,
        steps=options.replay_steps,
        lr=options.inner_rate,
        second_order=options.second_order,
    )
    logits = call(adapted, task.query)[:, :ways]
    accuracy = (logits.detach().argmax(-1) == task.query_labels).float().mean().item()
    return F.cross_entropy(logits, task.query_labels), accuracy


class Plateau:
    """The generation trigger: `reached` when the accuracy has not exceeded its maximum for `patience` updates."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        """Forget the maximum: what follows is learned from other images."""
        self._best, self._waited = -1.0, 0

    def saw(self, accuracy: float) -> None:
        self._waited = 0 if accuracy > self._best else self._waited + 1
        self._best = max(self._best, accuracy)

    @property
    def reached(self) -> bool:
        return self._waited >= self._patience


# --- budget -------------------------------------------------------------------------------------------------------------------


def estimator_of(options: BidfMkdOptions) -> Estimator:
    """The estimator that the options ask for."""
    return Estimator(
        options.directions,
        antithetic=options.antithetic,
        orthogonal=options.orthogonal,
        frequencies=options.frequencies,
    )


def visit_cost(options: BidfMkdOptions, *, ways: int, images: int, iterations: int) -> int:
    """Queries of a visit, without the probe: support and query set, `ways images (iterations c + 1)` each."""
    return 2 * ways * images * (iterations * estimator_of(options).cost + 1)


def plan(options: BidfMkdOptions, *, queries: int, queries_per_api: int | None, ways: Sequence[int], seed: int) -> Plan:
    """As many visits as the budget allows, to every API before to any again, never more than `options.updates`.

    Images and iterations that the options leave open are 30 and 200, or, where the budget does not allow a visit to every API
    with so many, the same part of both; not every API is visited where not even one image and one iteration are left.
    `ways`: classes of each API. Raises ValueError where no API can be visited.
    """
    each = queries // len(ways)
    each = each if queries_per_api is None else min(each, queries_per_api)
    images, iterations = _sizes(options, each - PROBE, max(ways))
    costs = [visit_cost(options, ways=way, images=images, iterations=iterations) for way in ways]
    rng, visits, spent = np.random.RandomState(seed), list[int](), Counter[int]()
    while len(visits) < options.updates:
        before = len(visits)
        for api in rng.permutation(len(ways)).tolist():
            cost = costs[api] + (0 if api in spent else PROBE)
            fits = queries_per_api is None or spent[api] + cost <= queries_per_api
            if fits and spent.total() + cost <= queries and len(visits) < options.updates:
                visits.append(api)
                spent[api] += cost
        if len(visits) == before:
            break
    if not visits:
        raise ValueError(
            f"the smallest visit of an API costs {min(costs) + PROBE} queries, more than the budget: raise it, or ask for "
            "fewer directions, images_per_class or iterations"
        )
    return Plan(tuple(visits), images, iterations, spent.total())


def visit_deadlines(visits: int, updates: int) -> list[int]:
    """The update at which each visit is made at the latest: the first at once, then evenly over the first half, one each."""
    return [max(k, int(k * updates * SPEND_BY / visits)) for k in range(visits)]


def _sizes(options: BidfMkdOptions, budget: int, ways: int) -> tuple[int, int]:
    """Images a class and iterations of a visit that costs `budget` at most, where the options leave it open."""
    part = 1.0
    fixed = options.images_per_class is not None and options.iterations is not None
    while True:
        images = options.images_per_class or max(1, round(IMAGES * part))
        iterations = options.iterations or max(1, round(ITERATIONS * part))
        smallest = part * ITERATIONS < 1
        if fixed or smallest or visit_cost(options, ways=ways, images=images, iterations=iterations) <= budget:
            return images, iterations
        part *= 0.98


# --- the rest -----------------------------------------------------------------------------------------------------------------


def _student(config: BackboneConfig, shape: tuple[int, int, int], outputs: int, generator: torch.Generator) -> Student:
    backbone = build(config, shape, generator=generator)
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator: give it back as it was
        student = Student(backbone, outputs)
    bound = backbone.dim**-0.5
    nn.init.uniform_(student.head.weight, -bound, bound, generator=generator)
    nn.init.zeros_(student.head.bias)
    return student


def _settled(student: Student, adapted: Parameters, images: Tensor) -> nn.Module:
    """A copy of the student with these parameters, whose batch norm keeps the statistics of `images`.

    So its answer to an image does not depend on which others are asked with it, as the estimator wants.
    """
    own = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(adapted[name])
    set_running_statistics(own, [images])
    return own.eval()


def _probabilities(student: nn.Module, images: Tensor, ways: int) -> Tensor:
    """Images (k, n, 3, h, w) -> probabilities (k, n, ways), without a graph."""
    with torch.no_grad():
        parts = torch.split(images.flatten(0, 1).clamp(0, 1), CHUNK)
        logits = torch.cat([student(part)[:, :ways] for part in parts])
    return logits.softmax(-1).view(*images.shape[:2], ways)


def _drawn(
    memory: TaskMemory, options: BidfMkdOptions, planned: Plan, generator: torch.Generator, device: torch.device | str
) -> Task:
    """A task from the memory, which holds `2 images` of each class at least, and two classes."""
    held = min(2 * planned.images, options.memory)
    shots = min(options.shots, held // 2)
    ways = min(options.ways, len(memory))
    task = memory.task(ways=ways, shots=shots, queries=min(options.queries, held - shots), generator=generator)
    return Task(
        task.support.to(device), task.support_labels.to(device), task.query.to(device), task.query_labels.to(device)
    )


def _common_shape(teachers: Sequence[Teacher]) -> tuple[int, int, int]:
    shapes = {teacher.input_shape for teacher in teachers}
    if len(shapes) != 1:
        raise ValueError(f"the APIs take images of shapes {sorted(shapes)}: give APIs of one shape, at least one API")
    return shapes.pop()
