"""ECI, episode curriculum inversion: the pseudo images that PURER learns from, and how they get harder (Hu et al., CVPR 2023).

    invert            gradients of `sum_i L_inv(D_i)` at the pseudo images D
    ask_for_harder    less `adversarial` times the meta-model's loss on an episode of D, where the switch asks for it
    take_step         the one step on D
    learn             the meta-model's step on episodes of D; its accuracy is what the switch goes by

`dfml.methods.purer` puts them together.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from contracts.methods import PurerOptions
from dfml.access import Differentiable
from dfml.numerics.inversion import Terms, inversion_loss, noise_images, roll
from dfml.numerics.meta_learners import Functional, task_loss
from dfml.procedural import query_set
from dfml.replay import Task, split_task
from dfml.teachers import DifferentiableTeacher, Teacher


class Switch:
    """The gradient switch: whether the next step on D shall ask for harder episodes. `best`, `stale`: what it goes by.

    Yes at update `first`; later whenever the accuracy has not passed its best for `patience` updates, whereupon both are
    forgotten. Never before `first`.
    """

    def __init__(self, *, first: int, patience: int) -> None:
        self._first = first
        self._patience = patience
        self.best = -1.0
        self.stale = 0

    def asks(self, update: int, accuracy: float) -> bool:
        """update: from 0, the one just done; accuracy: of its episodes, before the meta-model learned from them."""
        if update <= self._first:
            return update == self._first
        self.best, self.stale = (accuracy, 0) if accuracy > self.best else (self.best, self.stale + 1)
        if self.stale < self._patience:
            return False
        self.best, self.stale = -1.0, 0
        return True

    def state_dict(self) -> dict[Any, Any]:
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.best, self.stale = state["best"], state["stale"]


def invert(
    teachers: Sequence[DifferentiableTeacher] | Differentiable,
    images: Sequence[Tensor],
    drawn: Sequence[int],
    on_images: torch.optim.Optimizer,
    options: PurerOptions,
    *,
    generator: torch.Generator,
) -> float:
    """Gradients of `sum over the teachers drawn of L_inv(D_i)`, each once: left in the images. Returns the mean loss.

    Images of other teachers keep no gradient, so that Adam leaves them, and their moments, alone.
    """
    terms = Terms(options.total_variation, options.batch_norm, options.length)
    on_images.zero_grad(set_to_none=True)
    total = 0.0
    for index in drawn:
        labels = torch.arange(teachers[index].ways).repeat_interleave(options.images_per_class).to(images[index].device)
        moved = roll(images[index], shift=2, flip=False, generator=generator)
        loss = inversion_loss(teachers[index], moved, labels, terms).total
        (images[index].grad,) = torch.autograd.grad(loss, [images[index]])
        total += loss.item()
    return total / len(drawn)


def ask_for_harder(
    learner: Functional,
    images: Sequence[Tensor],
    teachers: Sequence[Teacher],
    options: PurerOptions,
    *,
    generator: torch.Generator,
) -> None:
    """Add the gradient of `-adversarial * L_outer(episode; theta)`, through support and query alike, to the images'."""
    task = episode(by_class(images, teachers), options, generator=generator)
    loss, _ = _loss(learner, task, options, second_order=True)
    slopes = torch.autograd.grad(-options.adversarial * loss, list(images), allow_unused=True)
    for image, slope in zip(images, slopes, strict=True):
        if slope is not None:
            image.grad = slope if image.grad is None else image.grad + slope


def take_step(on_images: torch.optim.Optimizer, images: Sequence[Tensor]) -> None:
    """One step on the pseudo images, which then are cut to [0, 1]: what is learned from must be an image."""
    on_images.step()
    with torch.no_grad():
        for image in images:
            image.clamp_(0, 1)


def learn(
    learner: Functional,
    outer: torch.optim.Optimizer,
    classes: Sequence[Tensor],
    options: PurerOptions,
    *,
    generator: torch.Generator,
) -> tuple[float, float]:
    """One update of the meta-model on the mean of some episodes' losses; their mean loss and accuracy before it."""
    values = list(learner.parameters.values())
    slopes = [torch.zeros_like(value) for value in values]
    losses, right = 0.0, 0.0
    fixed = [held.detach() for held in classes]
    for _ in range(options.episodes):
        task = _moved(episode(fixed, options, generator=generator), options.shift, generator)
        loss, accuracy = _loss(learner, task, options, second_order=options.second_order)
        for summed, slope in zip(slopes, torch.autograd.grad(loss, values, materialize_grads=True), strict=True):
            summed += slope / options.episodes
        losses += loss.item() / options.episodes
        right += accuracy / options.episodes
    for value, slope in zip(values, slopes, strict=True):
        value.grad = slope
    outer.step()
    return losses, right


def by_class(images: Sequence[Tensor], teachers: Sequence[Teacher]) -> list[Tensor]:
    """Every teacher's pseudo images class by class: (images a class, 3, h, w) each, differentiable to them."""
    return [
        part
        for image, teacher in zip(images, teachers, strict=True)
        for part in image.view(teacher.ways, -1, *image.shape[1:])
    ]


def episode(classes: Sequence[Tensor], options: PurerOptions, *, generator: torch.Generator) -> Task:
    """Classes drawn from all teachers' together; of each, `shots` images drawn for the support, all others the query."""
    chosen = torch.randperm(len(classes), generator=generator)[: options.ways].tolist()
    shuffled = [classes[index][torch.randperm(len(classes[index]), generator=generator)] for index in chosen]
    return split_task(torch.stack(shuffled), shots=options.shots)


def first_images(
    teachers: Sequence[Teacher],
    options: PurerOptions,
    shape: tuple[int, int, int],
    seed: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """What the pseudo images of each teacher begin as: noise, or objects, no two alike; float in [0, 1]."""
    counts = [teacher.ways * options.images_per_class for teacher in teachers]
    if options.initial == "noise":
        return [noise_images(count, shape, generator) for count in counts]
    drawn = query_set({"objects": 1.0}, seed=seed, size=shape[1:]).images(range(sum(counts)))
    return list(torch.split(torch.from_numpy(drawn).float() / 255, counts))


def _moved(task: Task, shift: int, generator: torch.Generator) -> Task:
    if not shift:
        return task
    support, query = (
        roll(images, shift=shift, flip=True, generator=generator) for images in (task.support, task.query)
    )
    return replace(task, support=support, query=query)


def _loss(learner: Functional, task: Task, options: PurerOptions, *, second_order: bool) -> tuple[Tensor, float]:
    return task_loss(
        options.learner,
        learner,
        task,
        steps=options.inner_steps,
        lr=options.inner_rate,
        second_order=second_order,
    )
