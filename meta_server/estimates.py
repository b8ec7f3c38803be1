"""What a job would come to: its plan, its price, and the accuracy that our measurements of the same method suggest."""

import math

from contracts import money
from contracts.estimates import ApiEstimate, Estimate, EstimateRequest
from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import Limits, plan
from meta_server.measured import expected, needed
from meta_server.planning import shares

LARGEST_PLAN = 2_000_000  # queries


def estimate(request: JobRequest) -> Estimate:
    """The estimate, by the request alone. numpy only; a large plan takes a while."""
    queries = _queries(request)
    prices = [None if api.price_per_1k is None else money.micro(api.price_per_1k) for api in request.apis]
    costs = [None if price is None else math.ceil(n * price / 1000) for n, price in zip(queries, prices, strict=True)]
    per_api = {
        api_id: ApiEstimate(url=api.url, queries=asked, cost=None if cost is None else money.told(cost))
        for api_id, api, asked, cost in zip(request.api_ids, request.apis, queries, costs, strict=True)
    }
    known = [cost for cost in costs if cost is not None]
    limit = None if request.budget.cost is None else money.micro(request.budget.cost)
    total = None if len(known) < len(costs) else sum(known) if limit is None else min(limit, sum(known))
    asked = min(sum(queries), request.budget.queries)
    aim = request.aim if isinstance(request, EstimateRequest) else None
    return Estimate(
        queries=asked,
        cost=None if total is None else money.told(total),
        currency=request.budget.currency,
        per_api=per_api,
        accuracy=expected(request.method.name, asked),
        needed=None if aim is None else needed(request.method.name, aim),
        seconds_reason="APIs state their rates when they are asked: send probe",
    )


def _queries(request: JobRequest) -> list[int]:
    budget, apis = request.budget, len(request.apis)
    if request.takes_weights:
        return [0] * apis
    if not isinstance(request.method, ProceduralQueries):
        return [min(budget.queries // apis, budget.queries_per_api or budget.queries)] * apis
    if (of_few := shares(request)) is not None:
        return of_few
    if budget.queries > LARGEST_PLAN:  # told without drawing it
        most = request.method.images or budget.queries
        return [min(budget.queries // apis, budget.queries_per_api or budget.queries, most)] * apis
    return [len(indices) for indices in plan(request.method, Limits.of(request), seed=request.seed).assigned]
