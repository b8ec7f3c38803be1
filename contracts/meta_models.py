"""Meta-models: their architecture, how they are measured, and their record in the registry."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts._base import Input, Name, Place, Record, Tag, refuse

Accuracy = dict[str, float]
"""Percent by number of shots: `{"1": 40.9, "5": 55.7}`."""


class BackboneConfig(Input):
    """The network that becomes the meta-model. Normalisation (mean 0.5, std 0.25) is part of it: it takes [0, 1] or uint8."""

    backbone: Literal["conv4", "resnet10", "resnet12", "resnet18"] = Field("conv4", description="Its architecture.")
    width: Literal[16, 32, 64] = Field(32, description="Channels of the first block.")


class Evaluation(Input):
    """Few-shot accuracy on episodes of a data set that the worker has: the same `seed` always gives the same episodes."""

    dataset: Name = Field("glyphs", description="A data set that the worker has.")
    split: Literal["train", "val", "test"] = Field(
        "val", description="Which of its classes the episodes are drawn from."
    )
    ways: int = Field(5, ge=2, le=100, description="Classes an episode.")
    shots: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[1, 5],
        min_length=1,
        max_length=8,
        description="Labelled images a class; each number is measured by itself.",
    )
    queries: int = Field(15, ge=1, le=100, description="Query images a class and episode.")
    episodes: int = Field(600, ge=2, le=10_000, description="How many tasks the mean is taken over.")
    seed: int = Field(0, ge=0, lt=2**31, description="Which episodes are drawn.")


class Score(Record):
    """Mean accuracy in percent and its 95 % half-width in points, by number of shots."""

    accuracy: Accuracy = Field(description="Percent, by number of shots.")
    interval: Accuracy = Field(description="95 % half-width in points, by number of shots.")


class MetaModel(Record):
    """A published meta-model."""

    id: str = Field(description="Ids sort by time.")
    name: str = Field(description="The job's name, or its id.")
    created_at: datetime = Field(description="When it was published.")
    job: str = Field(description="The job that made it.")
    method: str = Field(description="Name of the method that trained it.")
    backbone: BackboneConfig = Field(description="Its network.")
    input_shape: tuple[int, int, int] = Field(description="(channels, height, width) of the images it takes.")
    seed: int = Field(description="The job's seed.")
    version: str = Field(description="Version of Metazoo that trained it.")
    queries: int = Field(description="Images paid for: confirmed and unconfirmed.")
    apis: list[str] = Field(description="SHA-256 of each API's URL: which APIs taught it, without naming them.")
    evaluation: Evaluation | None = Field(description="How it was measured; null if it was not.")
    score: Score | None = Field(
        description="Null when the job asked for no evaluation. Logistic head, inductive batch norm."
    )
    random_score: Score | None = Field(
        description="The same network untrained, mean of three seeds, on the same episodes."
    )
    files: dict[str, str] = Field(description="File name to SHA-256.")
    budget: int | None = Field(None, description="What the job might spend, in images; null where it was not noted.")
    teacher_passes: int | None = Field(
        None,
        description="Images that went forward or back through published weights, which costs no query; null where APIs "
        "were asked.",
    )
    unlabeled: str | None = Field(
        None, description="Image set that the APIs were asked about; null where the images were made from the seed."
    )
    reuse: list[str] = Field([], description="Earlier jobs whose answers it learned from too.")
    tags: list[str] = Field([], description="To group meta-models by; at first the job's.")
    notes: str = Field("", description="Whatever the next person should know.")


class MetaModelPage(Record):
    """A page of meta-models, newest first; pass `next` as `after` for the following page."""

    items: list[MetaModel] = Field(description="The meta-models.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")


class MetaModelEdit(Input):
    """What may be changed of a meta-model; what is absent or null stays."""

    name: Name | None = Field(None, description="A new name.")
    tags: list[Tag] | None = Field(None, max_length=32, description="All of its tags from now on.")
    notes: str | None = Field(None, max_length=10_000, description="Its notes from now on.")


MOST_FITTED = 20_000
"""Shots times episodes times ways of a comparison: seconds, not minutes."""


class CompareRequest(Input):
    """Two meta-models on the same episodes."""

    first: str = Field(max_length=100, description="Id of a meta-model.")
    second: str = Field(max_length=100, description="Id of another that takes images of the same size.")
    head: Literal["logistic", "prototypes"] = Field("logistic", description="How each episode's task is learned.")
    evaluation: Evaluation = Field(
        Evaluation(),
        description="The episodes, of a data set that the server has: glyphs, or what its METAZOO_DATA holds.",
    )

    @model_validator(mode="after")
    def _within_reason(self) -> "CompareRequest":
        found: list[tuple[Place, str]] = []
        if self.first == self.second:
            found.append((("second",), "is the first: compare two meta-models"))
        work = len(self.evaluation.shots) * self.evaluation.episodes * self.evaluation.ways
        if work > MOST_FITTED:
            message = f"shots x episodes x ways is {work}, and may be {MOST_FITTED}: ask for fewer episodes"
            found.append((("evaluation", "episodes"), message))
        refuse("CompareRequest", found)
        return self


class Comparison(Record):
    """Accuracy of two meta-models on the same episodes. A difference whose interval does not hold 0 is hardly chance."""

    first: Score = Field(description="The first one's accuracy.")
    second: Score = Field(description="The second one's accuracy.")
    difference: Score = Field(
        description="Second minus first, in points; its interval is that of the differences episode by episode."
    )
