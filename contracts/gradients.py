"""Where methods that want gradients of an API take them from; `dfml.numerics.gradient_sources` has each."""

from typing import Literal

from pydantic import Field, model_validator

from contracts._base import Input, refuse


class GradientOptions(Input):
    """Where a white-box method takes the gradients of a teacher from: its published weights, or its answers.

    An image's gradient costs `directions` queries by `zeroth-order` (twice as many `antithetic`), one more by `guided`, none by
    `surrogate`; and each forward pass one. Every equation is in `docs/methods/gradients.md`.
    """

    source: Literal["weights", "zeroth-order", "surrogate", "guided"] = Field(
        "weights",
        description="`weights`: exact, for APIs that publish them, no queries. The others need answers alone: differences "
        "along random directions, a local network taught by all answers so far, or both.",
    )
    directions: int = Field(9, ge=1, le=10_000, description="Directions of an estimate.")
    antithetic: bool = Field(False, description="Two queries a direction, both ways; zeroth-order alone.")
    orthogonal: bool = Field(
        False, description="Directions of an image at right angles to each other; those of guided always are."
    )
    frequencies: int | None = Field(
        8,
        ge=1,
        le=1024,
        description="Directions made of this many lowest frequencies down and across. Null: of pixels.",
    )
    step: float | None = Field(
        None, gt=0, le=100, description="Length of a step. Default: from the precision of the API's answers."
    )

    @model_validator(mode="after")
    def _antithetic_alone(self) -> "GradientOptions":
        if self.antithetic and self.source == "guided":
            refuse("GradientOptions", [(("antithetic",), "guided differences go forward: turn it off")])
        return self
