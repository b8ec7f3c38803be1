"""The papers' adaptation: all weights fine-tuned on the support, from a head of zeros. Slow beside a head alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import Evaluation
from dfml import tasks
from dfml.datasets import Dataset
from dfml.nets import Backbone
from dfml.nets.learner import Learner
from dfml.numerics.inner_loop import BatchNorm, fine_tune, functional


def finetuned_hits(
    backbone: Backbone,
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    batch_norm: BatchNorm,
    steps: int = 10,
    lr: float = 0.01,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Percent right of each episode, as `evaluate.hits`: float64 (shots listed, episodes).

    batch_norm: "batch" is the papers', transductive: support and query each by their own statistics.
    """
    images = dataset.images(evaluation.split)
    episodes = tasks.sample(evaluation, classes=images.shape[0], per_class=images.shape[1])
    flat = images.flatten(0, 1)
    with torch.random.fork_rng(devices=[]):
        learner = Learner(backbone, evaluation.ways).to(device).eval()
    torch.nn.init.zeros_(learner.head.weight)
    torch.nn.init.zeros_(learner.head.bias)
    call, start = functional(learner, batch_norm=batch_norm)
    right = torch.empty(len(evaluation.shots), evaluation.episodes, dtype=torch.float64)
    for episode in range(evaluation.episodes):
        query, answer = _chosen(flat, episodes.asked[episode], device)
        for row, shots in enumerate(evaluation.shots):
            support, labels = _chosen(flat, episodes.support(shots)[episode], device)
            tuned = fine_tune(
                lambda now, x=support, y=labels: F.cross_entropy(call(now, x), y),  # type: ignore[misc]
                start,
                steps=steps,
                lr=lr,
            )
            with torch.no_grad():
                guess = call(tuned, query).argmax(-1)
            right[row, episode] = (guess == answer).double().mean().item() * 100
    return right


def _chosen(images: Tensor, indices: tasks.Indices, device: torch.device | str) -> tuple[Tensor, Tensor]:
    ways, each = indices.shape
    labels = torch.arange(ways).repeat_interleave(each)
    return images[torch.from_numpy(indices.reshape(-1))].to(device), labels.to(device)
