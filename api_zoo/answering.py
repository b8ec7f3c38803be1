"""One request from its bytes to its answer: check everything, charge, compute, write down, send."""

import asyncio
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import anyio
import http_sf
from anyio import to_thread
from fastapi import Response

from api_zoo.inference import Model
from api_zoo.reading import UNCHARGED, Asked, Headers, read, read_files
from api_zoo.rehearsal import Failed
from api_zoo.services import Services
from contracts.problems import ProblemError
from metering import refusals
from metering.gate import Admission, Gate
from metering.refusals import UNLIMITED, Limits
from metering.scripts import StoreUnavailable

REVOKED = "the key was revoked: ask the host for a new one"
EXPIRED = "the key has expired: ask the host for a new one"
QUICK = 2**16  # bytes of a body that is read faster than another thread is woken
FEW = 8  # images whose answer takes about as long as their charge
BUSY_SECONDS = 1  # to wait after the zoo was too slow


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200: its body, all its headers, and the images that were charged for it now."""

    body: bytes
    headers: Headers
    charged: int

    def response(self) -> Response:
        """For the framework."""
        made = Response(self.body)
        made.raw_headers = self.headers
        return made


async def answer(
    services: Services,
    caller: str,
    model: Model,
    body: bytearray,
    *,
    header_length: str | None,
    idempotency_key: str | None,
) -> Answer:
    """Answer an infer request of the key `caller`. Raises `ProblemError`."""
    reading = partial(
        read, model, body, header_length, services.settings.max_images, digested=idempotency_key is not None
    )
    asked = reading() if len(body) <= QUICK else await to_thread.run_sync(reading)
    return await deliver(services, caller, model, asked, idempotency_key=idempotency_key)


async def classify(
    services: Services, caller: str, model: Model, files: list[bytes], *, idempotency_key: str | None
) -> Answer:
    """Answer a request that sent image files. Raises `ProblemError`."""
    asked = await to_thread.run_sync(read_files, model, files, limiter=services.computing)
    return await deliver(services, caller, model, asked, idempotency_key=idempotency_key)


async def deliver(
    services: Services, caller: str, model: Model, asked: Asked, *, idempotency_key: str | None
) -> Answer:
    """Charge for a sound request and answer it. Whatever ends it other than a 200 is given back to the key's budget.

    A few images of a key in good standing are computed while they are charged; their answer waits for the charge. With an
    idempotency key they are computed first, and the step that charges them keeps their answer.
    """
    few = len(asked.images) <= FEW
    before = computing = None
    if idempotency_key is None:
        if few and services.gate.granted_last(caller):
            computing = services.engine.answer(model, asked.images)
    elif few and model.rehearsal is None and services.gate.likely_new(caller, idempotency_key):
        before = computing = services.engine.answer(model, asked.images)
    try:
        at_hand = b"" if before is None else await _compute(services, model, before)
        admission = await admit(
            services.gate,
            caller,
            model=model.name,
            images=len(asked.images),
            idempotency_key=idempotency_key,
            digest=asked.digest,
            at_hand=at_hand,
        )
    except BaseException:
        if computing is not None and not computing.cancel() and not computing.cancelled():
            computing.exception()  # seen: there is nobody to tell
        raise
    if admission.answer is not None:
        return respond(asked, admission, admission.answer)
    try:
        raw = await _compute(services, model, computing or services.engine.answer(model, asked.images))
        made = respond(asked, admission, raw)
        await services.gate.settle(admission, raw)
    except refusals.TakenOver:
        wait = {"Retry-After": "1"}
        raise ProblemError("in-progress", "another request took this one over: send it again", headers=wait) from None
    except BaseException:
        await _refund(services.gate, admission)
        raise
    return made


async def admit(
    metered: Gate,
    caller: str,
    *,
    model: str,
    images: int,
    idempotency_key: str | None,
    digest: str,
    at_hand: bytes = b"",
) -> Admission:
    """The gate's decision, a refusal being the problem that tells the caller what to do."""
    try:
        return await metered.admit(
            caller, model=model, images=images, idempotency_key=idempotency_key, digest=digest, at_hand=at_hand
        )
    except refusals.KeyRevoked:
        raise unauthorised(REVOKED) from None
    except refusals.KeyExpired:
        raise unauthorised(EXPIRED) from None
    except refusals.ModelForbidden:
        detail = f"the key may not use {model}: POST /v2/repository/index lists what it may"
        raise ProblemError("forbidden", detail) from None
    except refusals.KeyReused:
        detail = "send another Idempotency-Key with another request; this one was used before"
        raise ProblemError("key-reused", detail) from None
    except refusals.InProgress as error:
        wait = {"Retry-After": str(math.ceil(error.retry_after))}
        raise ProblemError("in-progress", "wait, then send the same request again", headers=wait) from None
    except refusals.BurstExceeded as error:
        detail = f"the key may send {error.max_images} images at once, not {images}: send fewer"
        raise ProblemError("too-large", detail, max_images=error.max_images) from None
    except refusals.BudgetSpent as error:
        detail = f"{error.left} images are left, {images} were sent: waiting does not help; have the budget raised"
        raise ProblemError("budget-exhausted", detail, left=error.left, headers=limit_headers(error.limits)) from None
    except refusals.RateExceeded as error:
        headers = {"Retry-After": str(math.ceil(error.retry_after)), **limit_headers(error.limits)}
        detail = f"try again in {error.retry_after:.3f} s"
        raise ProblemError("rate-limited", detail, retry_after=error.retry_after, headers=headers) from None
    except refusals.TooMany as error:
        headers = {"Retry-After": str(BUSY_SECONDS), **limit_headers(error.limits)}
        detail = f"{error.limits.concurrency} requests of the key are running: let one end before the next"
        raise ProblemError("rate-limited", detail, retry_after=BUSY_SECONDS, headers=headers) from None


def unauthorised(detail: str) -> ProblemError:
    """A 401 that says how to authenticate."""
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def limit_headers(limits: Limits) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); empty where nothing is limited."""
    if limits is UNLIMITED:
        return {}
    told: list[tuple[str, tuple[int, int | None, str], str]] = []  # name; quota, window, unit; state
    for name, rate, unit in (("burst", limits.images, "images"), ("requests", limits.requests, "requests")):
        if rate is not None:
            window = max(1, math.ceil(rate.burst / rate.per_second))
            told.append((name, (rate.burst, window, unit), f"r={rate.left};t={math.ceil(rate.reset)}"))
    if limits.concurrency is not None:
        told.append(("concurrency", (limits.concurrency, None, "concurrent-requests"), f"r={limits.concurrency_left}"))
    if limits.budget is not None:
        told.append(("budget", (limits.budget, None, "images"), f"r={limits.budget_left}"))
    if not told:
        return {}
    policy = _policy(tuple((name, *quota) for name, quota, _ in told))
    return {"RateLimit-Policy": policy, "RateLimit": ", ".join(f'"{name}";{state}' for name, _, state in told)}


@lru_cache(1024)
def _policy(quotas: tuple[tuple[str, int, int | None, str], ...]) -> str:
    """What changes of a key only when it is topped up."""
    told: list[Any] = []
    for name, quota, window, unit in quotas:
        told.append((name, {"q": quota, **({} if window is None else {"w": window}), "qu": unit}))
    return http_sf.ser(told)


def respond(asked: Asked, admission: Admission, raw: bytes) -> Answer:
    """The 200 to a request whose answer is `raw`, FP32 (n, classes)."""
    body, described = asked.write(raw)
    headers = [*described, (b"content-length", b"%d" % len(body)), (b"x-query-cost", b"%d" % admission.cost)]
    headers += [(name.lower().encode(), value.encode()) for name, value in limit_headers(admission.limits).items()]
    replayed = admission.kind == "replayed"
    if replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return Answer(body, headers, 0 if replayed else admission.cost)


async def _compute(services: Services, model: Model, computing: "asyncio.Future[bytes]") -> bytes:
    if computing.done() and model.rehearsal is None:
        return computing.result()
    try:
        async with asyncio.timeout(services.settings.answer_seconds) as limit:
            raw = await computing
            if model.rehearsal is None:
                return raw
            turn = model.rehearsal.turn()
            await asyncio.sleep(turn.seconds)
    except TimeoutError:
        if not limit.expired():
            raise
        wait = {"Retry-After": str(BUSY_SECONDS)}
        raise ProblemError("unavailable", f"too busy to answer; {UNCHARGED}: try again", headers=wait) from None
    try:
        return turn.spoil(raw, len(model.labels))
    except Failed:
        raise ProblemError("internal", f"failed on purpose, as the host told this model to; {UNCHARGED}") from None


async def _refund(metered: Gate, admission: Admission) -> None:
    """Give back, also while the request is being cancelled. If Redis is away, the key's next try takes the charge up."""
    with anyio.CancelScope(shield=True):
        try:
            await metered.refund(admission)
        except StoreUnavailable:
            return
