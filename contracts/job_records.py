"""What is kept of a job beside where it stands: its events, its training's metrics, and the answers it paid for."""

from datetime import datetime
from typing import Any

from pydantic import Field

from contracts._base import Record


class Event(Record):
    """Something that happened to a job. `id` is the Redis stream id: pass the last one seen to resume after it."""

    id: str = Field(description="Place in the job's stream; ids grow.")
    time: datetime = Field(description="When it happened.")
    type: str = Field(
        description="`status`, `phase`, `api`, `progress`, `metrics`, `budget`, `changed`, `published` or `warning`."
    )
    data: dict[str, Any] = Field(description="What happened; its fields depend on `type`.")


class EventPage(Record):
    """Events, oldest first; `last` resumes after them."""

    items: list[Event] = Field(description="The events.")
    last: str | None = Field(description="Id of the last event on the page, or the `after` given if there is none.")


class MetricPoint(Record):
    """Training metrics at one step."""

    id: str = Field(description="Id of the event that told them; ids grow.")
    time: datetime = Field(description="When they were told.")
    step: int = Field(description="Optimiser steps done.")
    steps: int = Field(description="Optimiser steps planned.")
    values: dict[str, float] = Field(description="By the metric's name.")


class MetricPage(Record):
    """Metrics, oldest first; `last` resumes after them, null when there is nothing more so far."""

    items: list[MetricPoint] = Field(description="The points.")
    last: str | None = Field(description="Pass as `after` for the following page; null on the last.")


class PaidAnswer(Record):
    """A chunk of images that one API answered: the answer was paid for and is kept, exactly as received."""

    name: str = Field(description="Names the file: `…/answers/{name}`, safetensors `indices` and `probabilities`.")
    api: str = Field(description="API id.")
    images: int = Field(description="How many.")


class AnswerPage(Record):
    """A page of paid answers, by API and in the order they were sent; pass `next` as `after` for the following page."""

    items: list[PaidAnswer] = Field(description="The answers.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")
