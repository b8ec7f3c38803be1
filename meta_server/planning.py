"""What the server knows of plans: whom a job asks at first, who stands in for an API that is dropped, how a raised budget goes
on where the smaller one stood, and how few images suffice for it.

numpy only.
"""

from collections.abc import Mapping

from contracts.jobs import ApiProgress, JobRequest
from contracts.methods import ProceduralQueries
from dfml import plans
from dfml.plans import Limits, Plan, asks_in_turn, enough, handed_on, in_turn, order, plan


def shares(request: JobRequest) -> list[int] | None:
    """Images of each API where few queries go to few; None where all are asked alike."""
    if not isinstance(request.method, ProceduralQueries) or not asks_in_turn(request.method):
        return None
    return in_turn(request.method, Limits.of(request), seed=request.seed)


def started(request: JobRequest, stand_ins: Mapping[int, int]) -> list[ApiProgress]:
    """Where each API stands before anything is asked: those that nothing is planned for are done."""
    planned = shares(request)
    if planned is None:
        return [ApiProgress(url=api.url) for api in request.apis]
    ids = request.api_ids
    return [
        ApiProgress(
            url=api.url,
            planned=share,
            state="waiting" if share else "done",
            stands_in_for=ids[stand_ins[place]] if place in stand_ins else None,
        )
        for place, (api, share) in enumerate(zip(request.apis, handed_on(planned, stand_ins), strict=True))
    ]


def spares(request: JobRequest, apis: Mapping[str, ApiProgress]) -> list[str]:
    """Those that may stand in for an API that is dropped: not asked so far, the last that a larger budget would ask first."""
    if shares(request) is None:
        return []
    ids = request.api_ids
    last_first = [ids[place] for place in reversed(order(len(ids), seed=request.seed))]
    return [api for api in last_first if apis[api].state == "done" and not request.asks(apis[api])]


def pinned(request: JobRequest) -> JobRequest:
    """The request, with that said of its plan which would follow from its budget otherwise.

    A larger budget then asks each API about the same images first, in the same order: places in the query sets stay valid.
    """
    method = request.method
    if not isinstance(method, ProceduralQueries):  # it plans from the budget itself
        return request
    if asks_in_turn(method):
        return _with(request, images_per_api=enough(method, queries_per_api=request.budget.queries_per_api))
    planned = _plan(request, method)
    return _with(request, apis_per_image=planned.queries // planned.images)


def fitted(request: JobRequest, images: int) -> JobRequest:
    """The request, its pool no larger than the `images` of one's own that it asks about.

    Where they are fewer than the budget allows, more APIs see each. So it stays when the budget is raised.
    """
    method = request.method
    assert isinstance(method, ProceduralQueries)  # noqa: S101 - others take no images
    fits = plans.fitted(method, images, queries_per_api=request.budget.queries_per_api)
    planned = _plan(request, method)
    if not asks_in_turn(method) and planned.images <= images:
        fits = fits.model_copy(update={"apis_per_image": planned.queries // planned.images})
    return request.model_copy(update={"method": fits})


def _with(request: JobRequest, **options: int) -> JobRequest:
    return request.model_copy(update={"method": request.method.model_copy(update=options)})


def _plan(request: JobRequest, method: ProceduralQueries) -> Plan:
    return plan(method, Limits.of(request), seed=request.seed)
