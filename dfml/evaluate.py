"""Few-shot accuracy with its 95 % interval, on a fixed list of episodes."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig, Evaluation, Score
from dfml import tasks
from dfml.adaptation import Embedding, HeadName, embed, heads
from dfml.datasets import Dataset
from dfml.nets import build
from dfml.numerics.inner_loop import BatchNorm, functional

TOGETHER = 100
"""Episodes whose heads are fitted at once, at most: enough to be fast."""
_NUMBERS_TOGETHER = 2**25  # features held at once: 128 MiB

OnEpisode = Callable[[int, int], None]
"""Called with (episodes done, episodes in all); it may raise to stop."""


def evaluate(
    backbone: Embedding,
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    head: HeadName = "logistic",
    device: torch.device | str = "cpu",
    on_episode: OnEpisode | None = None,
) -> Score:
    """Accuracy of a head fitted to each episode's support, on frozen features with inductive batch norm.

    Raises ValueError where the data set's images or the evaluation do not fit.
    """
    return _score(hits(backbone, dataset, evaluation, head, device, on_episode), evaluation)


def evaluate_random(
    config: BackboneConfig,
    input_shape: tuple[int, int, int],
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    head: HeadName = "logistic",
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "cpu",
    on_episode: OnEpisode | None = None,
) -> Score:
    """The control: the same network untrained, mean over `seeds`; the interval is that of the episodes' means."""
    runs = []
    for position, seed in enumerate(seeds):
        backbone = build(config, input_shape, generator=torch.Generator().manual_seed(seed))
        runs.append(hits(backbone, dataset, evaluation, head, device, _part(on_episode, position, len(seeds))))
    return _score(torch.stack(runs).mean(0), evaluation)


def compare(
    first: Embedding,
    second: Embedding,
    dataset: Dataset,
    evaluation: Evaluation,
    *,
    head: HeadName = "logistic",
    device: torch.device | str = "cpu",
) -> tuple[Score, Score, Score]:
    """`evaluate` of both on the same episodes, and of second minus first: paired, so episodes that are hard for both cancel."""
    one, other = (hits(backbone, dataset, evaluation, head, device) for backbone in (first, second))
    return _score(one, evaluation), _score(other, evaluation), _score(other - one, evaluation)


def hits(
    backbone: Embedding,
    dataset: Dataset,
    evaluation: Evaluation,
    head: HeadName,
    device: torch.device | str,
    on_episode: OnEpisode | None = None,
    *,
    batch_norm: BatchNorm = "running",
) -> Tensor:
    """Percent right of each episode: float64 (shots listed, episodes). For paired differences, see `difference`.

    batch_norm: "batch" is transductive: the images of an episode are normalised by their own statistics, support and query
    together, as in the papers' tables.
    """
    images = dataset.images(evaluation.split)
    classes, per_class = images.shape[:2]
    if tuple(images.shape[2:]) != backbone.input_shape:
        raise ValueError(
            f"{dataset.name} has images of {tuple(images.shape[2:])}, the network takes {backbone.input_shape}: "
            "evaluate on a data set of that size"
        )
    episodes = tasks.sample(evaluation, classes=classes, per_class=per_class)
    flat = images.flatten(0, 1)
    inductive = batch_norm == "running"
    features = embed(backbone.to(device), flat) if inductive else flat
    right = torch.empty(len(evaluation.shots), evaluation.episodes, dtype=torch.float64)
    an_episode = evaluation.ways * (max(evaluation.shots) + evaluation.queries) * backbone.dim
    together = min(TOGETHER, max(1, _NUMBERS_TOGETHER // an_episode))
    for start in range(0, evaluation.episodes, together):
        part = slice(start, start + together)
        for row, shots in enumerate(evaluation.shots):
            support, labels = _gather(features, episodes.support(shots)[part])
            query, answer = _gather(features, episodes.asked[part])
            if not inductive:
                support, query = _by_episode(backbone, support.to(device), query.to(device))
                labels, answer = labels.to(device), answer.to(device)
            with torch.inference_mode():
                guess = heads(head, support, labels, ways=evaluation.ways).logits(query).argmax(-1)
            right[row, part] = (guess == answer).double().mean(1).cpu() * 100
        if on_episode is not None:
            on_episode(min(start + together, evaluation.episodes), evaluation.episodes)
    return right


def difference(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of two results of `hits` on the same episodes: mean of one less the other, and its 95 % half-width, a number a shot."""
    apart = one - other
    return apart.mean(1), 1.96 * apart.std(1, correction=0) / apart.shape[1] ** 0.5


def _by_episode(backbone: Embedding, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Images (tasks, n, 3, h, w) and (tasks, m, …) -> features, each task a batch to batch norm."""
    module = cast(nn.Module, backbone)
    call, parameters = functional(module, batch_norm="batch")
    with torch.no_grad():
        found = torch.stack([call(parameters, torch.cat(both)) for both in zip(support, query, strict=True)])
    return found[:, : support.shape[1]], found[:, support.shape[1] :]


def _gather(features: Tensor, indices: tasks.Indices) -> tuple[Tensor, Tensor]:
    """Indices (tasks, ways, n) -> features (tasks, ways * n, d) and labels (tasks, ways * n)."""
    count, ways, each = indices.shape
    chosen = features[torch.from_numpy(indices.reshape(count, -1)).to(features.device)]
    labels = torch.arange(ways, device=features.device).repeat_interleave(each).expand(count, -1)
    return chosen, labels


def _score(right: Tensor, evaluation: Evaluation) -> Score:
    half_width = 1.96 * right.std(1, correction=0) / evaluation.episodes**0.5
    shots = [str(number) for number in evaluation.shots]
    return Score(
        accuracy=dict(zip(shots, right.mean(1).tolist(), strict=True)),
        interval=dict(zip(shots, half_width.tolist(), strict=True)),
    )


def _part(on_episode: OnEpisode | None, position: int, parts: int) -> OnEpisode | None:
    """A callback that counts one of several equal parts."""
    if on_episode is None:
        return None
    report = on_episode
    return lambda done, total: report(position * total + done, parts * total)
