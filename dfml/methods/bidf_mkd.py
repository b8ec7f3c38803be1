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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contracts.gradients import GradientOptions
from contracts.meta_models import BackboneConfig
from contracts.methods import BidfMkdOptions
from dfml.access import BlackBoxes, common_shape, source_of
from dfml.checkpoint import Checkpoint
from dfml.nets import Backbone
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.distillation import divergence, divergence_as_released
from dfml.numerics.gradient_sources import Source
from dfml.numerics.inner_loop import Call, Parameters, adapt, set_running_statistics
from dfml.numerics.meta_learners import Functional, functional_learner, task_loss
from dfml.recovery import RecoveredSet, Recovery, recover
from dfml.replay import Task, TaskMemory
from dfml.teachers import Teacher
from dfml.training import Counts, Training
from dfml.visits import Plan, plan, visit_deadlines

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each update with (updates done, updates in all, metrics); it may raise to stop."""


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
    checkpoint: Checkpoint | None = None,
) -> Learned:
    """The whole method. Asks `queries` images in all, at most, and no API more than `queries_per_api`.

    Metrics: `loss` and `accuracy` on the query sets of an update's tasks, `queries` so far, `classes` in the memory. The same
    seed, teachers, device and number of threads give the same weights.

    checkpoint: where the training's state is kept after some updates; one that is of the same training is gone on from, to the
    same weights as without the interruption, and nothing that came before it is asked again.
    Raises ValueError where the budget does not allow a single visit, or the APIs take images of different shapes.
    """
    shape = common_shape(teachers)
    ways = [teacher.ways for teacher in teachers]
    planned = plan(options, queries=queries, queries_per_api=queries_per_api, ways=ways, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    student = build_learner(config, shape, ways=max(*ways, options.ways), generator=generator).to(device)
    functions = functional_learner(student)
    optimiser = torch.optim.Adam(student.parameters(), lr=options.learning_rate)
    memory, plateau = TaskMemory(options.memory), Plateau(options.patience)
    met = BlackBoxes(teachers, partial(source, options=options, generator=generator), generator)
    told = [config.model_dump(), options.model_dump(), seed, queries, queries_per_api, ways]
    training = Training(checkpoint, told)
    training.resume(
        generator,
        student=student, optimiser=optimiser, memory=memory, plateau=plateau, met=met, counts=Counts(teachers),
    )  # fmt: skip
    boundary_from = options.updates // 15 if options.boundary_from is None else options.boundary_from
    deadlines = visit_deadlines(len(planned.visits), options.updates)
    done: int = training.values.get("visits", 0)
    spent: int = training.values.get("spent", 0)
    last = deque(training.values.get("last", ()), max(1, options.updates // 10))
    for update in range(training.done, options.updates):
        due = done < len(deadlines) and (update >= deadlines[done] or plateau.reached)
        optimiser.zero_grad(set_to_none=True)
        losses, accuracies = [], []
        for episode in range(options.tasks):
            if due and episode == 0:
                api = planned.visits[done]
                before = teachers[api].queries
                unit, learned = met.meet(api)
                recovery = Recovery(teachers[api], options, planned, unit, generator, torch.device(device), learned)
                boundary = options.boundary if update >= boundary_from else 0.0
                loss, accuracy, sets = visit(student, functions, recovery, boundary=boundary)
                for one in sets:
                    memory.add(api, one.images.cpu(), one.labels.cpu())
                done, spent = done + 1, spent + teachers[api].queries - before
                plateau.reset()
            else:
                loss, accuracy = replay(functions, _drawn(memory, options, planned, generator, device), options)
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
        last.append(metrics)
        training.keep(update + 1, visits=done, spent=spent, last=list(last))
        if on_step is not None:
            on_step(update + 1, options.updates, metrics)
    set_running_statistics(student.backbone, (batch.to(device) for batch in memory.batches(64)))
    means = {name: sum(row[name] for row in last) / len(last) for name in last[0]}
    return Learned(student.backbone.eval(), student.head, means, planned)


def visit(
    student: Learner, learner: Functional, recovery: Recovery, *, boundary: float
) -> tuple[Tensor, float, tuple[RecoveredSet, RecoveredSet]]:
    """Bi-level distillation of one API: the outer loss, the part of the query set on which both agree, and both sets."""
    options, call = recovery.options, learner.logits
    support = recover(recovery)
    adapted = adapt(
        lambda now: distillation(call, now, support, options),
        learner.parameters,
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


def replay(learner: Functional, task: Task, options: BidfMkdOptions) -> tuple[Tensor, float]:
    """The outer loss of a task from the memory, and the accuracy on its query images."""
    return task_loss(
        options.learner,
        learner,
        task,
        steps=options.replay_steps,
        lr=options.inner_rate,
        second_order=options.second_order,
    )


def source(
    teacher: Teacher, unit: float | None, *, options: BidfMkdOptions, generator: torch.Generator
) -> Source | None:
    """A surrogate that stays with its API from visit to visit; None for the zeroth-order estimator, which learns nothing."""
    if options.source == "zeroth-order":
        return None
    asked = GradientOptions(
        source=options.source, directions=options.directions, frequencies=options.frequencies, step=options.step
    )
    return source_of(teacher, asked, unit, generator=generator, eight_bit=options.eight_bit)


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

    def state_dict(self) -> dict[Any, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]


def _settled(student: Learner, adapted: Parameters, images: Tensor) -> nn.Module:
    """A copy of the student with these parameters, whose batch norm keeps the statistics of `images`.

    So its answer to an image does not depend on which others are asked with it, as the estimator wants.
    """
    own = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(adapted[name])
    set_running_statistics(own, [images])
    return own.eval()


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
