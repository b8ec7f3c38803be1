"""Meta-models: their architecture, their record in the registry, and prediction in one call."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts._base import Input, Name, Record, refuse

Accuracy = dict[str, float]
"""Percent by number of shots: `{"1": 40.9, "5": 55.7}`."""


class BackboneConfig(Input):
    """The network that becomes the meta-model. Normalisation (mean 0.5, std 0.25) is part of it: it takes [0, 1] or uint8."""

    backbone: Literal["conv4", "resnet10"] = "conv4"
    width: Literal[16, 32, 64] = Field(32, description="Channels of the first block.")


class Evaluation(Input):
    """Few-shot accuracy on episodes of a data set that the worker has: the same `seed` always gives the same episodes."""

    dataset: Name = "glyphs"
    split: Literal["train", "val", "test"] = "val"
    ways: int = Field(5, ge=2, le=100)
    shots: list[Annotated[int, Field(ge=1, le=100)]] = Field(default=[1, 5], min_length=1, max_length=8)
    queries: int = Field(15, ge=1, le=100, description="Query images a class and episode.")
    episodes: int = Field(600, ge=2, le=10_000)
    seed: int = Field(0, ge=0, lt=2**31)


class Score(Record):
    """Mean accuracy in percent and its 95 % half-width in points, by number of shots."""

    accuracy: Accuracy
    interval: Accuracy


class MetaModel(Record):
    """A published meta-model."""

    id: str
    name: str
    created_at: datetime
    job: str
    method: str
    backbone: BackboneConfig
    input_shape: tuple[int, int, int] = Field(description="(channels, height, width) of the images it takes.")
    seed: int
    version: str = Field(description="Version of Metazoo that trained it.")
    queries: int = Field(description="Images paid for: confirmed and unconfirmed.")
    apis: list[str] = Field(description="SHA-256 of each API's URL: which APIs taught it, without naming them.")
    evaluation: Evaluation | None
    score: Score | None = Field(
        description="Null when the job asked for no evaluation. Logistic head, inductive batch norm."
    )
    random_score: Score | None = Field(
        description="The same network untrained, mean of three seeds, on the same episodes."
    )
    files: dict[str, str] = Field(description="File name to SHA-256.")


class LabelledImages(Input):
    """Images as base64 of a PNG, JPEG or WebP file each, with a label for each."""

    images: list[str] = Field(min_length=1, max_length=1000)
    labels: list[Name] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _one_label_each(self) -> "LabelledImages":
        if len(self.images) != len(self.labels):
            message = f"{len(self.labels)} labels for {len(self.images)} images: send one label an image"
            refuse("LabelledImages", [(("labels",), message)])
        if len(set(self.labels)) < 2:
            refuse("LabelledImages", [(("labels",), "all are equal: a task needs at least two classes")])
        return self


class PredictRequest(Input):
    """A new task in one call: a few labelled images, and images to label."""

    support: LabelledImages
    query: list[str] = Field(min_length=1, max_length=1000, description="base64 of a PNG, JPEG or WebP file each.")
    head: Literal["logistic", "prototypes"] = "logistic"


class Prediction(Record):
    """One query image: its most probable label, and the probability of every label."""

    label: str
    probabilities: dict[str, float]


class PredictResponse(Record):
    """Predictions in the order of the query images."""

    predictions: list[Prediction]


class MetaModelPage(Record):
    """A page of meta-models, newest first; pass `next` as `after` for the following page."""

    items: list[MetaModel]
    next: str | None
