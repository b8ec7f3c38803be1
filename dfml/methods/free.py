"""FREE: faster and better data-free meta-learning (Wei, Hu et al., CVPR 2024).

It needs gradients of the teachers, from any source.

    each epoch, for a few teachers drawn at random
        FIVE    a copy of the meta-generator is adapted to each teacher in five steps; what it made is kept; the
                meta-generator takes one step on the slopes found at the copies (first-order MAML)
        BELL    walk: from the meta-model, one step of distillation a teacher; the meta-model steps towards where the walk ends,
                which raises the inner products of the teachers' gradients (Reptile, Nichol et al. 2018)
                replay: MAML on tasks whose classes come from any teachers, until it learns no more

`docs/methods/free.md` names the function of every equation, and every deviation from the released code with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.methods import FreeOptions
from dfml.access import (
    Differentiable,
    check_ways,
    common_shape,
    known_weights,
    pass_cost,
    probe_cost,
    white_boxes,
)
from dfml.checkpoint import Checkpoint
from dfml.nets import Backbone
from dfml.nets.generator import Generator, build_generator
from dfml.nets.learner import build_learner
from dfml.numerics.distillation import divergence, divergence_as_released
from dfml.numerics.inner_loop import Call, Parameters, set_running_statistics
from dfml.numerics.inversion import Recovered, Terms, disagreement, invert_generator
from dfml.numerics.meta_learners import Functional, functional_learner, task_loss
from dfml.plans import rounds_within
from dfml.procedural import query_set
from dfml.replay import TaskMemory
from dfml.teachers import DifferentiableTeacher, Teacher
from dfml.training import Counts, Training

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, metrics); it may raise to stop."""


CANVASES = 1000
"""Procedural images that recovered ones are painted on."""


@dataclass(frozen=True)
class Learned:
    """`backbone`: the meta-model, in evaluation mode; its running statistics are those of the recovered images.

    `head`: the linear layer that the inner steps start from. `memory`: the recovered images. `metrics`: of the last epoch.
    """

    backbone: Backbone
    head: nn.Linear
    memory: TaskMemory
    meta_generator: Generator
    metrics: dict[str, float]


def train(
    teachers: Sequence[Teacher],
    config: BackboneConfig,
    options: FreeOptions,
    *,
    queries: int | None = None,
    queries_per_api: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Learned:
    """The whole method. With weights it asks nothing: `forward_passes` and `backward_passes` of the teachers say what it cost.

    With any other source of gradients it makes as many epochs as the budget allows (`epochs_within`), and asks `queries` images
    in all, at most, and no API more than `queries_per_api`. The teachers must be on `device`.

    Metrics: `inversion` (loss), `agreement` (share of recovered images that the teacher takes for what was wanted),
    `distillation` (before the walk), `replay` (accuracy of its last update), `replay_updates`.
    checkpoint: where the training's state is kept after some epochs; one that is of the same training is gone on from, to the
    same weights as without the interruption, and nothing that came before it is asked again.
    Raises ValueError where the teachers together have fewer classes than a task, or the budget allows no epoch, and
    `WeightsNeeded` where gradients are those of weights that a teacher does not give; then nothing was asked.
    """
    ways, shape = check(teachers, options)
    epochs, warm_up = epochs_within(options, teachers, queries=queries, queries_per_api=queries_per_api)
    generator = torch.Generator().manual_seed(seed)
    met = Differentiable(teachers, options.gradients, generator=generator)
    net = build_generator(
        latent=options.latent,
        classes=max(teacher.ways for teacher in teachers) if options.conditional else None,
        shape=shape,
        width=options.generator_width,
        generator=generator,
    ).to(device)
    learner = build_learner(config, shape, ways=ways, generator=generator).to(device)
    canvases = first_images(options, shape, seed)
    functions = functional_learner(learner)
    call, theta = functions.logits, functions.parameters
    meta = torch.optim.Adam(net.parameters(), lr=options.meta_rate)
    outer = torch.optim.Adam(theta.values(), lr=options.outer_rate)
    memory = TaskMemory(options.memory, device=device)
    told = [config.model_dump(), options.model_dump(), seed, queries, queries_per_api, [one.ways for one in teachers]]
    training = Training(checkpoint, told, known_weights(teachers, options.gradients))
    training.resume(
        generator, net=net, meta=meta, learner=learner, outer=outer, memory=memory, met=met, counts=Counts(teachers)
    )
    metrics: dict[str, float] = training.values.get("metrics", {})
    for epoch in range(training.done, epochs):
        warm = epoch >= warm_up
        chosen = torch.randperm(len(teachers), generator=generator)[: options.teachers].tolist()
        drawn = [met[index] for index in chosen]
        student = (call, theta) if warm else None
        found = five(net, meta, drawn, options, student=student, generator=generator, canvases=canvases)
        answers = [probabilities(teacher, made.images) for teacher, made in zip(drawn, found, strict=True)]
        metrics = _inversion_metrics(found, answers)
        if warm:
            for index, made in zip(chosen, found, strict=True):
                memory.add(index, made.images, made.labels)
            pairs = [(made.images, answer) for made, answer in zip(found, answers, strict=True)]
            metrics |= align(call, theta, pairs, options)
            metrics |= replay(functions, outer, memory, options, generator=generator)
        training.keep(epoch + 1, metrics=metrics)
        if on_step is not None:
            on_step(epoch + 1, epochs, metrics)
    set_running_statistics(learner, memory.batches(64))
    return Learned(learner.backbone.eval(), learner.head, memory, net, metrics)


def five(
    net: Generator,
    meta: torch.optim.Optimizer,
    teachers: Sequence[DifferentiableTeacher],
    options: FreeOptions,
    *,
    student: tuple[Call, Parameters] | None,
    generator: torch.Generator,
    canvases: Tensor | None = None,
) -> list[Recovered]:
    """FIVE: adapt to each teacher from the same start, then one step of the persistent optimiser `meta` on the summed slopes.

    student: the meta-model that recovered images should surprise; None leaves that term out. canvases: float images in
    [0, 1], from which `canvas` of every image is drawn.
    """
    slopes = [torch.zeros_like(parameter) for parameter in net.parameters()]
    found = []
    for teacher in teachers:
        labels = torch.arange(teacher.ways).repeat(options.images_per_class)
        inverted = invert_generator(
            net,
            teacher,
            labels,
            steps=options.generator_steps,
            generator=generator,
            rate=options.generator_rate,
            latent_rate=options.latent_rate,
            terms=Terms(total_variation=0, batch_norm=options.batch_norm, length=0),
            more=_surprise(student, options.adversarial),
            canvas=_drawn(canvases, len(labels), generator, teacher.device),
            share=options.canvas,
        )
        found.append(inverted.recovered)
        for summed, slope in zip(
            slopes, inverted.last if options.meta_gradient == "last" else inverted.total, strict=True
        ):
            summed += slope
    for parameter, slope in zip(net.parameters(), slopes, strict=True):
        parameter.grad = slope
    meta.step()
    return found


def align(
    call: Call,
    theta: Parameters,
    batches: Sequence[tuple[Tensor, Tensor]],
    options: FreeOptions,
) -> dict[str, float]:
    """BELL's walk: `theta_i = theta_{i-1} - step(grad KL(t_i(x_i) || theta_{i-1}(x_i)))`, then
    `theta += align_step (theta_K - theta)`.

    batches: of each teacher its recovered images and its probabilities for them. Changes `theta`.
    """
    distance = divergence if options.divergence == "kl" else divergence_as_released
    now = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
    rate = options.align_rate
    walk: torch.optim.Optimizer
    walk = torch.optim.Adam(now.values(), rate) if options.align_by == "adam" else torch.optim.SGD(now.values(), rate)
    losses = []
    for images, answers in batches:
        loss = distance(answers, call(now, images)[:, : answers.shape[1]])
        for value, slope in zip(now.values(), torch.autograd.grad(loss, list(now.values())), strict=True):
            value.grad = slope
        walk.step()
        losses.append(loss.item())
    with torch.no_grad():
        for name, value in theta.items():
            value += options.align_step * (now[name] - value)
    return {"distillation": sum(losses) / len(losses)}


def replay(
    learner: Functional,
    outer: torch.optim.Optimizer,
    memory: TaskMemory,
    options: FreeOptions,
    *,
    generator: torch.Generator,
) -> dict[str, float]:
    """Cross-task replay: remembered tasks until `patience` updates bring no better accuracy. Changes the learner.

    It waits until the memory has the classes of a task. Each update's accuracy is on tasks that it has not yet learned from.
    """
    best, stale, updates, accuracy = -1.0, 0, 0, 0.0
    most = options.replay_updates if options.replay_updates is not None else float("inf")
    while len(memory) >= options.ways and stale < options.patience and updates < most:
        slopes, right = meta_gradient(learner, memory, options, generator=generator)
        for value, slope in zip(learner.parameters.values(), slopes, strict=True):
            value.grad = slope
        outer.step()
        accuracy, updates = right, updates + 1
        best, stale = (accuracy, 0) if accuracy > best else (best, stale + 1)
    return {"replay": accuracy, "replay_updates": float(updates)}


def meta_gradient(
    learner: Functional, memory: TaskMemory, options: FreeOptions, *, generator: torch.Generator
) -> tuple[list[Tensor], float]:
    """Mean over `replay_tasks` tasks of the gradient of their losses, task by task to bound memory; and their mean accuracy."""
    values = list(learner.parameters.values())
    slopes, right = [torch.zeros_like(value) for value in values], 0.0
    for _ in range(options.replay_tasks):
        task = memory.task(ways=options.ways, shots=options.shots, queries=options.queries, generator=generator)
        loss, accuracy = task_loss(
            options.learner,
            learner,
            task,
            steps=options.inner_steps,
            lr=options.inner_rate,
            second_order=options.second_order,
        )
        for summed, slope in zip(slopes, torch.autograd.grad(loss, values, materialize_grads=True), strict=True):
            summed += slope / options.replay_tasks
        right += accuracy / options.replay_tasks
    return slopes, right


def probabilities(teacher: DifferentiableTeacher, images: Tensor) -> Tensor:
    """The teacher's answers to recovered images, on their device: (n, ways)."""
    with torch.no_grad():
        return teacher.logits(images).softmax(-1)


def inversion_cost(options: FreeOptions, *, ways: int) -> int:
    """Queries of a teacher's visit: `ways images_per_class (generator_steps (1 + c) + 1)`, c those of a gradient.

    None with weights. The last one an image is the answer that is distilled.
    """
    cost = pass_cost(options.gradients)
    return ways * options.images_per_class * (options.generator_steps * cost + 1) if cost else 0


def epochs_within(
    options: FreeOptions, teachers: Sequence[Teacher], *, queries: int | None, queries_per_api: int | None
) -> tuple[int, int]:
    """Epochs that the budget allows, and how many of them warm up: the same part of them as in the options.

    Counted as if the dearest teachers were drawn each time, so that neither limit is exceeded. Raises ValueError for none.
    """
    costs = sorted((inversion_cost(options, ways=teacher.ways) for teacher in teachers), reverse=True)
    epochs = rounds_within(
        queries,
        wanted=options.epochs,
        round_cost=sum(costs[: options.teachers]),
        api_cost=costs[0],
        before=probe_cost(options.gradients),
        apis=len(teachers),
        per_api=queries_per_api,
    )
    return epochs, options.warm_up * epochs // options.epochs


def check(teachers: Sequence[Teacher], options: FreeOptions) -> tuple[int, tuple[int, int, int]]:
    """Outputs that the meta-model needs, and the images' shape. Raises ValueError that says what does not fit."""
    if options.gradients.source == "weights":
        white_boxes(teachers)
    check_ways(teachers, options.ways)
    return max(options.ways, *(teacher.ways for teacher in teachers)), common_shape(teachers)


def first_images(options: FreeOptions, shape: tuple[int, int, int], seed: int) -> Tensor | None:
    """What recovered images are painted on, float in [0, 1]; None for the published method's nothing."""
    if not options.canvas:
        return None
    return (
        torch.from_numpy(query_set({"objects": 1.0}, seed=seed, size=shape[1:]).images(range(CANVASES))).float() / 255
    )


def _drawn(canvases: Tensor | None, count: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    if canvases is None:
        return None
    return canvases[torch.randint(len(canvases), (count,), generator=generator)].to(device)


def _surprise(student: tuple[Call, Parameters] | None, weight: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    if student is None or not weight:
        return None
    call, theta = student

    def more(images: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            guess = call(theta, images)[:, : logits.shape[1]]
        return -weight * disagreement(logits, guess)

    return more


def _inversion_metrics(found: Sequence[Recovered], answers: Sequence[Tensor]) -> dict[str, float]:
    agree = [
        (answer.argmax(-1) == made.labels).double().mean().item() for made, answer in zip(found, answers, strict=True)
    ]
    return {"inversion": sum(made.loss for made in found) / len(found), "agreement": sum(agree) / len(agree)}
