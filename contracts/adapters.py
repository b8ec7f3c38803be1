"""How an API is spoken to that does not speak the Open Inference Protocol: what it cannot say of itself, the caller says."""

import json
import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from contracts import json_pointer
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


IMAGE, IMAGES = "{{image}}", "{{images}}"
MAX_TEMPLATE = 64 * 1024  # bytes of JSON
MAX_DEPTH = 32

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_OURS = {  # what the request itself, its way or the worker says
    *(
        "host",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "idempotency-key",
        "keep-alive",
    ),
    *("accept-encoding", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "forwarded", "x-images"),
}
_SECRET = re.compile("auth|cookie|credential|key|password|secret|token")


class CustomOptions(Input):
    """An API of any make: the JSON that asks it, and where its answer holds the scores.

    A value of the template that is `"{{image}}"` becomes the image; one that is `"{{images}}"` becomes the list of the
    request's images, each written as `item` says. Values are inserted as JSON, never into a text.
    """

    template: JsonValue = Field(
        description='The body of a request. Holds `"{{image}}"` or `"{{images}}"` once. Stored and shown as it is: no secrets.'
    )
    item: JsonValue = Field(
        IMAGE, description='What stands for one image in the list of `"{{images}}"`. Holds `"{{image}}"` once.'
    )
    encoding: Literal["png", "jpeg", "png_url", "jpeg_url", "float", "uint8"] = Field(
        "png",
        description="What an image becomes: a file in base64, the same as a `data:` URL, or nested lists of numbers, "
        "in [0, 1] (`float`) or whole ones to 255 (`uint8`).",
    )
    layout: Literal["hwc", "chw"] = Field(
        "hwc", description="Order of nested lists: rows, columns, channels or another."
    )
    size: int = Field(ge=4, le=512, description="Height and width of the images to send, in pixels.")
    scores: str = Field(
        max_length=1000,
        description="JSON Pointer (RFC 6901) to an image's scores in the answer; `*` is each element of a list, and with "
        '`"{{images}}"` the first `*` is each image. It leads to a number, a list of numbers, or an object whose members are '
        "labels with numbers.",
    )
    labels_at: str | None = Field(
        None,
        max_length=1000,
        description="JSON Pointer to the labels of these scores, in their order: texts of `labels`, or numbers of classes "
        "from 0. Default: scores are in the order of the classes.",
    )
    labels: list[Label] | None = Field(
        None,
        min_length=2,
        max_length=10_000,
        description="Every label that it may answer, in the order of the classes.",
    )
    classes: int | None = Field(None, ge=2, le=10_000, description="How many classes, where they have no labels.")
    top: int | None = Field(
        None, ge=1, description="How many labels it answers for each image, the likeliest. Default: all of them."
    )
    max_images: int = Field(1, ge=1, le=512, description='Images a request; more than one only with `"{{images}}"`.')
    headers: dict[str, Annotated[str, StringConstraints(pattern=r"^([!-~]([ -~]{0,498}[!-~])?)?$")]] = Field(
        default={}, max_length=16, description="Sent along. Stored and shown as they are: no secrets."
    )
    key_header: str | None = Field(
        None, description="Header that carries `api_key` as it is. Default: `Authorization`, as a bearer key."
    )
    idempotency: bool = Field(
        False, description="It answers the same request under the same Idempotency-Key again without charging."
    )

    @property
    def batched(self) -> bool:
        """Whether a request holds a list of images."""
        return _count(self.template, IMAGES) > 0

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.labels) if self.labels is not None else self.classes or 0

    @model_validator(mode="after")
    def _fits_together(self) -> "CustomOptions":
        refuse("CustomOptions", [*_template_faults(self), *_answer_faults(self), *_header_faults(self)])
        return self


def _template_faults(options: CustomOptions) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    for name, value in (("template", options.template), ("item", options.item)):
        if _depth(value) > MAX_DEPTH or len(json.dumps(value)) > MAX_TEMPLATE:
            found.append(((name,), f"is deeper than {MAX_DEPTH} levels or larger than {MAX_TEMPLATE} bytes"))
    if found:
        return found
    one, many = _count(options.template, IMAGE), _count(options.template, IMAGES)
    if one + many != 1:
        found.append(
            (("template",), f'must hold the value "{IMAGE}" or "{IMAGES}" once, and holds them {one + many} times')
        )
    if (_count(options.item, IMAGE), _count(options.item, IMAGES)) != (1, 0):
        found.append((("item",), f'must hold the value "{IMAGE}" once, and no "{IMAGES}"'))
    if one == 1 and options.max_images > 1:
        found.append((("max_images",), f'more than one goes with "{IMAGES}" in the template alone'))
    if one == 1 and options.item != IMAGE:
        found.append((("item",), f'goes with "{IMAGES}" in the template alone'))
    return found


def _answer_faults(options: CustomOptions) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    for name, pointer in (("scores", options.scores), ("labels_at", options.labels_at)):
        if pointer is None:
            continue
        try:
            steps = json_pointer.parse(pointer)
        except ValueError as error:
            found.append(((name,), str(error)))
        else:
            if len(steps) > MAX_DEPTH:
                found.append(((name,), f"is deeper than {MAX_DEPTH} levels"))
            if options.batched and json_pointer.EACH not in steps:
                found.append(((name,), "needs a * that stands for each image"))
    if (options.labels is None) == (options.classes is None):
        found.append((("classes",), "give either labels or classes"))
    found += [
        (("labels", index), "is listed before: list each label once")
        for index, label in enumerate(options.labels or [])
        if (options.labels or []).index(label) < index
    ]
    if options.top is not None and options.top > options.count > 0:
        found.append((("top",), f"is more than the {options.count} classes"))
    return found


def _header_faults(options: CustomOptions) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    for name in options.headers:
        if not _HEADER.fullmatch(name) or name.lower() in _OURS or name.lower().startswith(("proxy-", "x-forwarded")):
            found.append((("headers", name), "is no header that may be set"))
        elif _SECRET.search(name.lower()):
            found.append(
                (("headers", name), "looks like a secret: send it as api_key, and name the header in key_header")
            )
    key = options.key_header
    if key is not None and (not _HEADER.fullmatch(key) or key.lower() in _OURS or key.lower().startswith("proxy-")):
        found.append((("key_header",), "is no header that may be set"))
    return found


def _count(value: JsonValue, mark: str) -> int:
    """How often `mark` is a value in a JSON value."""
    if isinstance(value, dict):
        return sum(_count(each, mark) for each in value.values())
    return sum(_count(each, mark) for each in value) if isinstance(value, list) else int(value == mark)


def _depth(value: JsonValue) -> int:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(_depth, within), default=0)
