"""The probe of an estimate: each API is asked about a few images, once, and what it showed is told. Nothing is kept of it.

Of `n` images the last is the first one again, alone: so it shows whether an answer depends on its time or on its neighbours.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client._limits import RateLimits
from client.errors import (
    ApiUnavailable,
    BudgetExhausted,
    InProgress,
    InvalidAnswer,
    MetazooError,
    RateLimited,
    TooLarge,
)
from client.model import ModelInfo
from contracts.estimates import ApiProbe, Probe, StatedLimit
from contracts.jobs import ApiSpec
from contracts.oip import Tensor
from meta_server.store.probes import Asked
from worker.adapters import RemoteModel, open_model
from worker.context import Context
from worker.probe import SAME, BadApi, check_info, read_probabilities
from worker.queries import queries_of
from worker.remote import LARGEST_CHUNK, named, typed
from worker.transport import AddressRefused

AT_ONCE = 16  # APIs
PAUSE = 1.0  # seconds before asking again an API that says too fast and not when
DECIMALS = range(1, 7)  # that rounding is looked for

T = TypeVar("T")


async def probe(context: Context, probe_id: str) -> None:
    """Ask, if nobody did, and tell. Raises `BadSecretKey`, `StoreUnavailable`."""
    asked = await context.probes.claim(probe_id)
    if asked is None:
        return
    room = asyncio.Semaphore(AT_ONCE)

    async def one(api_id: str, spec: ApiSpec) -> ApiProbe:
        async with room:
            return await _ask(context, asked, spec, asked.images[api_id])

    ids = asked.request.api_ids
    found = await asyncio.gather(*(one(api_id, spec) for api_id, spec in zip(ids, asked.request.apis, strict=True)))
    told = Probe(
        charged=sum(each.charged for each in found),
        unconfirmed=sum(each.unconfirmed for each in found),
        per_api=dict(zip(ids, found, strict=True)),
    )
    await context.probes.finish(probe_id, told)


async def _ask(context: Context, asked: Asked, spec: ApiSpec, images: int) -> ApiProbe:
    """What one API shows; at most `images` images are sent to be charged."""
    if images < 2:
        return ApiProbe(reason="the budget does not allow it two images")
    showing = _Showing(asked.until)
    try:
        await showing.in_time(context.guard.check(spec.url))
        secret = None if spec.api_key is None else spec.api_key.get_secret_value()
        async with open_model(spec, secret, transport=context.transport(), timeout=context.timeout) as model:
            showing.info = info = await showing.in_time(model.metadata())
            check_info(info)
            pixels = await asyncio.to_thread(queries_of(asked.request, info.input_shape).images, np.arange(images - 1))
            await showing.show(model, info, pixels)
    except TimeoutError:
        showing.reason = "it did not answer in the time that a probe has"
    except BudgetExhausted:
        showing.reason = "the budget of its key is spent"
    except MetazooError as error:
        showing.reason = named(error)
    except (AddressRefused, BadApi) as error:
        showing.reason = str(error)
    return showing.told()


@dataclass
class _Showing:
    """What an API has shown so far. Counts are images."""

    until: float
    info: ModelInfo | None = None
    charged: int = 0
    unconfirmed: int = 0
    reason: str | None = None
    most: int | None = None
    deterministic: bool | None = None
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    limits: RateLimits = field(default_factory=RateLimits)

    async def in_time(self, asking: Awaitable[T]) -> T:
        return await asyncio.wait_for(asking, max(0.0, self.until - time.time()))

    async def show(self, model: RemoteModel, info: ModelInfo, pixels: NDArray[np.uint8]) -> None:
        """Ask about all images, in as few requests as it takes, then about the first again."""
        start, size = 0, min(info.max_images or len(pixels), len(pixels), LARGEST_CHUNK)
        while start < len(pixels):
            part = pixels[start : start + size]
            try:
                self.rows.append(await self._answer(model, info, part))
            except TooLarge as error:
                smaller = error.max_images or len(part) // 2
                if not 0 < smaller < len(part):
                    raise
                self.most = size = smaller
            else:
                start += len(part)
        (again,) = await self._answer(model, info, pixels[:1])
        self.deterministic = bool(np.allclose(again, self.rows[0][0], rtol=0, atol=SAME))

    async def _answer(self, model: RemoteModel, info: ModelInfo, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Asked until it is answered or refused for good; never again once it may have been charged."""
        values = typed(pixels, info.datatype)
        body, headers = model.encode(Tensor("images", info.datatype, values.shape, values.tobytes()))
        while True:
            if time.time() >= self.until:
                raise TimeoutError
            began = time.monotonic()
            self.unconfirmed += len(pixels)
            try:
                answer = await self.in_time(model.infer(body, headers))
            except RateLimited as error:
                self.unconfirmed -= len(pixels)
                wait = error.retry_after or PAUSE
                if time.time() + wait > self.until:
                    raise
                await asyncio.sleep(wait)
            except MetazooError as error:
                if not _may_be_charged(error):
                    self.unconfirmed -= len(pixels)
                raise
            else:
                break
        self.seconds.append(time.monotonic() - began)
        self.limits = answer.limits
        probabilities = read_probabilities(
            answer.probabilities, images=len(pixels), classes=info.classes, response_policy=info.response_policy
        )
        self.unconfirmed -= len(pixels)
        self.charged += len(pixels)
        return probabilities

    def told(self) -> ApiProbe:
        info, most = self.info, self.most
        shown = np.concatenate(self.rows) if self.rows else None
        return ApiProbe(
            charged=self.charged,
            unconfirmed=self.unconfirmed,
            reason=self.reason,
            classes=info and info.classes,
            input_shape=info and info.input_shape,
            decimals=None if shown is None else _decimals(shown),
            top_k=None if shown is None else _top(shown),
            deterministic=self.deterministic,
            max_images=most if most is not None or info is None else info.max_images,
            idempotency=info and info.idempotency,
            latency=round(median(self.seconds), 4) if self.seconds else None,
            limits=[
                StatedLimit(
                    name=limit.name[:64],
                    quota=limit.quota,
                    window=limit.window,
                    unit=limit.unit and limit.unit[:64],
                    remaining=limit.remaining,
                )
                for limit in self.limits.limits[:16]
            ],
        )


def _may_be_charged(error: MetazooError) -> bool:
    """As when a job asks: refusals cost nothing; 503 is said before any work, a refused connection carries none."""
    if isinstance(error, ApiUnavailable):
        return error.sent and error.status != 503
    return isinstance(error, InProgress | InvalidAnswer)


def _decimals(shown: NDArray[np.float32]) -> int | None:
    return next((n for n in DECIMALS if np.allclose(shown, shown.round(n), rtol=0, atol=1e-7)), None)


def _top(shown: NDArray[np.float32]) -> int | None:
    most = int((shown > 0).sum(axis=1).max())
    return most if most < shown.shape[1] else None
