"""Image sets over REST: a zip of one's own images goes in, an id for jobs comes out."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request

from contracts._base import Name
from contracts.image_sets import ImageSet, ImageSetPage
from contracts.problems import Problem, ProblemError
from meta_server.image_archives import check
from meta_server.routes.access import CallerDep, ServicesDep
from meta_server.routes.description import After, Limit, Responses, problems
from meta_server.store.image_sets import folder

ZIP = "application/zip"
SetId = Annotated[str, Path(description="The image set's id.", max_length=100)]
_BODY = {"requestBody": {"required": True, "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}}
_NO_ZIP: Responses = {415: {"model": Problem, "description": "The body is no zip."}}

router = APIRouter(prefix="/image-sets", tags=["image sets"])


@router.post("", status_code=201, responses=problems(400, 408, 409, 413) | _NO_ZIP, openapi_extra=_BODY)
async def create_image_set(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    name: Annotated[Name, Query(description="To find it by.")] = "images",
) -> ImageSet:
    """Upload images that a job may ask its APIs about (`unlabeled`): a zip of PNG, JPEG and WebP files.

    Every image is decoded once; an archive with one that cannot be used is refused whole, naming it. Labels and file names
    mean nothing. What is uploaded is sent to the APIs of jobs that name it, and to nobody else.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != ZIP:
        raise ProblemError("unsupported-media-type", f"send the archive as {ZIP}")
    await services.image_sets.check_room(caller.tenant)
    content = await request.body()
    images = await check(content)
    return await services.image_sets.add(name, images, content, services.artifacts, tenant=caller.tenant)


@router.get("")
async def list_image_sets(
    services: ServicesDep, caller: CallerDep, after: After = None, limit: Limit = 20
) -> ImageSetPage:
    """Image sets, newest first."""
    return await services.image_sets.list(tenant=caller.tenant, after=after, limit=limit)


@router.get("/{image_set}", responses=problems(404))
async def retrieve_image_set(image_set: SetId, services: ServicesDep) -> ImageSet:
    """An image set: its name, how many images it holds, and the SHA-256 of its archive."""
    return await services.image_sets.get(image_set)


@router.delete("/{image_set}", status_code=204, responses=problems(404))
async def delete_image_set(image_set: SetId, services: ServicesDep) -> None:
    """Delete an image set, archive and all. Jobs that still have to ask about it fail; meta-models stay."""
    await services.image_sets.delete(image_set)
    await to_thread.run_sync(services.artifacts.remove, folder(image_set))
