"""FREE: faster and better data-free meta-learning (Wei, Hu et al., CVPR 2024). White-box: it needs gradients of the teachers.

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
from dfml.nets import Backbone
from dfml.nets.generator import Generator, build_generator
from dfml.nets.learner import build_learner
from dfml.numerics.distillation import divergence, divergence_as_released
from dfml.numerics.inner_loop import Call, Parameters, functional, set_running_statistics
from dfml.numerics.inversion import Recovered, Terms, disagreement, invert_generator
from dfml.numerics.maml import maml_loss
from dfml.replay import TaskMemory
from dfml.teachers import WhiteBoxTeacher

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, metrics); it may raise to stop."""


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
    teachers: Sequence[WhiteBoxTeacher],
    config: BackboneConfig,
    options: FreeOptions,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Learned:
    """The whole method. Asks nothing of the teachers' APIs; `forward_passes` and `backward_passes` say what it cost.

    The teachers must be on `device`. Metrics: `inversion` (loss), `agreement` (share of recovered images that the teacher
    takes for what was wanted), `distillation` (before the walk), `replay` (accuracy of its last update), `replay_updates`.
    Raises ValueError where the teachers together have fewer classes than a task.
    """
    ways, shape = check(teachers, options)
    generator = torch.Generator().manual_seed(seed)
    net = build_generator(
        latent=options.latent,
        classes=max(teacher.ways for teacher in teachers) if options.conditional else None,
        shape=shape,
        width=options.generator_width,
        generator=generator,
    ).to(device)
    learner = build_learner(config, shape, ways=ways, generator=generator).to(device)
    call, theta = functional(learner, batch_norm="batch")
    meta = torch.optim.Adam(net.parameters(), lr=options.meta_rate)
    outer = torch.optim.Adam(theta.values(), lr=options.outer_rate)
    memory, metrics = TaskMemory(options.memory), dict[str, float]()
    for epoch in range(options.epochs):
        warm = epoch >= options.warm_up
        chosen = torch.randperm(len(teachers), generator=generator)[: options.teachers].tolist()
        drawn = [teachers[index] for index in chosen]
        found = five(net, meta, drawn, options, student=(call, theta) if warm else None, generator=generator)
        answers = [probabilities(teacher, made.images) for teacher, made in zip(drawn, found, strict=True)]
        metrics = _inversion_metrics(found, answers)
        if warm:
            for index, made in zip(chosen, found, strict=True):
                memory.add(index, made.images, made.labels)
            pairs = [(made.images, answer) for made, answer in zip(found, answers, strict=True)]
            metrics |= align(call, theta, outer, pairs, options)
            metrics |= replay(call, theta, outer, memory, options, generator=generator)
        if on_step is not None:
            on_step(epoch + 1, options.epochs, metrics)
    set_running_statistics(learner, memory.batches(64))
    return Learned(learner.backbone.eval(), learner.head, memory, net, metrics)


def five(
    net: Generator,
    meta: torch.optim.Optimizer,
    teachers: Sequence[WhiteBoxTeacher],
    options: FreeOptions,
    *,
    student: tuple[Call, Parameters] | None,
    generator: torch.Generator,
) -> list[Recovered]:
    """FIVE: adapt to each teacher from the same start, then one step of the persistent optimiser `meta` on the summed slopes.

    student: the meta-model that recovered images should surprise; None leaves that term out.
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
    outer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    options: FreeOptions,
) -> dict[str, float]:
    """BELL's walk: `theta_i = theta_{i-1} - step(grad KL(t_i(x_i) || theta_{i-1}(x_i)))`; gradient `scale * (theta - theta_K)`.

    batches: of each teacher its recovered images and its probabilities for them. Changes `theta` through `outer`.
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
    if options.align_scale:
        for name, value in theta.items():
            value.grad = options.align_scale * (value.detach() - now[name].detach())
        outer.step()
    return {"distillation": sum(losses) / len(losses)}


def replay(
    call: Call,
    theta: Parameters,
    outer: torch.optim.Optimizer,
    memory: TaskMemory,
    options: FreeOptions,
    *,
    generator: torch.Generator,
) -> dict[str, float]:
    """Cross-task replay: MAML on remembered tasks until `patience` updates bring no better accuracy. Changes `theta`.

    It waits until the memory has the classes of a task. Each update's accuracy is on tasks that it has not yet learned from.
    """
    best, stale, updates, accuracy = -1.0, 0, 0, 0.0
    most = options.replay_updates if options.replay_updates is not None else float("inf")
    while len(memory) >= options.ways and stale < options.patience and updates < most:
        slopes, right = meta_gradient(call, theta, memory, options, generator=generator)
        for value, slope in zip(theta.values(), slopes, strict=True):
            value.grad = slope
        outer.step()
        accuracy, updates = right, updates + 1
        best, stale = (accuracy, 0) if accuracy > best else (best, stale + 1)
    return {"replay": accuracy, "replay_updates": float(updates)}


def meta_gradient(
    call: Call, theta: Parameters, memory: TaskMemory, options: FreeOptions, *, generator: torch.Generator
) -> tuple[list[Tensor], float]:
    """Mean over `replay_tasks` tasks of the gradient of MAML's loss, task by task to bound memory; and their mean accuracy."""
    slopes, right = [torch.zeros_like(value) for value in theta.values()], 0.0
    for _ in range(options.replay_tasks):
        task = memory.task(ways=options.ways, shots=options.shots, queries=options.queries, generator=generator)
        loss, accuracy = maml_loss(
            call,
            theta,
            task,
            steps=options.inner_steps,
            lr=options.inner_rate,
            second_order=options.second_order,
        )
        for summed, slope in zip(slopes, torch.autograd.grad(loss, list(theta.values())), strict=True):
            summed += slope / options.replay_tasks
        right += accuracy / options.replay_tasks
    return slopes, right


def probabilities(teacher: WhiteBoxTeacher, images: Tensor) -> Tensor:
    """The teacher's answers to recovered images, on their device: (n, ways)."""
    with torch.no_grad():
        return teacher.logits(images).softmax(-1)


def check(teachers: Sequence[WhiteBoxTeacher], options: FreeOptions) -> tuple[int, tuple[int, int, int]]:
    """Outputs that the meta-model needs, and the images' shape. Raises ValueError that says what does not fit."""
    shapes = {teacher.input_shape for teacher in teachers}
    if len(shapes) != 1:
        raise ValueError(f"teachers take images of {sorted(shapes)}: give teachers of one size")
    known = sum(teacher.ways for teacher in teachers)
    if known < options.ways:
        raise ValueError(f"the teachers know {known} classes, a task has {options.ways}: ask for fewer ways")
    return max(options.ways, *(teacher.ways for teacher in teachers)), shapes.pop()


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
