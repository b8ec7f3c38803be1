"""What a job has come to so far, over REST: its budget, training metrics, paid answers and query images."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from contracts.job_records import AnswerPage, MetricPage
from contracts.jobs import BudgetState
from meta_server import files, images
from meta_server.routes.access import ServicesDep
from meta_server.routes.description import After, Responses, problems
from meta_server.routes.jobs import EventId, JobId
from meta_server.store import answers

_ANSWER: Responses = {
    200: {"description": "safetensors: `indices` into the query images, `probabilities`.", "content": files.BYTES},
    206: {"description": "The part that `Range` asked for.", "content": files.BYTES},
}
_SHEET: Responses = {200: {"description": "A PNG, eight images a row.", "content": {"image/png": {}}}}

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.get("/budget", responses=problems(404))
async def job_budget(job_id: JobId, services: ServicesDep) -> BudgetState:
    """Where a job's budget stands, by API too."""
    return (await services.jobs.get(job_id)).budget


@router.get("/metrics", responses=problems(404))
async def job_metrics(
    job_id: JobId,
    services: ServicesDep,
    after: EventId = None,
    limit: Annotated[int, Query(description="Most points on the page.", ge=1, le=1000)] = 1000,
) -> MetricPage:
    """Training metrics over time, oldest first.

    They are kept apart from events, for 90 days after the last; of a long training every second point goes as it grows beyond
    4,000 points, so that what is told always spans all of it.
    """
    return await services.jobs.events.metrics(job_id, after=after, limit=limit)


@router.get("/answers", responses=problems(404))
async def job_answers(
    job_id: JobId,
    services: ServicesDep,
    after: After = None,
    limit: Annotated[int, Query(description="Most answers on the page.", ge=1, le=1000)] = 100,
) -> AnswerPage:
    """What was paid for: every chunk of images that an API answered."""
    await services.jobs.status(job_id)
    return await answers.page(services.jobs.ledger(job_id), after=after, limit=limit)


@router.get("/answers/{name}", response_class=Response, responses=_ANSWER | problems(404, 416))
async def job_answer(
    job_id: JobId,
    name: Annotated[str, Path(description="`name` of one of the answers.", max_length=40)],
    services: ServicesDep,
    range_: files.Range = None,
) -> Response:
    """One answer, exactly as received."""
    await services.jobs.status(job_id)
    path = await answers.path(services.jobs.ledger(job_id), name)
    return await files.send(services.artifacts, path, wanted=range_)


@router.get("/images", response_class=Response, responses=_SHEET | problems(404, 409, 410))
async def job_images(
    job_id: JobId,
    services: ServicesDep,
    count: Annotated[int, Query(description="How many images.", ge=1, le=64)] = 32,
) -> Response:
    """The first images that the job asks its APIs about, on one sheet."""
    job = await services.jobs.load(job_id)
    content = await images.query_images(job.request, job.input_shape, services.artifacts, count=count)
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
