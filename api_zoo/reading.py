"""A request from its bytes to its images, checked before money is involved; and how its answer is written."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import numpy as np

from api_zoo import numerals
from api_zoo.inference import OUTPUT, BadInput, Form, Layout, Model, Pixels, pixels
from contracts import oip
from contracts.problems import Fault, ProblemError
from dfml.picture_files import MOST_PIXELS, BadPicture, opened
from dfml.pictures import drawn

UNCHARGED = "nothing was charged"
FORMS = 64
"""Forms of requests that a model remembers."""

Headers = list[tuple[bytes, bytes]]
Written = tuple[bytes, Headers]
"""A body and the headers that describe it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is sound: its images, the digest that tells it from any other, and how its answer is written.

    `write` makes the body and its headers of an answer, FP32 (n, classes).
    """

    write: Callable[[bytes], Written]
    images: Pixels
    digest: str  # empty where it does not matter: the request cannot come again


def read(model: Model, body: bytearray, header_length: str | None, max_images: int, *, digested: bool) -> Asked:
    """Check everything that can be checked before money is involved.

    Raises `ProblemError`: 400 or 422 with every fault, 413 when there are too many images.
    """
    layout = _layout(body, header_length)
    form = None if layout is None else model.forms.get(layout)
    try:
        if form is None:
            images, write = _checked(model, body, header_length, max_images, layout)
        else:
            images, write = pixels(body, form.datatype, form.shape, form.start), form.write
    except BadInput as error:
        raise ProblemError("invalid-request", UNCHARGED, errors=error.faults) from None
    if len(images) > max_images:
        raise too_many(max_images)
    digest = ""
    if digested:
        digest = sha256(
            b"%s\0%s\0%s" % (model.name.encode(), str(header_length).encode(), sha256(body).digest())
        ).hexdigest()
    return Asked(write, images, digest)


def _layout(body: bytearray, header_length: str | None) -> Layout | None:
    """What tells the form of a request with a short JSON part and something behind it."""
    if header_length is None or not (header_length.isascii() and header_length.isdigit() and len(header_length) < 4):
        return None
    length = int(header_length)
    return (bytes(memoryview(body)[:length]), len(body)) if length < len(body) else None


def _checked(
    model: Model, body: bytearray, header_length: str | None, max_images: int, layout: Layout | None
) -> tuple[Pixels, Callable[[bytes], Written]]:
    """The images of a request that is sound, whose form the model then remembers. Raises `ProblemError`, `BadInput`."""
    try:
        request = oip.decode_request(memoryview(body), header_length, load=numerals.load)
    except oip.InvalidPayload as error:
        raise ProblemError("malformed", UNCHARGED, errors=error.faults) from None
    unknown = [
        Fault(field=f"outputs.{index}.name", message=f"{name!r} is no output of this model: ask for {OUTPUT}")
        for index, name in enumerate(request.outputs)
        if name != OUTPUT
    ]
    if unknown:
        raise ProblemError("malformed", UNCHARGED, errors=unknown)
    model.check(request.inputs)
    sent = request.inputs[0]
    if sent.shape[0] > max_images:
        raise too_many(max_images)
    images, write = model.images(sent), partial(_tensors, model, request)
    if layout is not None and len(body) - len(layout[0]) == len(sent.data):  # all that is behind the JSON part
        if len(model.forms) >= FORMS:
            model.forms.clear()
        form = Form(sent.datatype, sent.shape, len(layout[0]), _ready(write, 4 * sent.shape[0] * len(model.labels)))
        model.forms[layout] = form
    return images, write


def read_files(model: Model, files: list[bytes]) -> Asked:
    """PNG, JPEG or WebP files, resized to the model's input. Raises a 422 `ProblemError` that names every bad file."""
    found: list[Fault] = []
    heads = []
    for index, file in enumerate(files):
        try:
            heads.append(opened(file))
        except BadPicture as error:
            found.append(Fault(field=f"files.{index}", message=str(error)))
    if sum(head.width * head.height for head in heads) > MOST_PIXELS:
        found.append(Fault(field="files", message=f"have more than {MOST_PIXELS} pixels together: send fewer at once"))
    images = []
    for index, head in enumerate([] if found else heads):
        try:
            images.append(drawn(head, model.input_shape))
        except BadPicture as error:
            found.append(Fault(field=f"files.{index}", message=str(error)))
    if found:
        raise ProblemError("invalid-request", UNCHARGED, errors=found)
    # of the files, not of the body: its boundary differs from try to try
    digest = sha256(f"{model.name}\0classify\0".encode())
    for file in files:
        digest.update(sha256(file).digest())
    return Asked(partial(_labels, model), np.stack([image.numpy() for image in images]), digest.hexdigest())


def too_many(max_images: int) -> ProblemError:
    """A 413 that says how many images are taken at once."""
    detail = f"more images than this model takes at once: send at most {max_images}"
    return ProblemError("too-large", detail, max_images=max_images)


def _answered(model: Model, raw: bytes) -> oip.Tensor:
    classes = len(model.labels)
    return oip.Tensor(OUTPUT, "FP32", (len(raw) // 4 // classes, classes), raw)


def _tensors(model: Model, request: oip.InferRequest, raw: bytes) -> Written:
    response = oip.InferResponse(model=model.name, outputs=[_answered(model, raw)], id=request.id)
    body, headers = oip.encode_response(response, binary=request.binary_outputs)
    return body, [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _ready(write: Callable[[bytes], Written], size: int) -> Callable[[bytes], Written]:
    """As `write`, with what it writes around a raw answer of `size` bytes at hand."""
    body, headers = write(bytes(size))
    if (b"content-type", oip.BINARY.encode()) not in headers:
        return write
    head = body[: len(body) - size]

    def written(raw: bytes) -> Written:
        return (head + raw, headers) if len(raw) == size else write(raw)

    return written


def _labels(model: Model, raw: bytes) -> Written:
    """For each image the labels that the policy tells of, the likeliest first."""
    scores, classes = oip.numbers(_answered(model, raw)), len(model.labels)
    answers = []
    for start in range(0, len(scores), classes):
        row = zip(model.labels, scores[start : start + classes], strict=True)
        likeliest = sorted(row, key=lambda pair: -pair[1])[: model.told]
        answers.append([{"label": label, "score": score} for label, score in likeliest])
    return json.dumps(answers).encode(), [(b"content-type", b"application/json")]
