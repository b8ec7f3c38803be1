"""Jobs over REST."""

from typing import Annotated, Any

import structlog
from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response

from contracts.estimates import Estimate, EstimateRequest
from contracts.job_records import EventPage
from contracts.jobs import ENDED, Job, JobChange, JobPage, JobRequest, JobStatus
from contracts.problems import Fault, Problem, ProblemError
from meta_server import events
from meta_server.estimates import estimate
from meta_server.planning import fitted, pinned
from meta_server.probing import probed, with_probe
from meta_server.routes.access import Caller, CallerDep, ServicesDep, require_owned
from meta_server.routes.description import After, IdempotencyKey, Limit, Responses, problems
from meta_server.services import Services
from meta_server.store.events import STREAM_ID

_LOCATION = {"Location": {"description": "The job's URL, relative to the server.", "schema": {"type": "string"}}}
_CREATED: Responses = {202: {"headers": _LOCATION}}
_NOT_PROBED: Responses = {
    503: {
        "model": Problem,
        "description": "Redis is not reachable, or no worker told what a probe showed: `charged_at_most` says how many images "
        "may have been charged, none where it is absent.",
    }
}
_STREAM: Responses = {
    200: {
        "description": "A page of events; or, for `Accept: text/event-stream`, events as they happen until the job has "
        "ended: `id` resumes after the event, `event` is its type, `data` is an `Event` as JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

JobId = Annotated[str, Path(description="The job's id.", max_length=100)]
EventId = Annotated[str | None, Query(description="Only events after this one.", pattern=STREAM_ID)]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="As `after`; what a browser sends to resume.", pattern=STREAM_ID),
]

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.post(
    "",
    status_code=202,
    responses=_CREATED | problems(400, 408, 409, 413, 415),
)
async def create_job(
    request: JobRequest,
    response: Response,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Start a job: learn from these APIs, within this budget. A bad request is refused whole, with every fault named."""
    await _require_ended(request, services, caller)
    request = await _with_own_images(request, services, caller)
    job, created = await services.jobs.create(request, tenant=caller.tenant, idempotency_key=idempotency_key)
    structlog.contextvars.bind_contextvars(job_id=job.id)
    if created:
        services.beginnings.add(job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post("/estimate", responses=problems(400, 408, 409, 413, 415) | _NOT_PROBED)
async def estimate_job(request: EstimateRequest, services: ServicesDep, caller: CallerDep) -> Estimate:
    """What a job would come to: queries, cost, and the accuracy that our measurements suggest. Nothing is stored.

    With `probe`, workers ask each API about a few images, which are charged, and it tells what they showed, and how long asking
    takes at the rates they state. It answers within half a minute; a 503 says how many images may have been charged.
    """
    await _require_ended(request, services, caller)
    told = await to_thread.run_sync(estimate, await _with_own_images(request, services, caller))
    if not request.probe:
        return told
    await services.access.note(
        tenant=caller.tenant, key=caller.key, action="POST /v1/jobs/estimate (probe)", status=200
    )
    return with_probe(told, await probed(services, request, tenant=caller.tenant))


async def _require_ended(request: JobRequest, services: Services, caller: Caller) -> None:
    """Raises `ProblemError` naming every job of `reuse` that is not there, not the caller's, or still at work."""
    found = []
    for index, name in enumerate(request.reuse):
        try:
            await require_owned(caller, services, "job_id", name)
            ended = await services.jobs.status(name) in ENDED
        except ProblemError:
            found.append(Fault(field=f"reuse.{index}", message="there is no such job"))
            continue
        if not ended:
            found.append(Fault(field=f"reuse.{index}", message="has not ended: wait for it, or cancel it"))
    if found:
        raise ProblemError("invalid-request", "it names jobs whose answers cannot be used", errors=found)


async def _with_own_images(request: JobRequest, services: Services, caller: Caller) -> JobRequest:
    """The request, planned for as many images as its image set holds. Raises `ProblemError` where there is no such set."""
    if request.unlabeled is None:
        return request
    try:
        await require_owned(caller, services, "image_set", request.unlabeled)
        found = await services.image_sets.get(request.unlabeled)
    except ProblemError:
        message = "there is no such image set: upload one first, POST /v1/image-sets"
        raise ProblemError(
            "invalid-request", "it names what is not there", errors=[Fault(field="unlabeled", message=message)]
        ) from None
    return await to_thread.run_sync(fitted, request, found.images)


@router.get("")
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    after: After = None,
    limit: Limit = 20,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    tag: Annotated[str | None, Query(description="Only jobs with this tag.", max_length=63)] = None,
    name: Annotated[str | None, Query(description="Only jobs with this in their name.", max_length=120)] = None,
) -> JobPage:
    """Jobs, newest first. A filtered page may be short; go on while `next` is not null."""
    return await services.jobs.list(tenant=caller.tenant, after=after, limit=limit, status=status, tag=tag, name=name)


@router.get("/{job_id}", responses=problems(404))
async def retrieve_job(job_id: JobId, services: ServicesDep) -> Job:
    """A job as it is now."""
    return await services.jobs.get(job_id)


@router.patch("/{job_id}", responses=problems(400, 404, 408, 409, 413, 415))
async def change_job(job_id: JobId, change: JobChange, services: ServicesDep) -> Job:
    """Name, tag or annotate a job, or raise its budget. A raise counts from when work on it is next begun."""
    return await services.jobs.change(job_id, change, pinned=pinned)


@router.delete("/{job_id}", status_code=204, responses=problems(404, 409))
async def delete_job(job_id: JobId, services: ServicesDep) -> None:
    """Delete a job that has ended, whole: its record, events, answers and checkpoints. Its meta-model stays."""
    await services.jobs.delete(job_id)
    await to_thread.run_sync(services.artifacts.remove, f"jobs/{job_id}")


@router.post("/{job_id}/cancel", responses=problems(404, 409))
async def cancel_job(job_id: JobId, services: ServicesDep) -> Job:
    """Stop a job. A queued one is cancelled at once, a running one within a step; what it has paid for is kept."""
    return await services.jobs.moves.cancel(job_id)


@router.post("/{job_id}/pause", responses=problems(404, 409))
async def pause_job(job_id: JobId, services: ServicesDep) -> Job:
    """Let a job rest. A queued one is paused at once, a running one when the requests under way have been answered."""
    return await services.jobs.moves.pause(job_id, reason="paused on request")


@router.post("/{job_id}/resume", responses=problems(404, 409))
async def resume_job(job_id: JobId, services: ServicesDep) -> Job:
    """Go on with a paused job, from its last answer or checkpoint."""
    job = await services.jobs.moves.resume(job_id)
    services.beginnings.add(job.id)
    return job


@router.post("/{job_id}/retry", responses=problems(404, 409))
async def retry_job(job_id: JobId, services: ServicesDep) -> Job:
    """Go on with a failed job: what it paid for and its checkpoints are kept, APIs that were dropped are asked again."""
    job = await services.jobs.moves.retry(job_id)
    services.beginnings.add(job.id)
    return job


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses=_STREAM | problems(404, 410),
)
async def job_events(
    request: Request,
    job_id: JobId,
    services: ServicesDep,
    after: EventId = None,
    last_event_id: LastEventId = None,
    limit: Annotated[
        int, Query(description="Most events on the page; a stream has no end of page.", ge=1, le=1000)
    ] = 100,
) -> Any:
    """What happened to a job, oldest first."""
    resume = last_event_id or after
    if "text/event-stream" not in request.headers.get("accept", ""):
        return await services.jobs.events.page(job_id, after=resume, limit=limit)
    await services.jobs.events.resumable(job_id, resume)
    return events.stream(services.hub, job_id, resume)
