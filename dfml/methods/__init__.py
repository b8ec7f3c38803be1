"""Every method by its name: how it trains, the options it takes, and whether all it asks is planned before it asks.

`train(teachers, config, options, *, queries, queries_per_api, seed, device, on_step)` gives something with a `backbone` and
`metrics`; methods that ask as they go, and `distil` of those that do not, take a `checkpoint` too. What a method needs of its
teachers is in the type of `teachers`, or follows from `options.gradients`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from contracts.meta_models import BackboneConfig
from contracts.methods import (
    BidfMkdOptions,
    DistillAverageOptions,
    FreeOptions,
    PqdOptions,
    PurerOptions,
)
from dfml.memory import Answers
from dfml.methods import bidf_mkd, distill, free, pqd, purer

__all__ = ["METHODS", "Method", "bidf_mkd", "distill", "free", "pqd", "purer"]


@dataclass(frozen=True)
class Method:
    """`distil`: learns from `Answers` about a planned pool of images; None where the method asks as it goes (`adaptive`)."""

    options: type[BaseModel]
    train: Callable[..., Any]
    distil: Callable[..., Any] | None = None

    def learn(self, answers: Answers, config: BackboneConfig, options: Any, **rest: Any) -> Any:
        """`distil`, for methods that have it. Raises TypeError for one that asks as it goes."""
        if self.distil is None:
            raise TypeError(
                f"{self.options.__name__}: this method asks as it goes, and cannot learn from answers alone"
            )
        return self.distil(answers, config, options, **rest)

    @property
    def adaptive(self) -> bool:
        """What it asks next depends on what was answered."""
        return self.distil is None


METHODS = {
    "pqd": Method(PqdOptions, pqd.train, pqd.distil),
    "bidf_mkd": Method(BidfMkdOptions, bidf_mkd.train),
    "free": Method(FreeOptions, free.train),
    "purer": Method(PurerOptions, purer.train),
    "distill_average": Method(DistillAverageOptions, distill.train, distill.distil),
}
