"""Few-shot accuracy with its 95 % interval, on a fixed list of episodes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig, Evaluation, Score
from dfml import tasks
from dfml.adaptation import Embedding, HeadName, embed, heads
from dfml.datasets import Dataset
from dfml.nets import build

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
    return _score(_hits(backbone, dataset, evaluation, head, device, on_episode), evaluation)


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
        runs.append(_hits(backbone, dataset, evaluation, head, device, _part(on_episode, position, len(seeds))))
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
    one, other = (_hits(backbone, dataset, evaluation, head, device, None) for backbone in (first, second))
    return _score(one, evaluation), _score(other, evaluation), _score(other - one, evaluation)


def _hits(
    backbone: Embedding,
    dataset: Dataset,
    evaluation: Evaluation,
    head: HeadName,
    device: torch.device | str,
    on_episode: OnEpisode | None,
) -> Tensor:
    """Percent right: float64 (shots listed, episodes)."""
    images = dataset.images(evaluation.split)
    classes, per_class = images.shape[:2]
    if tuple(images.shape[2:]) != backbone.input_shape:
        raise ValueError(
            f"{dataset.name} has images of {tuple(images.shape[2:])}, the network takes {backbone.input_shape}: "
            "evaluate on a data set of that size"
        )
    episodes = tasks.sample(evaluation, classes=classes, per_class=per_class)
    features = embed(backbone.to(device), images.flatten(0, 1))
    right = torch.empty(len(evaluation.shots), evaluation.episodes, dtype=torch.float64)
    an_episode = evaluation.ways * (max(evaluation.shots) + evaluation.queries) * features.shape[1]
    together = min(TOGETHER, max(1, _NUMBERS_TOGETHER // an_episode))
    for start in range(0, evaluation.episodes, together):
        part = slice(start, start + together)
        query, answer = _gather(features, episodes.asked[part])
        for row, shots in enumerate(evaluation.shots):
            support, labels = _gather(features, episodes.support(shots)[part])
            with torch.inference_mode():
                guess = heads(head, support, labels, ways=evaluation.ways).logits(query).argmax(-1)
            right[row, part] = (guess == answer).double().mean(1).cpu() * 100
        if on_episode is not None:
            on_episode(min(start + together, evaluation.episodes), evaluation.episodes)
    return right


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
