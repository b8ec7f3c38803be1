"""An API that takes PNG files and answers `[[{"label": …, "score": …}, …], …]`, as hosted vision APIs do.

Labels that an answer does not tell of have score 0: the API answers its likeliest alone.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from client._flow import AsyncDriver
from client.model import Answer, ModelInfo
from contracts.adapters import ClassifyOptions
from contracts.oip import Tensor
from worker.adapters.posting import COUNT, LARGEST, answered, post, refuse


class ClassifyModel:
    """The API at `url`, which files are posted to. What it cannot say of itself is in `options`."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        options: ClassifyOptions,
        *,
        transport: httpx.AsyncBaseTransport,
        timeout: float,
    ) -> None:
        parts = urlsplit(url)
        self._path = parts.path or "/"
        self._options = options
        self._classes = {label: index for index, label in enumerate(options.labels)}
        self._driver = AsyncDriver(f"{parts.scheme}://{parts.netloc}", api_key, transport=transport, timeout=timeout)

    async def metadata(self) -> ModelInfo:
        """What was said of it: nothing is asked."""
        told = self._options
        return ModelInfo(
            name=self._path,
            input_name=told.field,
            datatype="UINT8",
            input_shape=(3, told.size, told.size),
            output_name="scores",
            classes=len(told.labels),
            labels=told.labels,
            max_images=told.max_images,
            response_policy="" if told.top is None else f"topk:{told.top}",
            idempotency=told.idempotency,
        )

    def encode(self, images: Tensor) -> tuple[bytes, dict[str, str]]:
        """The form that holds uint8 images (n, 3, h, w) as PNG files; its boundary is made from them, so it never changes."""
        pixels = np.frombuffer(images.data, np.uint8).reshape(images.shape).transpose(0, 2, 3, 1)
        boundary = sha256(images.data).hexdigest()
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(self._options.field)}"; '
            f'filename="{number}.png"\r\nContent-Type: image/png\r\n\r\n'.encode()
            + _png(image)
            + b"\r\n"
            for number, image in enumerate(pixels)
        ]
        body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        return body, {"Content-Type": f"multipart/form-data; boundary={boundary}", COUNT: str(len(pixels))}

    async def infer(self, body: bytes, headers: Mapping[str, str], *, idempotency_key: str | None = None) -> Answer:
        """Post the form, once. Raises `InvalidAnswer` where it is answered by something else than labels with scores."""
        response = await post(self._driver, self._path, body, headers, idempotency_key=idempotency_key)
        return answered(response, self._scores(response.content, int(headers[COUNT])))

    def _scores(self, content: bytes, images: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 (images, classes)."""
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError):
            rows = None
        if isinstance(rows, list) and images == 1 and all(isinstance(row, dict) for row in rows):
            rows = [rows]
        if not isinstance(rows, list) or len(rows) != images:
            refuse(f"answered no list of {images} lists")
        scores = np.zeros((images, len(self._classes)), "<f4")
        for image, row in enumerate(rows):
            seen: set[str] = set()
            for each in row if isinstance(row, list) and row else [None]:
                told: dict[str, Any] = each if isinstance(each, dict) else {}
                label: Any = told.get("label")
                score: Any = told.get("score")
                if not isinstance(label, str) or type(score) not in (int, float) or not -LARGEST < score < LARGEST:
                    refuse("answered something else than labels with scores")
                if label not in self._classes or label in seen:
                    refuse("answered a label that is not among those given, or one twice")
                seen.add(label)
                scores[image, self._classes[label]] = score
        return scores

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._driver.http.aclose()


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _quoted(field: str) -> str:
    return field.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
