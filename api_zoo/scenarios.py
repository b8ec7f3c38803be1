"""What a zoo is to hold: the papers' three scenarios, and the plan of every single teacher.

SS, one data set and one architecture; SH, one data set and several architectures; MH, several data sets and architectures,
with different ways and normalisations (Hu et al., ICML 2023, arXiv:2305.18413).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Architecture = Literal["conv4", "resnet10", "resnet18"]
Width = Literal[16, 32, 64]
Scenario = Literal["ss", "sh", "mh"]

ARCHITECTURES: tuple[Architecture, ...] = ("conv4", "resnet10", "resnet18")
MH_WAYS = (3, 5, 8)


@dataclass(frozen=True)
class Lesson:
    """What one teacher is trained on, and what it is."""

    dataset: str
    backbone: Architecture
    side: int | None
    ways: int


@dataclass(frozen=True)
class BuildPlan:
    """What a zoo folder is to hold. Several of a thing: teachers differ in it.

    Data sets and architectures take turns, so that each combination is met equally often; ways and sides are drawn.
    sides: pixels of their images; empty: as the data sets are. own_statistics: each normalises by the mean and standard
    deviation of its own training images, instead of all alike. epochs None: as many as `dfml.supervised` holds right.
    """

    datasets: tuple[str, ...] = ("glyphs",)
    split: str = "train"
    teachers: int = 12
    ways: tuple[int, ...] = (5,)
    architectures: tuple[Architecture, ...] = ("conv4",)
    sides: tuple[int, ...] = ()
    own_statistics: bool = False
    width: Width = 32
    seed: int = 0
    epochs: int | None = None
    patience: int | None = None

    @property
    def digits(self) -> int:
        """Of a teacher's number in its file name."""
        return max(2, len(str(self.teachers - 1)))

    def lesson(self, number: int) -> Lesson:
        """Of teacher `number`."""
        turn, dataset = divmod(number, len(self.datasets))
        rng = Random(f"{self.seed}/{number}/lesson")
        return Lesson(
            self.datasets[dataset],
            self.architectures[turn % len(self.architectures)],
            rng.choice(self.sides) if self.sides else None,
            rng.choice(self.ways),
        )

    def classes(self, number: int, names: tuple[str, ...]) -> list[str]:
        """The classes of teacher `number`, drawn from the data set's without repetition, in random order."""
        return Random(f"{self.seed}/{number}").sample(names, self.lesson(number).ways)


def plan_for(
    scenario: Scenario,
    datasets: Sequence[str],
    *,
    architectures: Sequence[Architecture] = (),
    ways: Sequence[int] = (),
    sides: Sequence[int] = (),
    split: str = "train",
    teachers: int = 12,
    width: Width = 32,
    seed: int = 0,
    epochs: int | None = None,
    patience: int | None = None,
) -> BuildPlan:
    """The plan of a scenario. What is left empty is as it asks: glyphs, the three architectures, 5 ways (MH: 3, 5, 8).

    Raises ValueError on what is no such scenario.
    """
    datasets = tuple(dict.fromkeys(datasets)) or ("glyphs",)
    architectures = tuple(dict.fromkeys(architectures)) or (ARCHITECTURES[:1] if scenario == "ss" else ARCHITECTURES)
    if scenario == "mh" and len(datasets) < 2:
        raise ValueError(f"scenario mh mixes data sets, and {datasets[0]} is one: give --dataset twice or more")
    if scenario != "mh" and len(datasets) > 1:
        raise ValueError(f"scenario {scenario} has one data set, {', '.join(datasets)} are {len(datasets)}: give mh")
    if (scenario == "ss") != (len(architectures) == 1) and scenario != "mh":
        named = ", ".join(architectures)
        raise ValueError(f"scenario ss has one architecture and sh has several, {named}: {len(architectures)}")
    return BuildPlan(
        datasets=datasets,
        split=split,
        teachers=teachers,
        ways=tuple(ways) or (MH_WAYS if scenario == "mh" else (5,)),
        architectures=architectures,
        sides=tuple(sides),
        own_statistics=scenario == "mh",
        width=width,
        seed=seed,
        epochs=epochs,
        patience=patience,
    )
