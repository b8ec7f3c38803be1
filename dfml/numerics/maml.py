"""MAML's loss of one task (Finn et al. 2017): adapt on the support, be judged on the query."""

import torch.nn.functional as F
from torch import Tensor

from dfml.numerics.inner_loop import Call, Loss, Parameters, adapt
from dfml.replay import Task


def maml_loss(
    call: Call, parameters: Parameters, task: Task, *, steps: int, lr: float, second_order: bool
) -> tuple[Tensor, float]:
    """Cross-entropy on the query after `steps` on the support, differentiable to `parameters`; and the share of queries right.

    `call` gives logits (n, ways or more); those beyond the task's classes are left out.
    """
    ways = int(task.support_labels.max()) + 1

    def on(images: Tensor, labels: Tensor) -> Loss:
        return lambda now: F.cross_entropy(call(now, images)[:, :ways], labels)

    adapted = adapt(on(task.support, task.support_labels), parameters, steps=steps, lr=lr, second_order=second_order)
    logits = call(adapted, task.query)[:, :ways]
    right = (logits.argmax(-1) == task.query_labels).double().mean().item()
    return F.cross_entropy(logits, task.query_labels), right
