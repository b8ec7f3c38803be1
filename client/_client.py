"""The two clients: the same resources, blocking or asynchronous."""

import os
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx

from client._flow import AsyncDriver, Driver
from client.adapted_models import AdaptedModels, AsyncAdaptedModels
from client.admin import Admin, AsyncAdmin
from client.errors import NotConfigured
from client.image_sets import AsyncImageSets, ImageSets
from client.jobs import AsyncJobs, Jobs
from client.meta_models import AsyncMetaModels, MetaModels
from client.zoo import AsyncZoo, Zoo

TIMEOUT = 60.0  # seconds without progress of a request
RETRIES = 4  # repetitions of a request whose failure another attempt may cure

D = TypeVar("D", Driver, AsyncDriver)


class Metazoo:
    """A Metazoo server, and the API zoo beside it if there is one.

        with Metazoo("http://127.0.0.1:8000", api_key) as metazoo:
            job = metazoo.jobs.create({"apis": [{"url": url}], "budget": {"queries": 5000}})
            metazoo.meta_models.download(job.wait().meta_model, "model")

    What is not passed is read here, once, from `METAZOO_URL`, `METAZOO_API_KEY`, `METAZOO_ZOO_URL` and
    `METAZOO_ZOO_API_KEY`. `timeout` is in seconds without progress; `transport` carries the requests to both (a
    `httpx.MockTransport`, say). Raises `NotConfigured` for a URL that is none, or when a resource is used whose URL was
    not given.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        zoo_url: str | None = None,
        zoo_api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout: float = TIMEOUT,
        max_retries: int = RETRIES,
    ) -> None:
        server, zoo = _server(base_url, api_key), _zoo(zoo_url, zoo_api_key)
        self._server = Driver(*server, transport=transport, timeout=timeout, retries=max_retries) if server else None
        self._zoo = Driver(*zoo, transport=transport, timeout=timeout, retries=max_retries) if zoo else None

    @property
    def jobs(self) -> Jobs:
        """Start jobs, find them; each can be followed, waited for and stopped."""
        return Jobs(_needed(self._server, _NO_SERVER))

    @property
    def meta_models(self) -> MetaModels:
        """Find meta-models, download them, predict with them, adapt them."""
        return MetaModels(_needed(self._server, _NO_SERVER))

    @property
    def adapted_models(self) -> AdaptedModels:
        """Ask what was adapted from meta-models; list it, end it."""
        return AdaptedModels(_needed(self._server, _NO_SERVER))

    @property
    def image_sets(self) -> ImageSets:
        """Images of one's own that jobs may ask about."""
        return ImageSets(_needed(self._server, _NO_SERVER))

    @property
    def admin(self) -> Admin:
        """Keys, quotas and the audit log of the server."""
        return Admin(_needed(self._server, _NO_SERVER))

    @property
    def zoo(self) -> Zoo:
        """The API zoo: models, predictions, usage."""
        return Zoo(_needed(self._zoo, _NO_ZOO))

    def close(self) -> None:
        """Close the connections."""
        for driver in (self._server, self._zoo):
            if driver is not None:
                driver.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncMetazoo:
    """`Metazoo` on the event loop: the same resources, whose methods are awaited."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        zoo_url: str | None = None,
        zoo_api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: float = TIMEOUT,
        max_retries: int = RETRIES,
    ) -> None:
        server, zoo = _server(base_url, api_key), _zoo(zoo_url, zoo_api_key)
        self._server = (
            AsyncDriver(*server, transport=transport, timeout=timeout, retries=max_retries) if server else None
        )
        self._zoo = AsyncDriver(*zoo, transport=transport, timeout=timeout, retries=max_retries) if zoo else None

    @property
    def jobs(self) -> AsyncJobs:
        """Start jobs, find them; each can be followed, waited for and stopped."""
        return AsyncJobs(_needed(self._server, _NO_SERVER))

    @property
    def meta_models(self) -> AsyncMetaModels:
        """Find meta-models, download them, predict with them, adapt them."""
        return AsyncMetaModels(_needed(self._server, _NO_SERVER))

    @property
    def adapted_models(self) -> AsyncAdaptedModels:
        """Ask what was adapted from meta-models; list it, end it."""
        return AsyncAdaptedModels(_needed(self._server, _NO_SERVER))

    @property
    def image_sets(self) -> AsyncImageSets:
        """Images of one's own that jobs may ask about."""
        return AsyncImageSets(_needed(self._server, _NO_SERVER))

    @property
    def admin(self) -> AsyncAdmin:
        """Keys, quotas and the audit log of the server."""
        return AsyncAdmin(_needed(self._server, _NO_SERVER))

    @property
    def zoo(self) -> AsyncZoo:
        """The API zoo: models, predictions, usage."""
        return AsyncZoo(_needed(self._zoo, _NO_ZOO))

    async def close(self) -> None:
        """Close the connections."""
        for driver in (self._server, self._zoo):
            if driver is not None:
                await driver.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_NO_SERVER = "no server is known: pass base_url, or set METAZOO_URL"
_NO_ZOO = "no zoo is known: pass zoo_url, or set METAZOO_ZOO_URL"


def _server(url: str | None, key: str | None) -> tuple[str, str | None] | None:
    return _connection("base_url", url or os.environ.get("METAZOO_URL"), key or os.environ.get("METAZOO_API_KEY"))


def _zoo(url: str | None, key: str | None) -> tuple[str, str | None] | None:
    return _connection(
        "zoo_url", url or os.environ.get("METAZOO_ZOO_URL"), key or os.environ.get("METAZOO_ZOO_API_KEY")
    )


def _connection(name: str, url: str | None, key: str | None) -> tuple[str, str | None] | None:
    """URL and key, checked: a key that cannot travel in a header would fail far from here."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise NotConfigured(f"{name}: {url!r} must be an http or https URL, such as http://127.0.0.1:8000")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise NotConfigured(
            f"the key for {name} holds a character that no key has: was it copied whole, without a line end?"
        )
    return url, key or None


def _needed(driver: D | None, otherwise: str) -> D:
    if driver is None:
        raise NotConfigured(otherwise)
    return driver
