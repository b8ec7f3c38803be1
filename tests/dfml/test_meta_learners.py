"""Meta-learners against the hand-written step, and where their gradients reach."""

import copy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import MetaLearnerName
from dfml.nets.learner import Learner, build_learner
from dfml.numerics.meta_learners import RIDGE, SHARPNESS, functional_learner, task_loss
from dfml.replay import Task, split_task


@pytest.fixture
def learner(generator: torch.Generator) -> Learner:
    return build_learner(BackboneConfig(width=16), (3, 16, 16), ways=4, generator=generator)


@pytest.fixture
def task(generator: torch.Generator) -> Task:
    return split_task(torch.rand(3, 5, 3, 16, 16, generator=generator), shots=2)


def loss_of(name: MetaLearnerName, learner: Learner, task: Task, *, second_order: bool = False) -> tuple[Tensor, float]:
    return task_loss(name, functional_learner(learner), task, steps=2, lr=0.1, second_order=second_order)


def test_anil_is_two_steps_of_the_head_by_hand(learner: Learner, task: Task) -> None:
    loss, right = loss_of("anil", learner, task)
    own = copy.deepcopy(learner).train()
    features = own.backbone(torch.cat([task.support, task.query])).detach()
    support, query = features[:6], features[6:]
    for _ in range(2):
        own.head.zero_grad()
        F.cross_entropy(own.head(support)[:, :3], task.support_labels).backward()
        with torch.no_grad():
            for value in own.head.parameters():
                value -= 0.1 * value.grad
    logits = own.head(query)[:, :3]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, task.query_labels).item(), rel=1e-4)
    assert right == pytest.approx((logits.argmax(-1) == task.query_labels).float().mean().item())


def test_protonet_is_the_nearest_class_mean_by_hand(learner: Learner, task: Task) -> None:
    loss, right = loss_of("protonet", learner, task)
    features = copy.deepcopy(learner.backbone).train()(torch.cat([task.support, task.query])).detach()
    means = torch.stack([features[:6][task.support_labels == label].mean(0) for label in range(3)])
    squared = (features[6:, None] - means).square().sum(-1)
    assert loss.item() == pytest.approx(F.cross_entropy(-squared / 4, task.query_labels).item(), rel=1e-4)  # 16 numbers
    assert right == pytest.approx((squared.argmin(-1) == task.query_labels).float().mean().item())


def test_ridge_minimises_the_penalised_squares(learner: Learner, task: Task) -> None:
    """The gradient of `|X W - Y|^2 + lambda |W|^2` is zero where the loss takes its weights; bias among them."""
    loss, right = loss_of("ridge", learner, task)
    features = copy.deepcopy(learner.backbone).train()(torch.cat([task.support, task.query])).detach().double()
    x = torch.cat([F.normalize(features, dim=-1), torch.ones(len(features), 1)], 1)
    wanted = F.one_hot(task.support_labels).double()
    normal = x[:6].T @ x[:6] + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    logits = SHARPNESS * x[6:] @ torch.linalg.solve(normal, x[:6].T @ wanted)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, task.query_labels).item(), rel=1e-3)
    assert right == pytest.approx((logits.argmax(-1) == task.query_labels).float().mean().item())


@pytest.mark.parametrize("name", get_args(MetaLearnerName))
def test_every_learner_teaches_the_backbone_and_leaves_the_module_alone(
    learner: Learner, task: Task, name: MetaLearnerName
) -> None:
    before = copy.deepcopy(learner.state_dict())
    loss, _ = loss_of(name, learner, task, second_order=True)
    slopes = torch.autograd.grad(loss, list(learner.backbone.parameters()))
    assert all(slope.abs().sum() > 0 for slope in slopes)
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


def test_first_and_second_order_differ_in_the_slopes_alone(learner: Learner, task: Task) -> None:
    (one, _), (two, _) = (loss_of("maml", learner, task, second_order=order) for order in (False, True))
    assert one.item() == pytest.approx(two.item(), rel=1e-4)
    first, second = (torch.autograd.grad(loss, [learner.head.weight])[0] for loss in (one, two))
    assert not torch.allclose(first, second, rtol=1e-2)
