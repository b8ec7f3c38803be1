"""Few-shot episodes: which images of which classes, drawn from a seed. numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.meta_models import Evaluation

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Episodes:
    """Indices into a split's images flattened to (classes * per_class, …).

    shown: int64 (episodes, ways, most shots). Fewer shots are a subset of more, and the queries are the same for any number.
    asked: int64 (episodes, ways, queries a class).
    """

    shown: Indices
    asked: Indices

    def support(self, shots: int) -> Indices:
        """(episodes, ways, shots)."""
        return self.shown[:, :, :shots]


def sample(evaluation: Evaluation, *, classes: int, per_class: int) -> Episodes:
    """The fixed episodes of an evaluation on a split of `classes` classes with `per_class` images each.

    The same seed gives the same episodes for ever: streams of RandomState are frozen by numpy's policy (NEP 19).
    Raises ValueError where the split is too small for the evaluation.
    """
    if evaluation.ways > classes:
        raise ValueError(f"ways: {evaluation.ways} is more than the {classes} classes of this split")
    needed = max(evaluation.shots) + evaluation.queries
    if needed > per_class:
        raise ValueError(
            f"shots and queries: an episode needs {needed} images a class, this split has {per_class}: ask for fewer"
        )
    rng = np.random.RandomState(evaluation.seed)
    shown = np.empty((evaluation.episodes, evaluation.ways, max(evaluation.shots)), np.int64)
    asked = np.empty((evaluation.episodes, evaluation.ways, evaluation.queries), np.int64)
    for episode in range(evaluation.episodes):
        for way, chosen in enumerate(rng.choice(classes, evaluation.ways, replace=False)):
            order = chosen * per_class + rng.permutation(per_class)
            shown[episode, way] = order[: shown.shape[2]]
            asked[episode, way] = order[-evaluation.queries :]
    return Episodes(shown, asked)
