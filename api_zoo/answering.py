"""One infer request from its bytes to its answer: check everything, charge, compute, write down, send."""

import math
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import anyio
import http_sf
from anyio import to_thread
from fastapi import Response
from torch import Tensor

from api_zoo.inference import OUTPUT, BadInput, Model
from api_zoo.services import Services
from contracts import oip
from contracts.problems import Fault, ProblemError
from contracts.zoo import Key
from metering import gate
from metering.gate import Admission, Limits
from metering.scripts import StoreUnavailable

UNCHARGED = "nothing was charged"
BUSY_SECONDS = 1  # to wait after the zoo was too slow


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is sound: what it asks, its images, and the digest that tells it from any other."""

    request: oip.InferRequest
    images: Tensor  # (n, c, h, w)
    digest: str


async def answer(
    services: Services,
    key: Key,
    model: Model,
    body: bytes,
    *,
    header_length: str | None,
    idempotency_key: str | None,
) -> Response:
    """Answer an infer request. Whatever ends it other than a 200 is given back to the key's budget."""
    most = services.settings.max_images
    asked = await to_thread.run_sync(read, model, body, header_length, most)
    admission = await admit(
        services.gate,
        key,
        model=model.name,
        images=len(asked.images),
        idempotency_key=idempotency_key,
        digest=asked.digest,
    )
    if admission.answer is not None:
        return respond(model, asked.request, admission, admission.answer)
    try:
        raw = await _compute(services, model, asked.images)
        response = respond(model, asked.request, admission, raw)
        await services.gate.settle(admission, raw)
    except gate.TakenOver:
        wait = {"Retry-After": "1"}
        raise ProblemError("in-progress", "another request took this one over: send it again", headers=wait) from None
    except BaseException:
        await _refund(services.gate, admission)
        raise
    return response


def read(model: Model, body: bytes, header_length: str | None, max_images: int) -> Asked:
    """Check everything that can be checked before money is involved.

    Raises `ProblemError`: 400 or 422 with every fault, 413 when there are too many images.
    """
    try:
        request = oip.decode_request(body, header_length)
    except oip.InvalidPayload as error:
        raise ProblemError("malformed", UNCHARGED, errors=error.faults) from None
    unknown = [
        Fault(field=f"outputs.{index}.name", message=f"{name!r} is no output of this model: ask for {OUTPUT}")
        for index, name in enumerate(request.outputs)
        if name != OUTPUT
    ]
    if unknown:
        raise ProblemError("malformed", UNCHARGED, errors=unknown)
    try:
        model.check(request.inputs)
        count = request.inputs[0].shape[0]
        if count > max_images:
            detail = f"{count} images are more than this model takes at once: send at most {max_images}"
            raise ProblemError("too-large", detail, max_images=max_images)
        images = model.images(request.inputs[0])
    except BadInput as error:
        raise ProblemError("invalid-request", UNCHARGED, errors=error.faults) from None
    digest = sha256(f"{model.name}\0{header_length}\0".encode())
    digest.update(body)
    return Asked(request, images, digest.hexdigest())


async def admit(
    metered: gate.Gate, key: Key, *, model: str, images: int, idempotency_key: str | None, digest: str
) -> Admission:
    """The gate's decision, a refusal being the problem that tells the caller what to do."""
    try:
        return await metered.admit(key.id, model=model, images=images, idempotency_key=idempotency_key, digest=digest)
    except gate.KeyRevoked:
        raise unauthorised("the key was revoked: ask the host for a new one") from None
    except gate.ModelForbidden:
        detail = f"the key may not use {model}: POST /v2/repository/index lists what it may"
        raise ProblemError("forbidden", detail) from None
    except gate.KeyReused:
        detail = "send another Idempotency-Key with another request; this one was used before"
        raise ProblemError("key-reused", detail) from None
    except gate.InProgress as error:
        wait = {"Retry-After": str(math.ceil(error.retry_after))}
        raise ProblemError("in-progress", "wait, then send the same request again", headers=wait) from None
    except gate.BurstExceeded as error:
        detail = f"the key may send {error.max_images} images at once, not {images}: send fewer"
        raise ProblemError("too-large", detail, max_images=error.max_images) from None
    except gate.BudgetSpent as error:
        detail = f"{error.left} images are left, {images} were sent: waiting does not help; have the budget raised"
        raise ProblemError("budget-exhausted", detail, left=error.left, headers=limit_headers(error.limits)) from None
    except gate.RateExceeded as error:
        headers = {"Retry-After": str(math.ceil(error.retry_after)), **limit_headers(error.limits)}
        detail = f"try again in {error.retry_after:.3f} s"
        raise ProblemError("rate-limited", detail, retry_after=error.retry_after, headers=headers) from None


def unauthorised(detail: str) -> ProblemError:
    """A 401 that says how to authenticate."""
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def limit_headers(limits: Limits) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); empty where nothing is limited."""
    policies: list[Any] = []
    states: list[Any] = []
    if limits.burst is not None and limits.rate is not None:
        window = max(1, math.ceil(limits.burst / limits.rate))
        policies.append(("burst", {"q": limits.burst, "w": window, "qu": "images"}))
        if limits.burst_left is not None and limits.burst_reset is not None:
            states.append(("burst", {"r": limits.burst_left, "t": math.ceil(limits.burst_reset)}))
    if limits.budget is not None:
        policies.append(("budget", {"q": limits.budget, "qu": "images"}))
        if limits.budget_left is not None:
            states.append(("budget", {"r": limits.budget_left}))
    headers = {"RateLimit-Policy": policies, "RateLimit": states}
    return {name: http_sf.ser(fields) for name, fields in headers.items() if fields}


def respond(model: Model, request: oip.InferRequest, admission: Admission, raw: bytes) -> Response:
    """The 200 to a request whose probabilities are `raw`, FP32 (n, classes)."""
    classes = len(model.labels)
    output = oip.Tensor(OUTPUT, "FP32", (len(raw) // 4 // classes, classes), raw)
    response = oip.InferResponse(model=model.name, outputs=[output], id=request.id)
    content, headers = oip.encode_response(response, binary=request.binary_outputs)
    headers |= {"X-Query-Cost": str(admission.cost), **limit_headers(admission.limits)}
    if admission.kind == "replayed":
        headers["Idempotency-Replayed"] = "true"
    return Response(content, headers=headers)


async def _compute(services: Services, model: Model, images: Tensor) -> bytes:
    with anyio.move_on_after(services.settings.answer_seconds):
        return await to_thread.run_sync(model.answer, images, limiter=services.computing, abandon_on_cancel=True)
    raise ProblemError(
        "unavailable", f"too busy to answer; {UNCHARGED}: try again", headers={"Retry-After": str(BUSY_SECONDS)}
    )


async def _refund(metered: gate.Gate, admission: Admission) -> None:
    """Give back, also while the request is being cancelled. If Redis is away, the key's next try takes the charge up."""
    with anyio.CancelScope(shield=True):
        try:
            await metered.refund(admission)
        except StoreUnavailable:
            return
