"""The ways to speak to an API. Each gives what `client.model.AsyncModel` gives: metadata, encode, infer."""

from typing import Protocol, Self

import httpx

from client.model import Answer, AsyncModel, ModelInfo
from contracts.jobs import ApiSpec
from contracts.oip import Tensor
from worker.adapters.classify import ClassifyModel
from worker.adapters.custom import CustomModel


class RemoteModel(Protocol):
    """One API; single attempts that raise the errors of `client.errors`."""

    async def metadata(self) -> ModelInfo:
        """What it says of itself, or what was said of it; costs no query."""

    def encode(self, images: Tensor) -> tuple[bytes, dict[str, str]]:
        """Body and headers that ask about `images`, (n, c, h, w): the same bytes each time."""

    async def infer(self, body: bytes, headers: dict[str, str], *, idempotency_key: str | None = None) -> Answer:
        """Send what `encode` made, once."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_model(
    spec: ApiSpec, api_key: str | None, *, transport: httpx.AsyncBaseTransport, timeout: float
) -> RemoteModel:
    """The API as its adapter speaks to it. Raises `InvalidRequest` when the URL is not of its kind."""
    if spec.classify is not None:
        return ClassifyModel(spec.url, api_key, spec.classify, transport=transport, timeout=timeout)
    if spec.custom is not None:
        return CustomModel(spec.url, api_key, spec.custom, transport=transport, timeout=timeout)
    return AsyncModel(spec.url, api_key, transport=transport, timeout=timeout)
