"""A task's loss to a meta-learner: what is learned on the support, judged on the query, differentiable to where it began.

    maml       Finn et al. 2017: gradient descent in all parameters; first-order where `second_order` is off
    anil       Raghu et al. 2020: in the head alone, on features computed once
    protonet   Snell et al. 2017: nearest class mean; no step, and the head is not used
    ridge      Bertinetto et al. 2019 (R2-D2): the head is a ridge regression on the support, solved in closed form; no step

On a CPU a task of 5 ways, 5 shots and 15 queries costs maml 0.2 s at first order with five steps, the others 0.06 s.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.methods import MetaLearnerName
from dfml.nets.learner import Learner
from dfml.numerics.inner_loop import BatchNorm, Call, Loss, Parameters, adapt, functional
from dfml.replay import Task

HEAD = ("head.weight", "head.bias")
BACKBONE = "backbone."
RIDGE, SHARPNESS = 0.1, 10.0
"""Of `ridge_loss`: lambda, and what a prediction of one becomes as a logit. R2-D2 learns both; these are fixed."""

TaskLoss = Callable[[Task], tuple[Tensor, float]]
"""A task -> cross-entropy on its query, differentiable to the parameters, and the share of the query that is right."""


@dataclass(frozen=True)
class Functional:
    """A learner as pure functions of `parameters`, its own tensors.

    logits, features: `(parameters, images)` -> (n, ways), (n, dim).
    """

    parameters: Parameters
    logits: Call
    features: Call


def functional_learner(learner: Learner, *, batch_norm: BatchNorm = "batch") -> Functional:
    """Its parameters and functions; transductive batch norm unless said, as in all three papers."""
    logits, parameters = functional(learner, batch_norm=batch_norm)
    of_backbone, _ = functional(learner.backbone, batch_norm=batch_norm)

    def features(now: Parameters, images: Tensor) -> Tensor:
        own = {name.removeprefix(BACKBONE): value for name, value in now.items() if name.startswith(BACKBONE)}
        found: Tensor = of_backbone(own, images)
        return found

    return Functional(parameters, logits, features)


def task_loss(
    name: MetaLearnerName, learner: Functional, task: Task, *, steps: int, lr: float, second_order: bool
) -> tuple[Tensor, float]:
    """The loss of the meta-learner `name`; `steps`, `lr` and `second_order` are those of its inner loop, if it has one."""
    if name == "protonet":
        return protonet_loss(learner.features, learner.parameters, task)
    if name == "ridge":
        return ridge_loss(learner.features, learner.parameters, task)
    if name == "anil":
        return anil_loss(learner.features, learner.parameters, task, steps=steps, lr=lr, second_order=second_order)
    return maml_loss(learner.logits, learner.parameters, task, steps=steps, lr=lr, second_order=second_order)


def maml_loss(
    call: Call, parameters: Parameters, task: Task, *, steps: int, lr: float, second_order: bool
) -> tuple[Tensor, float]:
    """After `steps` on the support, in all parameters. `call`: logits (n, ways or more), the first of which are the task's."""
    ways = _ways(task)

    def on(images: Tensor, labels: Tensor) -> Loss:
        return lambda now: F.cross_entropy(call(now, images)[:, :ways], labels)

    adapted = adapt(on(task.support, task.support_labels), parameters, steps=steps, lr=lr, second_order=second_order)
    return _judged(call(adapted, task.query)[:, :ways], task)


def anil_loss(
    features: Call, parameters: Parameters, task: Task, *, steps: int, lr: float, second_order: bool
) -> tuple[Tensor, float]:
    """After `steps` on the support in the head alone; support and query pass the backbone once, as one batch."""
    ways = _ways(task)
    support, query = _embedded(features, parameters, task)

    def logits(now: Parameters, of: Tensor) -> Tensor:
        return F.linear(of, now["head.weight"], now["head.bias"])[:, :ways]

    adapted = adapt(
        lambda now: F.cross_entropy(logits(now, support), task.support_labels),
        {name: parameters[name] for name in HEAD},
        steps=steps,
        lr=lr,
        second_order=second_order,
    )
    return _judged(logits(adapted, query), task)


def protonet_loss(features: Call, parameters: Parameters, task: Task) -> tuple[Tensor, float]:
    """Logits are squared distances to the class means of the support, over the root of the features' dimension.

    The root keeps the softmax of a fresh network from being one-hot, whatever its size. Images pass as one batch.
    """
    support, query = _embedded(features, parameters, task)
    members = F.one_hot(task.support_labels, _ways(task)).to(support.dtype)
    prototypes = members.T @ support / members.sum(0)[:, None]
    return _judged(-torch.cdist(query, prototypes).square() / query.shape[1] ** 0.5, task)


def ridge_loss(features: Call, parameters: Parameters, task: Task) -> tuple[Tensor, float]:
    """Logits are `SHARPNESS` times `x W`, `W = X'(X X' + RIDGE I)^-1 Y` (Woodbury: as many unknowns as support images).

    X, x: features of support and query at length one, with a one behind them for the bias; Y: one-hot labels. Images pass the
    backbone as one batch.
    """
    support, query = (
        torch.cat([F.normalize(found, dim=-1), found.new_ones(len(found), 1)], 1)
        for found in _embedded(features, parameters, task)
    )
    wanted = F.one_hot(task.support_labels, _ways(task)).to(support.dtype)
    ridge = RIDGE * torch.eye(len(support), dtype=support.dtype, device=support.device)
    weights = support.T @ torch.linalg.solve(support @ support.T + ridge, wanted)
    return _judged(SHARPNESS * query @ weights, task)


def _embedded(features: Call, parameters: Parameters, task: Task) -> tuple[Tensor, Tensor]:
    found = features(parameters, torch.cat([task.support, task.query]))
    return found[: len(task.support)], found[len(task.support) :]


def _judged(logits: Tensor, task: Task) -> tuple[Tensor, float]:
    right = (logits.detach().argmax(-1) == task.query_labels).double().mean().item()
    return F.cross_entropy(logits, task.query_labels), right


def _ways(task: Task) -> int:
    return int(task.support_labels.max()) + 1
