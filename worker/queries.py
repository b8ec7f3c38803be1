"""Which images a job asks about, and which API is asked about which: the same each time, from the request alone."""

import numpy as np

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import Plan, plan
from dfml.procedural import QuerySet, query_set


def plan_of(request: JobRequest) -> Plan:
    """Which API is asked about which images of the pool, within the budget.

    Of no image, where the method asks as it goes: then the learner asks, see `worker.adaptive`.
    """
    budget = request.budget
    if not isinstance(request.method, ProceduralQueries):
        return Plan(0, tuple(np.empty(0, np.int64) for _ in request.apis))
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
    method = request.method if isinstance(request.method, ProceduralQueries) else ProceduralQueries()
    return query_set(method.mixture, seed=request.seed, size=(height, width))
