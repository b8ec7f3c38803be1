"""Meta-models over REST."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import StreamingResponse

from contracts.adaptation import AdaptedModel, AdaptRequest, PredictRequest, PredictResponse
from contracts.meta_models import CompareRequest, Comparison, MetaModel, MetaModelEdit, MetaModelPage
from meta_server import archives, files
from meta_server.routes.access import CallerDep, ServicesDep, require_owned
from meta_server.routes.description import After, Limit, Responses, problems

_ETAG = {"ETag": {"description": "SHA-256 of the file, quoted.", "schema": {"type": "string"}}}
FILE: Responses = {
    200: {"description": "The file.", "headers": _ETAG, "content": {"application/octet-stream": {}}},
    206: {"description": "The part that `Range` asked for.", "headers": _ETAG, "content": files.BYTES},
    304: {"description": "The caller has it: `If-None-Match` names what it holds.", "headers": _ETAG},
}

_ZIP: Responses = {200: {"description": "The zip.", "content": {"application/zip": {}}}}
_MADE: Responses = {
    201: {
        "headers": {
            "Location": {
                "description": "The adapted model's URL, relative to the server.",
                "schema": {"type": "string"},
            }
        }
    }
}

MetaModelId = Annotated[str, Path(description="The meta-model's id.", max_length=100)]

router = APIRouter(prefix="/meta-models", tags=["meta-models"])


@router.get("")
async def list_meta_models(
    services: ServicesDep, caller: CallerDep, after: After = None, limit: Limit = 20
) -> MetaModelPage:
    """Meta-models, newest first."""
    return await services.meta_models.list(tenant=caller.tenant, after=after, limit=limit)


@router.post("/compare", responses=problems(400, 404, 408, 410, 413, 415))
async def compare_meta_models(request: CompareRequest, services: ServicesDep, caller: CallerDep) -> Comparison:
    """Measure two meta-models on the same episodes: each one's accuracy, and the paired difference. Takes seconds."""
    for meta_model_id in (request.first, request.second):
        await require_owned(caller, services, "meta_model_id", meta_model_id)
    return await services.serving.compare(request)


@router.get("/{meta_model_id}", responses=problems(404, 410))
async def retrieve_meta_model(meta_model_id: MetaModelId, services: ServicesDep) -> MetaModel:
    """A meta-model: where it comes from, what it cost, how good it is, and its files."""
    return await services.meta_models.get(meta_model_id)


@router.patch("/{meta_model_id}", responses=problems(400, 404, 408, 410, 413, 415))
async def edit_meta_model(meta_model_id: MetaModelId, edit: MetaModelEdit, services: ServicesDep) -> MetaModel:
    """Change the name, tags or notes of a meta-model; what is absent stays."""
    return await services.meta_models.edit(meta_model_id, edit)


@router.delete("/{meta_model_id}", status_code=204, responses=problems(404, 410))
async def delete_meta_model(meta_model_id: MetaModelId, services: ServicesDep) -> None:
    """Delete a meta-model: it is listed no more and answers 410. Its files stay, and `restore` brings it back."""
    await services.meta_models.delete(meta_model_id)


@router.post("/{meta_model_id}/restore", responses=problems(404))
async def restore_meta_model(meta_model_id: MetaModelId, services: ServicesDep) -> MetaModel:
    """Bring a deleted meta-model back."""
    return await services.meta_models.restore(meta_model_id)


@router.get("/{meta_model_id}/archive", response_class=StreamingResponse, responses=_ZIP | problems(404, 410))
async def meta_model_archive(meta_model_id: MetaModelId, services: ServicesDep) -> Response:
    """All files of a meta-model in one zip."""
    model = await services.meta_models.get(meta_model_id)
    folder = await services.meta_models.folder(meta_model_id)
    return archives.send_archive(services.artifacts, folder, model.files, title=model.id)


@router.get(
    "/{meta_model_id}/files/{name}",
    response_class=Response,
    responses=FILE | problems(404, 410, 416),
)
async def meta_model_file(
    meta_model_id: MetaModelId,
    name: Annotated[str, Path(description="One of the names in `files` of the meta-model.", max_length=200)],
    services: ServicesDep,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="`ETag` of what the caller has.", max_length=1000)
    ] = None,
    range_: files.Range = None,
) -> Response:
    """One file of a meta-model."""
    model = await services.meta_models.get(meta_model_id)
    folder = await services.meta_models.folder(meta_model_id)
    return await files.send_file(services.artifacts, folder, model.files, name, if_none_match, range_)


@router.post("/{meta_model_id}/predict", responses=problems(400, 404, 408, 410, 413, 415))
async def predict(meta_model_id: MetaModelId, request: PredictRequest, services: ServicesDep) -> PredictResponse:
    """Learn a new task from a few labelled images, and label others, in one call. Nothing of it is kept."""
    return await services.serving.predict(meta_model_id, request)


@router.post("/{meta_model_id}/adapt", status_code=201, responses=_MADE | problems(400, 404, 408, 410, 413, 415))
async def adapt(
    meta_model_id: MetaModelId, request: AdaptRequest, response: Response, services: ServicesDep
) -> AdaptedModel:
    """Learn a new task from a few labelled images, and serve what was learned under `/v2/models/{id}` for a while."""
    model = await services.serving.adapt(meta_model_id, request)
    response.headers["Location"] = f"/v1/adapted-models/{model.id}"
    return model
