"""What the server knows of plans: how a raised budget goes on where the smaller one stood. numpy only."""

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import plan


def pinned(request: JobRequest) -> JobRequest:
    """The request, with the number of APIs an image set to what its budget planned.

    A larger budget then asks each API about the same images first, in the same order: places in the query sets stay valid.
    """
    if not isinstance(request.method, ProceduralQueries):  # it plans from the budget itself
        return request
    budget = request.budget
    planned = plan(
        request.method,
        queries=budget.queries,
        queries_per_api=budget.queries_per_api,
        apis=len(request.apis),
        seed=request.seed,
    )
    each = planned.queries // planned.images
    return request.model_copy(update={"method": request.method.model_copy(update={"apis_per_image": each})})
