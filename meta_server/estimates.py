"""What a job would come to: its plan, its price, and the accuracy that our measurements of the same method suggest."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from contracts import money
from contracts.estimates import ApiEstimate, Estimate, ExpectedAccuracy
from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import plan

LARGEST_PLAN = 2_000_000  # queries
_PLACES = (
    Path(__file__).parent / "methods.json",  # in the wheel
    Path(__file__).parent.parent / "benchmarks" / "results" / "methods.json",
)


def estimate(request: JobRequest) -> Estimate:
    """The estimate, by the request alone. numpy only; a large plan takes a while."""
    queries = _queries(request)
    prices = [None if api.price_per_1k is None else money.micro(api.price_per_1k) for api in request.apis]
    costs = [None if price is None else math.ceil(n * price / 1000) for n, price in zip(queries, prices, strict=True)]
    per_api = {
        f"a{index}": ApiEstimate(url=api.url, queries=asked, cost=None if cost is None else money.told(cost))
        for index, (api, asked, cost) in enumerate(zip(request.apis, queries, costs, strict=True))
    }
    known = [cost for cost in costs if cost is not None]
    limit = None if request.budget.cost is None else money.micro(request.budget.cost)
    total = None if len(known) < len(costs) else sum(known) if limit is None else min(limit, sum(known))
    asked = min(sum(queries), request.budget.queries)
    return Estimate(
        queries=asked,
        cost=None if total is None else money.told(total),
        currency=request.budget.currency,
        per_api=per_api,
        accuracy=expected(request.method.name, asked),
        seconds_reason="APIs state their rates when they are asked: send probe",
    )


def _queries(request: JobRequest) -> list[int]:
    budget, apis = request.budget, len(request.apis)
    if request.takes_weights:
        return [0] * apis
    if not isinstance(request.method, ProceduralQueries):
        return [min(budget.queries // apis, budget.queries_per_api or budget.queries)] * apis
    if budget.queries > LARGEST_PLAN:  # told without drawing it
        most = request.method.images or budget.queries
        return [min(budget.queries // apis, budget.queries_per_api or budget.queries, most)] * apis
    planned = plan(
        request.method,
        queries=budget.queries,
        queries_per_api=budget.queries_per_api,
        apis=apis,
        seed=request.seed,
    )
    return [len(indices) for indices in planned.assigned]


def expected(method: str, queries: int) -> ExpectedAccuracy | None:
    """The band at so many queries: between measured budgets linear in their logarithm, as wide as interval and seeds' spread.

    None for a method that was not measured, and below half the smallest measured budget. Above the largest, the largest's.
    """
    measured = _measured()
    told = [row for row in measured["methods"].get(method, {}).values() if row != "not_run" and row["queries"]]
    rows = sorted(told, key=lambda row: row["queries"])
    if not rows or queries < rows[0]["queries"] / 2:
        return None
    at = min(max(queries, rows[0]["queries"]), rows[-1]["queries"])
    above = next(index for index, row in enumerate(rows) if row["queries"] >= at)
    low, high = rows[max(0, above - 1)], rows[above]
    span = math.log(high["queries"] / low["queries"])
    part = math.log(at / low["queries"]) / span if span else 0.0

    def band(shots: str, sign: int) -> float:
        edges = [row[shots] + sign * (row["interval"][shots] + (row["seed_std"][shots] or 0)) for row in (low, high)]
        return float(round(edges[0] + part * (edges[1] - edges[0]), 1))

    shots = [name for name in ("1shot", "5shot") if name in low]
    return ExpectedAccuracy(
        low={name.removesuffix("shot"): band(name, -1) for name in shots},
        high={name.removesuffix("shot"): band(name, 1) for name in shots},
        untrained={name.removesuffix("shot"): round(measured["random"][name], 1) for name in shots},
        measured_on=f"{measured['teachers']}, episodes of {measured['dataset']}, "
        f"{rows[0]['queries']:,} to {rows[-1]['queries']:,} queries",
    )


@cache
def _measured() -> dict[str, Any]:
    """What `scripts/bench methods` wrote; nothing where it is not installed."""
    for place in _PLACES:
        if place.exists():
            found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
            return found
    return {"methods": {}}
