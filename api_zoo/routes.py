"""The REST interface for callers: the Open Inference Protocol v2, image files, and what a key has used.

Who calls, which models there are and what answering uses are the dependencies `key_of`, `names_of`, `model_of` and
`services`: a server that hosts other models than a folder's puts its own into `app.state.host`, and shares the rest.
"""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Path, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api_zoo.answering import UNCHARGED, answer, too_many, unauthorised
from api_zoo.answering import classify as classify_files
from api_zoo.inference import Model
from api_zoo.services import Services
from contracts import oip
from contracts._base import Record
from contracts.problems import Fault, Problem, ProblemError
from contracts.zoo import Key, ModelMetadata, ServerMetadata, Usage
from metering.keyring import Caller
from metering.scripts import store_errors

SEND_A_KEY = "send a key of this zoo as Authorization: Bearer mz_…"
_bearer = HTTPBearer(auto_error=False, description="An API key of this zoo: mz_ID_SECRET.")


@dataclass(frozen=True, slots=True)
class Host:
    """What a server that hosts other models than a folder's answers the same questions with.

    FastAPI's own way, `dependency_overrides`, analyses every dependency of the application anew at each request.
    """

    services: Callable[[Request], Services]
    key_of: Callable[[Request], Awaitable[Key]]
    model_of: Callable[[Request], Awaitable[Model]]
    names_of: Callable[[Request], Awaitable[list[str]]]
    asking: Callable[[Request], Awaitable["Asking"]]


def host(request: Request) -> Host | None:
    """The application's own, if it hosts other models."""
    other: Host | None = getattr(request.app.state, "host", None)
    return other


async def services(request: Request) -> Services:
    """What the application opened when it started."""
    other = host(request)
    opened: Services = request.app.state.services if other is None else other.services(request)
    return opened


ServicesDep = Annotated[Services, Depends(services)]


Sent = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def key_of(request: Request, services: ServicesDep, sent: Sent) -> Key:
    """The caller's key. Raises 401 for any that may not be used."""
    if other := host(request):
        return await other.key_of(request)
    key = None if sent is None else await services.keyring.authenticate(sent.credentials)
    if key is None:
        raise unauthorised(SEND_A_KEY)
    if key.revoked:
        raise unauthorised("the key was revoked: ask the host for a new one")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):  # the gate decides by Redis's clock again
        raise unauthorised("the key has expired: ask the host for a new one")
    return key


KeyDep = Annotated[Key, Depends(key_of)]


ModelName = Annotated[str, Path(description="The model's name.", max_length=200)]


def found(services: Services, caller: Caller | Key, model: str) -> Model:
    """The model of a name. Raises 404 for an unknown one, 403 for one that the key may not use."""
    hosted = services.models.get(model)
    if hosted is None:
        raise ProblemError("not-found", f"there is no model {model!r}: POST /v2/repository/index lists those there are")
    if caller.models is not None and model not in caller.models:
        raise ProblemError("forbidden", f"the key may not use {model}: POST /v2/repository/index lists what it may")
    return hosted


async def model_of(request: Request, services: ServicesDep, key: KeyDep, model: ModelName) -> Model:
    """The model of the path, for a key that stands."""
    if other := host(request):
        return await other.model_of(request)
    return found(services, key, model)


async def names_of(request: Request, services: ServicesDep, sent: Sent) -> list[str]:
    """The models that the key may use."""
    if other := host(request):
        return await other.names_of(request)
    key = await key_of(request, services, sent)
    return [name for name in services.models if key.models is None or name in key.models]


ModelDep = Annotated[Model, Depends(model_of)]
Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Error responses of a route, for its description."""
    return {status: {"model": Problem, "description": _PROBLEM_TEXTS[status]} for status in statuses}


_PROBLEM_TEXTS = {
    400: "The body does not follow the protocol: `errors` names every fault.",
    401: "No valid key was sent.",
    402: "The key's budget does not hold these images; `left` says what it holds. Waiting does not help.",
    403: "The key may not use this model.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "The same request is still running; `Retry-After` says when it can be taken over.",
    413: "More than will ever be accepted; `max_images` says how many images are.",
    415: "The body is neither JSON nor raw tensors, or is compressed as neither gzip nor deflate.",
    422: "The request is invalid: `errors` names every fault. Or the idempotency key came with another body before.",
    429: "Too fast; `Retry-After` says when to try again.",
    500: "A fault of the server; nothing was charged.",
    503: "Redis is not reachable; nothing was answered.",
}


class LiveStatus(Record):
    """The process answers."""

    live: bool = Field(description="Always true.")


class ReadyStatus(Record):
    """Requests can be answered."""

    ready: bool = Field(description="Always true; a 503 otherwise.")


class ModelReady(Record):
    """The model can be asked."""

    name: str = Field(description="As in its path.")
    ready: bool = Field(description="Always true.")


class IndexRequest(Record):
    """Which models to list."""

    ready: bool = Field(False, description="Only models that are ready; all of this zoo always are.")


class IndexEntry(Record):
    """A model of the repository."""

    name: str = Field(description="What its path calls it.")
    version: str = Field("1", description="Always the one.")
    state: str = Field("READY", description="Always `READY`.")
    reason: str = Field("", description="Always empty.")


def refuse_encoding(request: Request) -> None:
    """Raises 415 for what is no JSON and no raw tensors."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ProblemError("unsupported-media-type", f"bodies in {encoding!r} are not taken: send gzip or deflate")
    media = request.headers.get("content-type", oip.BINARY).partition(";")[0].strip().lower()
    if media not in {"application/json", oip.BINARY}:
        raise ProblemError("unsupported-media-type", f"{media!r} is not taken: send application/json or {oip.BINARY}")


v2 = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
files = APIRouter(prefix="/v1", tags=["Image files"])
weights = APIRouter(prefix="/v1", tags=["Weights"])
keys = APIRouter(prefix="/v1", tags=["Keys"])


@v2.get("", summary="The server and its extensions")
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="metazoo", version=version("metazoo"), extensions=["binary_tensor_data"])


@v2.get("/health/live", summary="Whether the process answers")
async def live() -> LiveStatus:
    return LiveStatus(live=True)


@v2.get("/health/ready", summary="Whether requests can be answered", responses=problems(503))
async def ready(services: ServicesDep) -> ReadyStatus:
    with store_errors():
        await services.redis.ping()
    return ReadyStatus(ready=True)


@v2.post("/repository/index", summary="The models that the key may use", responses=problems(400, 401, 422, 503))
async def index(names: Annotated[list[str], Depends(names_of)], wanted: IndexRequest | None = None) -> list[IndexEntry]:
    return [IndexEntry(name=name) for name in names]


@v2.get("/models/{model}", summary="What a model takes and gives", responses=problems(401, 403, 404, 503))
async def model_metadata(services: ServicesDep, model: ModelDep) -> ModelMetadata:
    return model.metadata(services.settings.max_images)


@v2.get("/models/{model}/ready", summary="Whether a model can be asked", responses=problems(401, 403, 404, 503))
async def model_ready(model: ModelDep) -> ModelReady:
    return ModelReady(name=model.name, ready=True)


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
_HEADERS = {
    "X-Query-Cost": {
        "description": "Images charged; for a replay, what was charged then.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Policy": {"description": "The key's limits.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of them.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true` for an answer that was given before.",
        "schema": {"type": "string"},
    },
}
_ANSWER: Responses = {
    200: {
        "description": "The tensor `probabilities`, FP32 (n, classes), in JSON or raw as it was asked for.",
        "content": {"application/json": {"schema": {"type": "object"}}, oip.BINARY: {}},
        "headers": _HEADERS,
    }
}
_FILES = {
    "requestBody": {
        "required": True,
        "description": "PNG, JPEG or WebP files, resized to the model's input. Charged by the file.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}
_LABELS: Responses = {
    200: {
        "description": "For each file the labels with their scores, the likeliest first; of a model whose response policy "
        "is `topk:k` or `label`, those k or that one.",
        "headers": _HEADERS,
    }
}


LONGEST_KEY = 255
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=LONGEST_KEY, description="Same key, same body: the same answer for 24 h, charged once."
    ),
]


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
    return await _infer(request, services, key, model, idempotency_key, header_length)


async def _infer(
    request: Request,
    services: Services,
    caller: Caller | Key,
    model: Model,
    idempotency_key: str | None,
    header_length: str | None,
) -> Response:
    refuse_encoding(request)
    body = bytearray()  # may be written to, so that its tensors are used where they lie
    async for piece in request.stream():
        body += piece
    return await answer(services, caller.id, model, body, header_length=header_length, idempotency_key=idempotency_key)


Asking = tuple[Services, Caller | Key, Model]
"""Who asks which model, and what answering uses."""


async def asking(request: Request) -> Asking:
    """What `infer` is given for a folder's models. How the key stands is left to the gate, which looks when it charges."""
    zoo: Services = request.app.state.services
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    caller = await zoo.keyring.recognise(secret) if scheme.lower() == "bearer" else None
    if caller is None:
        raise unauthorised(SEND_A_KEY)
    return zoo, caller, found(zoo, caller, request.path_params["model"])


async def infer_at_once(request: Request) -> Response:
    """What `infer` does. Solving dependencies would take longer than computing a small answer."""
    other = host(request)
    zoo, caller, model = await (asking if other is None else other.asking)(request)
    idempotency_key = request.headers.get("idempotency-key")
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= LONGEST_KEY:
        fault = Fault(field="idempotency-key", message=f"must have 1 to {LONGEST_KEY} characters")
        raise ProblemError("invalid-request", UNCHARGED, errors=[fault])
    return await _infer(request, zoo, caller, model, idempotency_key, request.headers.get(oip.HEADER))


class _InferRoute(APIRoute):
    """Described by the signature of `infer`, and called past it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return infer_at_once


v2.add_api_route(
    "/models/{model}/infer",
    infer,
    methods=["POST"],
    summary="Classify images",
    openapi_extra=_BODY,
    response_class=Response,
    responses=_ANSWER | problems(400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
    route_class_override=_InferRoute,
)
INFER = v2.routes[-1]
v2.routes.insert(0, v2.routes.pop())  # matched first: it is what callers send all day


class LabelScore(Record):
    """A class and the probability that the model gives it."""

    label: str = Field(description="The class.")
    score: float = Field(description="In [0, 1].")


@files.post(
    "/models/{model}/classify",
    summary="Classify image files",
    openapi_extra=_FILES,
    response_model=list[list[LabelScore]],
    responses=_LABELS | problems(400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
)
async def classify(
    request: Request,
    services: ServicesDep,
    key: KeyDep,
    model: ModelDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    sent = await files_of(request, services.settings.max_images)
    return await classify_files(services, key.id, model, sent, idempotency_key=idempotency_key)


_WEIGHTS: Responses = {
    200: {
        "description": "The safetensors file whose SHA-256 and network the model's metadata states.",
        "content": {oip.BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@weights.get(
    "/models/{model}/weights",
    summary="A model's weights, where its host publishes them",
    response_class=Response,
    responses=_WEIGHTS | problems(401, 403, 404, 503),
)
async def published_weights(model: ModelDep) -> Response:
    if model.published is None:
        raise ProblemError("forbidden", f"the host of {model.name} publishes no weights: ask it by images")
    content = await to_thread.run_sync(model.published.read)
    return Response(content, media_type=oip.BINARY, headers={"ETag": f'"{model.published.told.sha256}"'})


async def files_of(request: Request, most: int) -> list[bytes]:
    """The files of a multipart body. Raises `ProblemError`: 400, 413 for more than `most`, 415, 422 for none."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "multipart/form-data":
        raise ProblemError("unsupported-media-type", "send image files as multipart/form-data")
    try:
        async with request.form(max_files=most, max_fields=0) as form:
            sent = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    except HTTPException as error:
        if error.status_code != 400:
            raise
        if error.detail.startswith("Too many files"):
            raise too_many(most) from None
        raise ProblemError("malformed", f"send files alone, as multipart/form-data; {UNCHARGED}") from None
    if not sent:
        fault = Fault(field="files", message="must hold at least one image file")
        raise ProblemError("invalid-request", UNCHARGED, errors=[fault])
    return sent


@keys.get("/usage", summary="What the key has used", responses=problems(401, 503))
async def usage(services: ServicesDep, key: KeyDep) -> Usage:
    return await services.keyring.usage(key.id)
