"""What the server knows of plans: how a raised budget goes on where the smaller one stood, and how few images suffice for it.

numpy only.
"""

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml import plans
from dfml.plans import Limits, Plan, asks_in_turn, enough, plan


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
    return plan(method, **Limits.of(request)._asdict(), seed=request.seed)
