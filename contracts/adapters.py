"""How an API is spoken to that does not speak the Open Inference Protocol: what it cannot say of itself, the caller says."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from contracts._base import Input, Place, refuse

Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ClassifyOptions(Input):
    """An API that takes PNG files as multipart/form-data and answers labels with scores, a list for each file."""

    labels: list[Label] = Field(
        min_length=2,
        max_length=10_000,
        description="Every label that it may answer; their order is that of the classes.",
    )
    size: int = Field(ge=4, le=512, description="Height and width of the PNG files to send, in pixels.")
    field: Label = Field("files", description="Name of the form field that holds the files.")
    max_images: int = Field(1, ge=1, le=512, description="Files a request; an API that takes one may answer one list.")
    top: int | None = Field(
        None, ge=1, description="How many labels it answers for each file, the likeliest. Default: all of them."
    )
    idempotency: bool = Field(
        False, description="It answers the same request under the same Idempotency-Key again without charging."
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> "ClassifyOptions":
        found: list[tuple[Place, str]] = [
            (("labels", index), "is listed before: list each label once")
            for index, label in enumerate(self.labels)
            if self.labels.index(label) < index
        ]
        if self.top is not None and self.top > len(self.labels):
            found.append((("top",), f"is more than the {len(self.labels)} labels"))
        refuse("ClassifyOptions", found)
        return self
