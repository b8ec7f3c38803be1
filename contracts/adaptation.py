"""How a meta-model meets a new task: a few labelled images in, predictions or a model of the task's own out."""

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from contracts._base import Input, Name, Place, Record, refuse
from contracts.methods import IcfilOptions

Method = Literal["logistic", "prototypes", "fine-tune"]

DAY = 24 * 3600
MOST_WORK = 50_000
"""Images that fitting one task may put through the network and back: seconds on a CPU, not minutes."""


class LabelledImages(Input):
    """Images as base64 of a PNG, JPEG or WebP file each, with a label for each."""

    images: list[str] = Field(min_length=1, max_length=1000, description="base64 of a PNG, JPEG or WebP file each.")
    labels: list[Name] = Field(min_length=1, max_length=1000, description="The label of each image, in the same order.")

    @model_validator(mode="after")
    def _one_label_each(self) -> "LabelledImages":
        if len(self.images) != len(self.labels):
            message = f"{len(self.labels)} labels for {len(self.images)} images: send one label an image"
            refuse("LabelledImages", [(("labels",), message)])
        if len(set(self.labels)) < 2:
            refuse("LabelledImages", [(("labels",), "all are equal: a task needs at least two classes")])
        return self


class Calibration(Input):
    """ICFIL (PURER): invert images of the new classes from the tuned network, pull real features towards theirs."""

    images_per_class: int = Field(10, ge=1, le=100, description="Pseudo images inverted of a class.")
    inversion_steps: int = Field(50, ge=1, le=1000, description="Steps of that inversion.")
    temperature: float = Field(0.5, gt=0, le=100, description="Of the calibration loss, on normalised features.")
    steps: int = Field(5, ge=1, le=1000, description="Steps on the calibration loss.")
    rate: float = Field(0.01, gt=0, le=10, description="Their rate.")


class Task(Input):
    """A few labelled images, and how a task is learned from them."""

    support: LabelledImages = Field(description="What the task is learned from.")
    method: Method = Field(
        "logistic",
        description="`logistic`: logistic regression on frozen features. `prototypes`: the nearest class mean. "
        "`fine-tune`: a linear head and all weights of the network, by gradient descent.",
    )
    steps: int = Field(10, ge=0, le=1000, description="Steps of fine-tuning; also of that before a calibration.")
    rate: float = Field(0.01, gt=0, le=10, description="Their rate.")
    calibration: Calibration | None = Field(
        None, description="Fine-tune, then calibrate the features by ICFIL, before the method; null for neither."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of the calibration's noise; nothing else is random.")

    @model_validator(mode="after")
    def _within_reason(self) -> "Task":
        found: list[tuple[Place, str]] = []
        if self.fine_tuning is None:
            idle = [name for name in ("steps", "rate") if name in self.model_fields_set]
            found += [((name,), f"has no effect on {self.method}: send fine-tune or a calibration") for name in idle]
        elif (work := self._work()) > MOST_WORK:
            found.append(
                (
                    ("calibration" if self.calibration else "steps",),
                    f"{work} images would go through the network and back, {MOST_WORK} may: ask for fewer steps or images",
                )
            )
        refuse("Task", found)
        return self

    @property
    def fine_tuning(self) -> IcfilOptions | None:
        """How the network itself is changed; None where it stays as it is."""
        if self.calibration is None:
            if self.method != "fine-tune":
                return None
            return IcfilOptions(steps=self.steps, rate=self.rate, calibration_steps=0)
        return IcfilOptions(
            steps=self.steps,
            rate=self.rate,
            images_per_class=self.calibration.images_per_class,
            inversion_steps=self.calibration.inversion_steps,
            temperature=self.calibration.temperature,
            calibration_steps=self.calibration.steps,
            calibration_rate=self.calibration.rate,
        )

    def _work(self) -> int:
        shown, ways = len(self.support.images), len(set(self.support.labels))
        work = self.steps * shown
        if self.calibration is not None:
            pseudo = self.calibration.images_per_class * ways
            work += self.calibration.inversion_steps * pseudo + self.calibration.steps * (pseudo + shown)
        return work


class PredictRequest(Task):
    """A new task in one call: a few labelled images, and images to label."""

    query: list[str] = Field(min_length=1, max_length=1000, description="base64 of a PNG, JPEG or WebP file each.")


class Prediction(Record):
    """One query image: its most probable label, and the probability of every label."""

    label: str = Field(description="The most probable label.")
    probabilities: dict[str, float] = Field(description="By label; they sum to 1.")


class PredictResponse(Record):
    """Predictions in the order of the query images."""

    predictions: list[Prediction] = Field(description="One for each query image, in order.")


class AdaptRequest(Task):
    """A new task that becomes a model of its own, served until its time is over."""

    name: Name | None = Field(None, description="To find it by.")
    ttl: int = Field(DAY, ge=60, le=30 * DAY, description="Seconds for which it is served.")
    keep_support: bool = Field(
        False, description="Keep the support images, resized, beside it until it ends; else they are dropped at once."
    )


class AdaptedModel(Record):
    """A meta-model that has learned a task. Ask it at `path` by the Open Inference Protocol v2."""

    id: str = Field(description="Cannot be guessed; ids sort by time.")
    name: str | None = Field(description="As in the request.")
    meta_model: str = Field(description="The meta-model it was made from.")
    method: Method = Field(description="How the task was learned.")
    calibrated: bool = Field(description="Whether its features were calibrated by ICFIL.")
    seed: int = Field(description="As in the request.")
    labels: list[str] = Field(description="Its classes, in the order of its probabilities.")
    shots: dict[str, int] = Field(description="Images it learned from, by label.")
    input_shape: tuple[int, int, int] = Field(description="(channels, height, width) of the images it takes.")
    support_kept: bool = Field(description="Whether its support images are among `files`.")
    bytes: int = Field(description="Size of its own parameters; a shared network is not counted.")
    files: dict[str, str] = Field(description="File name to SHA-256.")
    path: str = Field(description="Where it is asked, relative to the server: `/v2/models/{id}`.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime = Field(description="When it ends: 410 from then on.")
    answered: int = Field(0, description="Images it has answered.")


class AdaptedModelPage(Record):
    """A page of adapted models, newest first; pass `next` as `after` for the following page."""

    items: list[AdaptedModel] = Field(description="The adapted models.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")
