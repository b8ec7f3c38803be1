"""Which images a job asks about, and which API is asked about which: the same each time, from the request alone."""

from contracts.jobs import JobRequest
from dfml.plans import Plan, plan
from dfml.procedural import QuerySet, query_set


def plan_of(request: JobRequest) -> Plan:
    """Which API is asked about which images of the pool, within the budget."""
    budget = request.budget
    return plan(
        request.method,
        queries=budget.queries,
        queries_per_api=budget.queries_per_api,
        apis=len(request.apis),
        seed=request.seed,
    )


def queries_of(request: JobRequest, input_shape: tuple[int, int, int]) -> QuerySet:
    """The pool of images that the plan's indices mean, of the job's input shape."""
    _, height, width = input_shape
    return query_set(request.method.mixture, seed=request.seed, size=(height, width))
