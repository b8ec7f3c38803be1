"""What the server knows of plans: how a raised budget goes on where the smaller one stood, and how few images suffice for it.

numpy only.
"""

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import Plan, plan


def pinned(request: JobRequest) -> JobRequest:
    """The request, with the number of APIs an image set to what its budget planned.

    A larger budget then asks each API about the same images first, in the same order: places in the query sets stay valid.
    """
    if not isinstance(request.method, ProceduralQueries):  # it plans from the budget itself
        return request
    planned = _plan(request, request.method)
    each = planned.queries // planned.images
    return request.model_copy(update={"method": request.method.model_copy(update={"apis_per_image": each})})


def fitted(request: JobRequest, images: int) -> JobRequest:
    """The request, its pool no larger than the `images` of one's own that it asks about.

    Where they are fewer than the budget allows, more APIs see each. So it stays when the budget is raised.
    """
    assert isinstance(request.method, ProceduralQueries)  # noqa: S101 - others take no images
    planned, most = _plan(request, request.method), {"images": images}
    if planned.images <= images:
        most["apis_per_image"] = planned.queries // planned.images
    return request.model_copy(update={"method": request.method.model_copy(update=most)})


def _plan(request: JobRequest, method: ProceduralQueries) -> Plan:
    budget = request.budget
    return plan(
        method,
        queries=budget.queries,
        queries_per_api=budget.queries_per_api,
        apis=len(request.apis),
        seed=request.seed,
    )
