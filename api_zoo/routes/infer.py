"""Images as tensors: infer, of the Open Inference Protocol v2.

Described by the signature of `infer` and served past it, by `infer_at_once`.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from api_zoo.answering import Answer, answer
from api_zoo.reading import UNCHARGED
from api_zoo.routes.access import KeyDep, ModelDep, ServicesDep, asking, host
from api_zoo.routes.description import ANSWER_HEADERS, LONGEST_KEY, IdempotencyKey, Responses, problems
from contracts import oip
from contracts.problems import Fault, ProblemError

_HEADER = oip.HEADER.lower().encode()
_TAKEN = frozenset({"application/json", oip.BINARY})

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string", "description": "`images`"},
        "datatype": {"type": "string", "enum": ["FP32", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "description": "[n, 3, height, width]"},
        "data": {"type": "array", "items": {}, "description": "Row-major, flat or nested; absent for binary tensors."},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
    },
}
_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Comes back with the answer."},
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        },
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"JSON alone; or JSON followed by raw little-endian tensors, the header `{oip.HEADER}` giving the "
        "bytes of the JSON part (unpacked). May be sent in gzip or deflate. Charged by the image.",
        "content": {
            "application/json": {"schema": _INFER},
            oip.BINARY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_ANSWER: Responses = {
    200: {
        "description": "The tensor `probabilities`, FP32 (n, classes), in JSON or raw as it was asked for.",
        "content": {"application/json": {"schema": {"type": "object"}}, oip.BINARY: {}},
        "headers": ANSWER_HEADERS,
    }
}


async def infer(
    request: Request,
    services: ServicesDep,
    key: KeyDep,
    model: ModelDep,
    idempotency_key: IdempotencyKey = None,
    header_length: Annotated[
        str | None, Header(alias=oip.HEADER, description="Bytes of the JSON part of the body.")
    ] = None,
) -> Response:
    return await _response(request)


async def _response(request: Request) -> Response:
    return (await infer_at_once(request)).response()


async def infer_at_once(request: Request) -> Answer:
    """The answer. Solving dependencies would take longer than computing a small one."""
    other = host(request)
    zoo, caller, model = await (asking if other is None else other.asking)(request)
    sent = {name: value.decode("latin-1") for name, value in reversed(request.scope["headers"])}  # of several the first
    idempotency_key = sent.get(b"idempotency-key")
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= LONGEST_KEY:
        fault = Fault(field="idempotency-key", message=f"must have 1 to {LONGEST_KEY} characters")
        raise ProblemError("invalid-request", UNCHARGED, errors=[fault])
    refuse_encoding(sent.get(b"content-encoding", "identity"), sent.get(b"content-type", oip.BINARY))
    body = await body_of(request)
    header_length = sent.get(_HEADER)
    return await answer(zoo, caller.id, model, body, header_length=header_length, idempotency_key=idempotency_key)


def refuse_encoding(encoding: str, media: str) -> None:
    """Raises 415 for what is no JSON and no raw tensors."""
    if encoding != "identity" and encoding.strip().lower() != "identity":
        raise ProblemError("unsupported-media-type", f"bodies in {encoding!r} are not taken: send gzip or deflate")
    if media in _TAKEN:
        return
    media = media.partition(";")[0].strip().lower()
    if media not in _TAKEN:
        raise ProblemError("unsupported-media-type", f"{media!r} is not taken: send application/json or {oip.BINARY}")


async def body_of(request: Request) -> bytearray:
    """The whole body, which may be written to, so that its tensors are used where they lie."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


class _InferRoute(APIRoute):
    """Described by the signature of `infer`, and called past it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return _response


router.add_api_route(
    "/models/{model}/infer",
    infer,
    methods=["POST"],
    summary="Classify images",
    openapi_extra=_BODY,
    response_class=Response,
    responses=_ANSWER | problems(400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
    route_class_override=_InferRoute,
)
INFER = router.routes[0]
