"""The weights of models whose host publishes them."""

from anyio import to_thread
from fastapi import APIRouter, Response

from api_zoo.routes.access import ModelDep
from api_zoo.routes.description import Responses, problems
from contracts import oip
from contracts.problems import ProblemError

router = APIRouter(prefix="/v1", tags=["Weights"])

_WEIGHTS: Responses = {
    200: {
        "description": "The safetensors file whose SHA-256 and network the model's metadata states.",
        "content": {oip.BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/models/{model}/weights",
    summary="A model's weights, where its host publishes them",
    response_class=Response,
    responses=_WEIGHTS | problems(401, 403, 404, 429, 503),
)
async def published_weights(model: ModelDep) -> Response:
    if model.published is None:
        raise ProblemError("forbidden", f"the host of {model.name} publishes no weights: ask it by images")
    content = await to_thread.run_sync(model.published.read)
    return Response(content, media_type=oip.BINARY, headers={"ETag": f'"{model.published.told.sha256}"'})
