"""Which API BiDf-MKD visits when, and how much it recovers there, such that a budget is spent and never exceeded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contracts.methods import BidfMkdOptions
from dfml.access import PROBE
from dfml.numerics.zeroth_order import Estimator

IMAGES, ITERATIONS = 30, 200
"""The paper's images a class and iterations a set: what is planned where the budget allows it."""
SPEND_BY = 0.5
"""Part of the updates by which the last API has been visited, so that its task is learned too."""


@dataclass(frozen=True)
class Plan:
    """`visits`: which API is visited, in order. `images`: of a class, in each of a visit's two sets. `queries`: all it costs.

    A visit to an API of `ways` classes costs `2 ways images (iterations c + 1)`, c being `step_cost`; the first one to an
    API `PROBE` more.
    """

    visits: tuple[int, ...]
    images: int
    iterations: int
    queries: int


def estimator_of(options: BidfMkdOptions) -> Estimator:
    """The estimator that the options ask for."""
    return Estimator(
        options.directions,
        antithetic=options.antithetic,
        orthogonal=options.orthogonal,
        frequencies=options.frequencies,
    )


def step_cost(options: BidfMkdOptions) -> int:
    """Queries of an image in one iteration: its loss and the gradient of it."""
    if options.source == "surrogate":
        return 1
    return options.directions + 2 if options.source == "guided" else estimator_of(options).cost


def visit_cost(options: BidfMkdOptions, *, ways: int, images: int, iterations: int) -> int:
    """Queries of a visit, without the probe: support and query set, `ways images (iterations c + 1)` each."""
    return 2 * ways * images * (iterations * step_cost(options) + 1)


def plan(options: BidfMkdOptions, *, queries: int, queries_per_api: int | None, ways: Sequence[int], seed: int) -> Plan:
    """As many visits as the budget allows, to every API before to any again, never more than `options.updates`.

    Images and iterations that the options leave open are 30 and 200, or, where the budget does not allow a visit to every API
    with so many, the same part of both; not every API is visited where not even one image and one iteration are left.
    `ways`: classes of each API. Raises ValueError where no API can be visited.
    """
    each = queries // len(ways)
    each = each if queries_per_api is None else min(each, queries_per_api)
    images, iterations = _sizes(options, each - PROBE, max(ways))
    costs = [visit_cost(options, ways=way, images=images, iterations=iterations) for way in ways]
    rng, visits, spent = np.random.RandomState(seed), list[int](), Counter[int]()
    while len(visits) < options.updates:
        before = len(visits)
        for api in rng.permutation(len(ways)).tolist():
            cost = costs[api] + (0 if api in spent else PROBE)
            fits = queries_per_api is None or spent[api] + cost <= queries_per_api
            if fits and spent.total() + cost <= queries and len(visits) < options.updates:
                visits.append(api)
                spent[api] += cost
        if len(visits) == before:
            break
    if not visits:
        raise ValueError(
            f"the smallest visit of an API costs {min(costs) + PROBE} queries, more than the budget: raise it, or ask for "
            "fewer directions, images_per_class or iterations"
        )
    return Plan(tuple(visits), images, iterations, spent.total())


def visit_deadlines(visits: int, updates: int) -> list[int]:
    """The update at which each visit is made at the latest: the first at once, then evenly over the first half, one each."""
    return [max(k, int(k * updates * SPEND_BY / visits)) for k in range(visits)]


def _sizes(options: BidfMkdOptions, budget: int, ways: int) -> tuple[int, int]:
    """Images a class and iterations of a visit that costs `budget` at most, where the options leave it open."""
    part = 1.0
    fixed = options.images_per_class is not None and options.iterations is not None
    while True:
        images = options.images_per_class or max(1, round(IMAGES * part))
        iterations = options.iterations or max(1, round(ITERATIONS * part))
        smallest = part * ITERATIONS < 1
        if fixed or smallest or visit_cost(options, ways=ways, images=images, iterations=iterations) <= budget:
            return images, iterations
        part *= 0.98
