"""The REST interface: each handler reads a request, makes one call, and answers."""

import secrets
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Path, Query, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from contracts.jobs import EventPage, Job, JobPage, JobRequest, JobStatus
from contracts.meta_models import MetaModel, MetaModelPage, PredictRequest, PredictResponse
from contracts.problems import Problem, ProblemError
from meta_server import events, files
from meta_server.services import Services
from metering.scripts import store_errors

_bearer = HTTPBearer(auto_error=False, description="The server's API key.")


def services(request: Request) -> Services:
    """What the application opened when it started."""
    opened: Services = request.app.state.services
    return opened


async def authorised(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
    """Refuses callers without the key; takes as long for a key that is nearly right."""
    wanted: bytes = request.app.state.key_digest
    if sent is None or not secrets.compare_digest(sha256(sent.credentials.encode()).digest(), wanted):
        detail = "send the server's key as Authorization: Bearer KEY"
        raise ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Error responses of a route, for its description."""
    return {status: {"model": Problem, "description": _PROBLEM_TEXTS[status]} for status in statuses}


_PROBLEM_TEXTS = {
    400: "The body cannot be read.",
    401: "No valid key was sent.",
    404: "There is no such thing.",
    409: "The state does not allow this.",
    413: "The body is larger than will ever be accepted.",
    415: "The body is no JSON.",
    422: "The request is invalid: `errors` names every fault by its dotted field path.",
    500: "A fault of the server.",
    503: "Redis is not reachable; nothing was lost or charged.",
}
_LOCATION = {"Location": {"description": "The job's URL, relative to the server.", "schema": {"type": "string"}}}
_CREATED: Responses = {202: {"headers": _LOCATION}}
_STREAM: Responses = {
    200: {
        "description": "A page of events; or, for `Accept: text/event-stream`, events as they happen until the job has "
        "ended: `id` resumes after the event, `event` is its type, `data` is an `Event` as JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_ETAG = {"ETag": {"description": "SHA-256 of the file, quoted.", "schema": {"type": "string"}}}
_FILE: Responses = {
    200: {"description": "The file.", "headers": _ETAG, "content": {"application/octet-stream": {}}},
    304: {"description": "The caller has it: `If-None-Match` names what it holds.", "headers": _ETAG},
}

ServicesDep = Annotated[Services, Depends(services)]
JobId = Annotated[str, Path(description="The job's id.", max_length=100)]
MetaModelId = Annotated[str, Path(description="The meta-model's id.", max_length=100)]
After = Annotated[str | None, Query(description="The `next` of the page before; absent for the first.", max_length=100)]
Limit = Annotated[int, Query(description="Most items on the page.", ge=1, le=100)]
EventId = Annotated[str | None, Query(description="Only events after this one.", pattern=events.STREAM_ID)]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="As `after`; what a browser sends to resume.", pattern=events.STREAM_ID),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Repeating a request under its key within 24 hours answers the same job and makes no second one.",
        min_length=1,
        max_length=200,
    ),
]

v1 = APIRouter(prefix="/v1", dependencies=[Depends(authorised)], responses=problems(401, 422, 500, 503))
health = APIRouter(prefix="/health", tags=["health"])


@v1.post(
    "/jobs",
    status_code=202,
    tags=["jobs"],
    responses=_CREATED | problems(400, 413, 415),
)
async def create_job(
    request: JobRequest,
    response: Response,
    after_answering: BackgroundTasks,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Start a job: learn from these APIs, within this budget. A bad request is refused whole, with every fault named."""
    job, created = await services.jobs.create(request, idempotency_key=idempotency_key)
    if created:
        after_answering.add_task(services.enqueue, job)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@v1.get("/jobs", tags=["jobs"])
async def list_jobs(
    services: ServicesDep,
    after: After = None,
    limit: Limit = 20,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    return await services.jobs.list(after=after, limit=limit, status=status)


@v1.get("/jobs/{job_id}", tags=["jobs"], responses=problems(404))
async def retrieve_job(job_id: JobId, services: ServicesDep) -> Job:
    """A job as it is now."""
    return await services.jobs.get(job_id)


@v1.post("/jobs/{job_id}/cancel", tags=["jobs"], responses=problems(404, 409))
async def cancel_job(job_id: JobId, services: ServicesDep) -> Job:
    """Stop a job. A queued one is cancelled at once, a running one within a step; what it has paid for is kept."""
    return await services.jobs.cancel(job_id)


@v1.get(
    "/jobs/{job_id}/events",
    tags=["jobs"],
    response_model=EventPage,
    responses=_STREAM | problems(404),
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
        return await services.jobs.events(job_id, after=resume, limit=limit)
    await services.jobs.status(job_id)
    return events.stream(services.jobs, job_id, resume)


@v1.get("/meta-models", tags=["meta-models"])
async def list_meta_models(services: ServicesDep, after: After = None, limit: Limit = 20) -> MetaModelPage:
    """Meta-models, newest first."""
    return await services.meta_models.list(after=after, limit=limit)


@v1.get("/meta-models/{meta_model_id}", tags=["meta-models"], responses=problems(404))
async def retrieve_meta_model(meta_model_id: MetaModelId, services: ServicesDep) -> MetaModel:
    """A meta-model: where it comes from, what it cost, how good it is, and its files."""
    return await services.meta_models.get(meta_model_id)


@v1.get(
    "/meta-models/{meta_model_id}/files/{name}",
    tags=["meta-models"],
    response_class=Response,
    responses=_FILE | problems(404),
)
async def meta_model_file(
    meta_model_id: MetaModelId,
    name: Annotated[str, Path(description="One of the names in `files` of the meta-model.", max_length=200)],
    services: ServicesDep,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="`ETag` of what the caller has.", max_length=1000)
    ] = None,
) -> Response:
    """One file of a meta-model."""
    return await files.send_file(services, meta_model_id, name, if_none_match)


@v1.post("/meta-models/{meta_model_id}/predict", tags=["meta-models"], responses=problems(400, 404, 413, 415))
async def predict(meta_model_id: MetaModelId, request: PredictRequest, services: ServicesDep) -> PredictResponse:
    """Learn a new task from a few labelled images, and label others, in one call. Nothing of it is kept."""
    return await services.serving.predict(meta_model_id, request)


class Health(BaseModel):
    """Said by a service that can serve."""

    status: str = Field("ok", description="Always `ok`.")


@health.get("/live")
async def live() -> Health:
    """The process runs."""
    return Health()


@health.get("/ready", responses=problems(503))
async def ready(services: ServicesDep) -> Health:
    """Requests can be served: Redis answers."""
    with store_errors():
        await services.redis.ping()
    return Health()
