"""What a job would come to, told before it is sent."""

from pydantic import Field

from contracts._base import Record
from contracts.meta_models import Accuracy


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


class Estimate(Record):
    """What a job would come to. Nothing was asked and nothing spent to tell."""

    queries: int = Field(description="Images sent to all APIs together, at most.")
    cost: str | None = Field(description="What they cost, at most; null where an API has no `price_per_1k`.")
    currency: str = Field(description="Of every cost, as ISO 4217.")
    per_api: dict[str, ApiEstimate] = Field(description="By API id (`a0`, `a1`, … in the order of the request).")
    accuracy: ExpectedAccuracy | None = Field(description="Null where nothing like this job was measured.")
