"""An API of any make: a JSON template asks it, JSON Pointers say where its answer holds scores and labels.

Labels that an answer does not tell of have score 0, as with `classify`.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client._flow import AsyncDriver
from client.model import Answer, ModelInfo
from contracts import json_pointer
from contracts.adapters import IMAGE, IMAGES, CustomOptions
from contracts.oip import Tensor
from worker.adapters.posting import COUNT, LARGEST, answered, post, refuse

JPEG_QUALITY = 95
# Each level of a byte in [0, 1], as the shortest decimal that is the same float32.
_LEVELS = np.array([float(str(np.float32(level / 255))) for level in range(256)])


class CustomModel:
    """The API at `url`, which JSON is posted to. What it cannot say of itself is in `options`."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        options: CustomOptions,
        *,
        transport: httpx.AsyncBaseTransport,
        timeout: float,
    ) -> None:
        parts = urlsplit(url)
        self._path = parts.path or "/"
        self._options = options
        self._classes = {label: index for index, label in enumerate(options.labels or [])}
        self._scores_at = json_pointer.parse(options.scores)
        self._labels_at = None if options.labels_at is None else json_pointer.parse(options.labels_at)
        self._headers = dict(options.headers)
        if options.key_header is not None and api_key is not None:
            self._headers[options.key_header] = api_key
            api_key = None
        self._driver = AsyncDriver(f"{parts.scheme}://{parts.netloc}", api_key, transport=transport, timeout=timeout)

    async def metadata(self) -> ModelInfo:
        """What was said of it: nothing is asked."""
        told = self._options
        return ModelInfo(
            name=self._path,
            input_name="image",
            datatype="UINT8",
            input_shape=(3, told.size, told.size),
            output_name="scores",
            classes=told.count,
            labels=told.labels or [],
            max_images=told.max_images,
            response_policy="" if told.top is None else f"topk:{told.top}",
            idempotency=told.idempotency,
        )

    def encode(self, images: Tensor) -> tuple[bytes, dict[str, str]]:
        """The template with uint8 images (n, 3, h, w) in it; n is 1 where it takes one."""
        told = self._options
        pixels = np.frombuffer(images.data, np.uint8).reshape(images.shape)
        values = [_written(image, told) for image in pixels]
        if told.batched:
            body = _filled(told.template, IMAGES, [_filled(told.item, IMAGE, value) for value in values])
        else:
            (value,) = values
            body = _filled(told.template, IMAGE, value)
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        return content, {"Content-Type": "application/json", COUNT: str(len(pixels))}

    async def infer(self, body: bytes, headers: Mapping[str, str], *, idempotency_key: str | None = None) -> Answer:
        """Post the body, once. Raises `InvalidAnswer` where the answer does not hold what the pointers say."""
        response = await post(
            self._driver, self._path, body, {**headers, **self._headers}, idempotency_key=idempotency_key
        )
        return answered(response, self._scores(response.content, int(headers[COUNT])))

    def _scores(self, content: bytes, images: int) -> NDArray[np.float32]:
        """float32 (images, classes)."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            refuse("answered no JSON")
        found = self._rows(answer, self._scores_at, images, "scores")
        named = None if self._labels_at is None else self._rows(answer, self._labels_at, images, "labels")
        scores = np.zeros((images, self._options.count), "<f4")
        for image, row in enumerate(found):
            if named is None and isinstance(row, dict):
                labels, values = list(row), list(row.values())
            elif named is None:
                values = list(_flat(row))
                labels = list(range(len(values)))
                if len(values) != scores.shape[1]:
                    refuse(f"answered {len(values)} scores for {scores.shape[1]} classes")
            else:
                labels, values = list(_flat(named[image])), list(_flat(row))
            if len(labels) != len(values) or not values:
                refuse("answered not as many labels as scores")
            classes = [self._class(label) for label in labels]
            if len(set(classes)) < len(classes):
                refuse("answered one label twice")
            scores[image, classes] = [_number(value) for value in values]
        return scores

    def _rows(self, answer: Any, steps: tuple[str, ...], images: int, what: str) -> list[Any]:
        """What is found for each image."""
        try:
            found = json_pointer.find(answer, steps)
        except json_pointer.NotThere:
            refuse(f"answered without {what} where the pointer leads")
        rows = found if self._options.batched else [found]
        if len(rows) != images:
            refuse(f"answered {what} of {len(rows)} images where {images} were asked about")
        return rows

    def _class(self, label: Any) -> int:
        index = self._classes.get(label) if isinstance(label, str) else label
        if type(index) is not int or not 0 <= index < self._options.count:
            refuse("answered a label that is not among those given")
        return index

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._driver.http.aclose()


def _written(image: NDArray[np.uint8], told: CustomOptions) -> Any:
    """An image (3, h, w) as the template's value."""
    ordered = image.transpose(1, 2, 0)
    if told.encoding in {"float", "uint8"}:
        levels = image if told.layout == "chw" else ordered
        return (_LEVELS[levels] if told.encoding == "float" else levels).tolist()
    kind = told.encoding.removesuffix("_url")
    file = BytesIO()
    options = {"compress_level": 1} if kind == "png" else {"quality": JPEG_QUALITY, "subsampling": 0}
    Image.fromarray(np.ascontiguousarray(ordered)).save(file, kind, **options)
    text = b64encode(file.getvalue()).decode()
    return text if told.encoding == kind else f"data:image/{kind};base64,{text}"


def _filled(template: Any, mark: str, value: Any) -> Any:
    if isinstance(template, dict):
        return {name: _filled(each, mark, value) for name, each in template.items()}
    if isinstance(template, list):
        return [_filled(each, mark, value) for each in template]
    return value if template == mark else template


def _flat(found: Any) -> Iterable[Any]:
    """The scores or labels of one image, of whatever lists they are in; a lone one as it is."""
    if not isinstance(found, list):
        return [found]
    return [each for within in found for each in (within if isinstance(within, list) else [within])]


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not -LARGEST < value < LARGEST:
        refuse("answered something else than numbers as scores")
    return float(value)
