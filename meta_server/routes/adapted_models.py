"""Adapted models over REST: what is served now, its files, its end. They are asked at `/v2/models/{id}`."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Response

from contracts.adaptation import AdaptedModel, AdaptedModelPage
from meta_server import files
from meta_server.routes.access import CallerDep, ServicesDep
from meta_server.routes.description import After, Limit, problems
from meta_server.routes.meta_models import FILE
from meta_server.store.adapted_models import folder

AdaptedId = Annotated[str, Path(description="The adapted model's id.", max_length=100)]

router = APIRouter(prefix="/adapted-models", tags=["adapted models"])


@router.get("")
async def list_adapted_models(
    services: ServicesDep, caller: CallerDep, after: After = None, limit: Limit = 20
) -> AdaptedModelPage:
    """Adapted models that are served now, newest first."""
    return await services.adapted_models.list(tenant=caller.tenant, after=after, limit=limit)


@router.get("/{adapted_id}", responses=problems(404, 410))
async def retrieve_adapted_model(adapted_id: AdaptedId, services: ServicesDep) -> AdaptedModel:
    """An adapted model: what it learned, where it is asked, when it ends, and what it has answered."""
    return await services.adapted_models.get(adapted_id)


@router.delete("/{adapted_id}", status_code=204, responses=problems(404, 410))
async def delete_adapted_model(adapted_id: AdaptedId, services: ServicesDep) -> None:
    """End an adapted model now: it answers 410 from here on, and its files are deleted."""
    await services.adapted_models.delete(adapted_id)
    await to_thread.run_sync(services.artifacts.remove, folder(adapted_id))
    await services.adapted_models.forget(adapted_id)


@router.get("/{adapted_id}/files/{name}", response_class=Response, responses=FILE | problems(404, 410, 416))
async def adapted_model_file(
    adapted_id: AdaptedId,
    name: Annotated[str, Path(description="One of the names in `files` of the adapted model.", max_length=200)],
    services: ServicesDep,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="`ETag` of what the caller has.", max_length=1000)
    ] = None,
    range_: files.Range = None,
) -> Response:
    """One file of an adapted model."""
    model = await services.adapted_models.get(adapted_id)
    return await files.send_file(services.artifacts, folder(adapted_id), model.files, name, if_none_match, range_)
