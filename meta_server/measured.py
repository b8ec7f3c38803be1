"""What our own measurements say of a method: the accuracy that a budget buys, and the budget that an accuracy needs."""

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from contracts.estimates import Aim, ExpectedAccuracy, NeededQueries

_PLACES = (
    Path(__file__).parent / "methods.json",  # in the wheel
    Path(__file__).parent.parent / "benchmarks" / "results" / "methods.json",
)


def expected(method: str, queries: int) -> ExpectedAccuracy | None:
    """The band at so many queries: between measured budgets linear in their logarithm, as wide as interval and seeds' spread.

    None for a method that was not measured, and below half the smallest measured budget. Above the largest, the largest's.
    """
    measured, rows = _measured(), _rows(method)
    if not rows or queries < rows[0]["queries"] / 2:
        return None
    at = min(max(queries, rows[0]["queries"]), rows[-1]["queries"])
    above = next(index for index, row in enumerate(rows) if row["queries"] >= at)
    low, high = rows[max(0, above - 1)], rows[above]
    span = math.log(high["queries"] / low["queries"])
    part = math.log(at / low["queries"]) / span if span else 0.0

    def band(shots: str, sign: int) -> float:
        edges = [row[shots] + sign * _half(row, shots) for row in (low, high)]
        return float(round(edges[0] + part * (edges[1] - edges[0]), 1))

    shots = [name for name in ("1shot", "5shot") if name in low]
    return ExpectedAccuracy(
        low={name.removesuffix("shot"): band(name, -1) for name in shots},
        high={name.removesuffix("shot"): band(name, 1) for name in shots},
        untrained={name.removesuffix("shot"): round(measured["random"][name], 1) for name in shots},
        measured_on=f"{measured['teachers']}, episodes of {measured['dataset']}, "
        f"{rows[0]['queries']:,} to {rows[-1]['queries']:,} queries",
    )


def needed(method: str, aim: Aim) -> NeededQueries:
    """The fewest queries at which the method was, or between two measured budgets would be, as good as the aim."""
    rows, shots = _rows(method), f"{aim.shots}shot"
    if not rows or shots not in rows[0]:
        return NeededQueries(likely=None, safe=None, reason=f"{method} was not measured at {aim.shots} shots")
    untrained = _measured()["random"][shots]

    def gains(width: float) -> list[tuple[int, float]]:
        return [(row["queries"], row[shots] - untrained - width * _half(row, shots)) for row in rows]

    likely, safe = (_first(gains(width), aim.gain) for width in (0, 1))
    most, best = max(gains(0), key=lambda point: point[1])
    reason = None if safe is not None else f"the most that was measured is {best:.1f} points, at {most:,} queries"
    return NeededQueries(likely=likely, safe=safe, reason=reason)


def _first(points: list[tuple[int, float]], wanted: float) -> int | None:
    """Where a curve of (queries, gain) first reaches `wanted`, rounded up; the first point's queries where that does."""
    if points[0][1] >= wanted:
        return points[0][0]
    for (few, low), (many, high) in pairwise(points):
        if low < wanted <= high:
            return min(many, math.ceil(few * (many / few) ** ((wanted - low) / (high - low))))
    return None


def _rows(method: str) -> list[dict[str, Any]]:
    """What was measured of a method that asks, by queries."""
    told = [row for row in _measured()["methods"].get(method, {}).values() if row != "not_run" and row["queries"]]
    return sorted(told, key=lambda row: row["queries"])


def _half(row: dict[str, Any], shots: str) -> float:
    return float(row["interval"][shots] + (row["seed_std"][shots] or 0))


@cache
def _measured() -> dict[str, Any]:
    """What `scripts/bench methods` wrote; nothing where it is not installed."""
    for place in _PLACES:
        if place.exists():
            found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
            return found
    return {"methods": {}}
