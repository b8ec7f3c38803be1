"""The options of every method, each a validated model; `dfml.methods` takes the same models as its config."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts._base import Input, refuse

Source = Literal["leaves", "objects", "spectra", "mixes"]
"""Kinds of procedural images; `dfml.procedural` makes them."""


class PqdOptions(Input):
    """Procedural query distillation: ask every API about images made from a seed, distil all answers into one backbone.

    What each value does to accuracy is measured in `docs/methods/pqd.md`.
    """

    name: Literal["pqd"] = Field("pqd", description="The method.")
    images: int | None = Field(
        None, ge=16, le=1_000_000, description="Size of the shared image pool. Default: planned from the budget."
    )
    apis_per_image: int | None = Field(
        None,
        ge=1,
        description="How many APIs, drawn at random, see each image. Default: all of them, or 8 under a tight budget.",
    )
    mixture: dict[Source, Annotated[float, Field(ge=0, le=1000)]] = Field(
        {"leaves": 1.0, "objects": 1.0, "spectra": 1.0, "mixes": 1.0},
        description="Relative shares of the image sources in the pool.",
    )
    relation: float = Field(0.3, ge=0, le=10, description="Weight of the relational term between images.")
    floor: float = Field(
        1e-4,
        gt=0,
        lt=0.5,
        description="Probabilities are clamped from below at this before the log; rounded ones at half a unit at least.",
    )
    steps: int | None = Field(
        None, ge=1, le=1_000_000, description="Optimiser steps. Default: 1500 up to 4096 images, then growing to 4000."
    )
    batch: int = Field(64, ge=4, le=4096, description="Images per optimiser step.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak of the one-cycle schedule. Default: 8e-3 for Conv4, 5e-3 for ResNets."
    )
    weight_decay: float = Field(1e-3, ge=0, le=1, description="AdamW's weight decay.")
    shift: int = Field(2, ge=0, le=16, description="Augmentation: random shift in pixels, both axes.")
    flip: bool = Field(True, description="Augmentation: random horizontal flip.")

    @model_validator(mode="after")
    def _some_source(self) -> "PqdOptions":
        if not sum(self.mixture.values()):
            refuse("PqdOptions", [(("mixture",), "give at least one source a share above zero")])
        return self


MethodOptions = PqdOptions
METHOD_NAMES: tuple[str, ...] = ("pqd",)
