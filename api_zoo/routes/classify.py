"""Images as files: PNG, JPEG or WebP, as hosted vision APIs take them."""

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api_zoo import answering
from api_zoo.reading import UNCHARGED, too_many
from api_zoo.routes.access import KeyDep, ModelDep, ServicesDep
from api_zoo.routes.description import ANSWER_HEADERS, IdempotencyKey, Responses, problems
from contracts._base import Record
from contracts.problems import Fault, ProblemError

router = APIRouter(prefix="/v1", tags=["Image files"])

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
        "headers": ANSWER_HEADERS,
    }
}


class LabelScore(Record):
    """A class and the probability that the model gives it."""

    label: str = Field(description="The class.")
    score: float = Field(description="In [0, 1].")


@router.post(
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
    answer = await answering.classify(services, key.id, model, sent, idempotency_key=idempotency_key)
    return answer.response()


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
