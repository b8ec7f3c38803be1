"""The pages. Each reads what it shows from the store; what changes something is done by the page's script over REST."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from contracts.estimates import EstimateRequest
from contracts.jobs import JobStatus
from contracts.problems import ProblemError
from meta_server.dashboard import zoo_pages
from meta_server.dashboard.forms import ADAPTERS, EXAMPLES, JOB
from meta_server.dashboard.look import page
from meta_server.routes.access import CallerDep, ServicesDep, authorised, caller_of, owned, sessions
from meta_server.routes.description import After
from meta_server.session import forged

PAGE = 25  # rows
_RUNNING = ("seed", "reuse", "min_apis", "acquire_deadline", "image_size", "device")  # what few set

router = APIRouter(include_in_schema=False)
own = APIRouter(dependencies=[Depends(authorised), Depends(owned)])


@router.get("/docs")
async def reference(request: Request) -> Response:
    """The REST interface, for whoever wants to try it: it asks for a key itself."""
    return page(request, "reference.html")


@router.get("/sign-in")
async def sign_in(request: Request, to: str = "/") -> Response:
    """Asks for the key."""
    return page(request, "sign_in.html", to=_own_path(to), fault=None)


@router.post("/sign-in")
async def begin_session(
    request: Request, key: Annotated[str, Form()] = "", to: Annotated[str, Form()] = "/"
) -> Response:
    """Takes the key once; from here on the browser sends it sealed."""
    if forged(request):
        raise ProblemError("forbidden", "sign in on this server's own page")
    try:
        await caller_of(request, key.strip() or None)
    except ProblemError as error:
        if error.problem.status != 401:
            raise
        fault = "This is not a key of this server." if key.strip() else "Enter the server's key."
        return page(request, "sign_in.html", status=401, to=_own_path(to), fault=fault)
    response = RedirectResponse(_own_path(to), 303)
    sessions(request).start(request, response, key.strip())
    return response


@router.post("/sign-out")
async def end_session(request: Request) -> Response:
    """Forgets the key."""
    if forged(request):
        raise ProblemError("forbidden", "sign out on this server's own page")
    response = RedirectResponse(request.url_for("sign_in"), 303)
    sessions(request).end(response)
    return response


@own.get("/")
async def jobs(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    after: After = None,
    status: Annotated[JobStatus | None, Query()] = None,
    tag: Annotated[str | None, Query(max_length=63)] = None,
    name: Annotated[str | None, Query(max_length=120)] = None,
) -> Response:
    """Every job, newest first."""
    listed = await services.jobs.list(tenant=caller.tenant, after=after, limit=PAGE, status=status, tag=tag, name=name)
    shown = {"status": status, "tag": tag, "name": name}
    return page(request, "jobs.html", jobs=listed.items, following=listed.next, first=after is None, shown=shown)


@own.get("/jobs")
async def no_jobs(request: Request) -> Response:
    """Where a person may look for them."""
    return RedirectResponse(request.url_for("jobs"), 308)


@own.get("/jobs/new")
async def new_job(request: Request) -> Response:
    """The form that builds a job."""
    return page(
        request,
        "new_job.html",
        budget=JOB.fields("budget"),
        methods={name: JOB.fields("method", name) for name in JOB.variants("method")},
        network=JOB.fields("meta_model"),
        evaluation=JOB.fields("evaluation"),
        running=JOB.fields(only=_RUNNING),
        webhook=JOB.fields("webhook"),
        adapters=ADAPTERS,
        examples=EXAMPLES,
        probe_images=EstimateRequest.model_fields["probe_images"].default,
    )


@own.get("/jobs/{job_id}")
async def job(request: Request, job_id: str, services: ServicesDep) -> Response:
    """One job: what it does now, what it spent, what came of it."""
    return page(request, "job.html", job=await services.jobs.get(job_id))


@own.get("/meta-models")
async def meta_models(request: Request, services: ServicesDep, caller: CallerDep, after: After = None) -> Response:
    """Every meta-model, newest first."""
    listed = await services.meta_models.list(tenant=caller.tenant, after=after, limit=PAGE)
    return page(request, "meta_models.html", models=listed.items, following=listed.next, first=after is None)


@own.get("/meta-models/{meta_model_id}")
async def meta_model(request: Request, meta_model_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """One meta-model: its card, its files, and a place to try it."""
    model = await services.meta_models.get(meta_model_id)
    served = await services.adapted_models.list(tenant=caller.tenant, limit=100)
    adapted = [each for each in served.items if each.meta_model == model.id]
    known = (await services.meta_models.list(tenant=caller.tenant, limit=100)).items
    others = [other for other in known if other.id != model.id and other.input_shape == model.input_shape]
    return page(request, "meta_model.html", model=model, adapted=adapted, others=others)


own.include_router(zoo_pages.router)
router.include_router(own)


def _own_path(to: str) -> str:
    """`to` if it is a path of this server, else the first page: nobody is led away by a link to sign in."""
    return to if to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable() else "/"
