"""What a job would come to, told before it is sent."""

from pydantic import Field, model_validator

from contracts._base import Input, Place, Record, refuse
from contracts.jobs import JobRequest
from contracts.meta_models import Accuracy

MOST_PROBED = 32  # APIs


class Aim(Input):
    """An accuracy that a budget is looked for: so many points over the same network untrained."""

    shots: int = Field(1, ge=1, le=1000, description="Labelled images a class of the task that is learned.")
    gain: float = Field(gt=0, le=100, description="Points of accuracy over the untrained network.")


class EstimateRequest(JobRequest):
    """A job that is not started, and whether a few of its images may be asked about to tell more."""

    aim: Aim | None = Field(None, description="Say how many queries this needs; null for nothing.")

    probe: bool = Field(False, description="Ask each API about a few images, which it charges for: see `probe_images`.")
    probe_images: int = Field(
        8,
        ge=2,
        le=64,
        description="The most images that each API is asked about; fewer where the budget allows each fewer.",
    )

    @model_validator(mode="after")
    def _may_be_probed(self) -> "EstimateRequest":
        found: list[tuple[Place, str]] = []
        if self.probe and len(self.apis) > MOST_PROBED:
            found.append((("probe",), f"takes {MOST_PROBED} APIs at most, and {len(self.apis)} are given"))
        if self.probe and self.budget.queries < 2 * len(self.apis):
            found.append((("probe",), "needs a budget of two images for each API"))
        if self.probe and self.takes_weights:
            found.append((("probe",), "has nothing to ask: the method learns from published weights"))
        refuse("EstimateRequest", found)
        return self


class StatedLimit(Record):
    """A limit that an API's headers state. What it does not say is null."""

    name: str = Field(description="As stated; `default` where it has no name.")
    quota: int | None = Field(description="How many, in all or in each window.")
    window: int | None = Field(description="Seconds.")
    unit: str | None = Field(description="`images`, `requests` or another.")
    remaining: int | None = Field(description="How many were left.")


class ApiProbe(Record):
    """What one API showed when it was asked about a few images. Null is what it did not show."""

    charged: int = Field(0, description="Images that it answered.")
    unconfirmed: int = Field(0, description="Images sent whose outcome is unknown: it may have charged for them.")
    reason: str | None = Field(None, description="Why the probe ended early; null when it did not.")
    classes: int | None = Field(None, description="How many.")
    input_shape: tuple[int, int, int] | None = Field(None, description="Channels, height and width of an image.")
    decimals: int | None = Field(
        None, description="Decimal places that every probability was rounded to; null where they are not rounded."
    )
    top_k: int | None = Field(
        None, description="Most classes that an answer gave a probability above 0; null where some answer gave all one."
    )
    deterministic: bool | None = Field(
        None, description="The first image, sent again alone, was answered the same within 1e-5."
    )
    max_images: int | None = Field(None, description="Most images a request, as stated or found by a refusal.")
    idempotency: bool | None = Field(
        None, description="It answers again under the same key without a charge, as stated."
    )
    latency: float | None = Field(None, description="Median seconds of a request.")
    limits: list[StatedLimit] = Field(default=[], description="What its headers last stated.")


class Probe(Record):
    """What the APIs showed, and what that was charged."""

    charged: int = Field(description="Images answered, over all APIs.")
    unconfirmed: int = Field(description="Images sent whose outcome is unknown, over all APIs.")
    per_api: dict[str, ApiProbe] = Field(description="By API id.")


class ApiEstimate(Record):
    """One API's part of a job."""

    url: str = Field(description="As in the request.")
    queries: int = Field(
        description="Images planned for it; the most it may be asked, where the method asks as it goes."
    )
    cost: str | None = Field(description="What they cost at its `price_per_1k`; null where that was not given.")


class ExpectedAccuracy(Record):
    """Where few-shot accuracy may be expected to lie: read off our own measurements, which were made with other APIs."""

    low: Accuracy = Field(description="Percent, by number of shots.")
    high: Accuracy = Field(description="Percent, by number of shots.")
    untrained: Accuracy = Field(description="Percent of the same network untrained, in the same measurements.")
    measured_on: str = Field(
        description="What was measured: APIs, data set, budgets. Another task may be easier or harder."
    )


class NeededQueries(Record):
    """What an aim needs, read off the same measurements, between them linear in the logarithm of the queries.

    The smallest measured budget is the least that is told: below it nothing is known.
    """

    likely: int | None = Field(description="Images in all at which the mean of the measured runs is as good.")
    safe: int | None = Field(description="Images in all at which their lower edge is: interval and spread of seeds.")
    reason: str | None = Field(description="Why one of them is null; null where neither is.")


class Estimate(Record):
    """What a job would come to. Without a probe, nothing was asked and nothing spent to tell."""

    queries: int = Field(description="Images sent to all APIs together, at most.")
    cost: str | None = Field(description="What they cost, at most; null where an API has no `price_per_1k`.")
    currency: str = Field(description="Of every cost, as ISO 4217.")
    per_api: dict[str, ApiEstimate] = Field(description="By API id (`a0`, `a1`, … in the order of the request).")
    accuracy: ExpectedAccuracy | None = Field(description="Null where nothing like this job was measured.")
    needed: NeededQueries | None = Field(None, description="Null unless there was an `aim`.")
    seconds: float | None = Field(
        None,
        description="Of asking, at the rates that the APIs advertise; learning comes on top. Null: see `seconds_reason`.",
    )
    seconds_reason: str | None = Field(None, description="Why `seconds` is null; null where it is not.")
    probe: Probe | None = Field(None, description="Null unless it was asked for.")
