"""Which API is asked about which image, within a budget of images. numpy only."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.methods import ProceduralQueries

TIGHT = 256
"""Fewer images an API than this is a tight budget."""
APIS_UNDER_A_TIGHT_BUDGET = 8


@dataclass(frozen=True)
class Plan:
    """`images`: size of the pool; `assigned[a]`: ascending int64 pool indices that API `a` is asked about."""

    images: int
    assigned: tuple[NDArray[np.int64], ...]

    @property
    def queries(self) -> int:
        """Images sent to APIs if the whole plan is carried out."""
        return sum(len(indices) for indices in self.assigned)


def plan(options: ProceduralQueries, *, queries: int, queries_per_api: int | None, apis: int, seed: int) -> Plan:
    """A plan that never asks more than `queries` images in all, nor `queries_per_api` of any one API.

    Every image goes to the same number of APIs, drawn at random; every API gets the same number of images, give or take
    one. `options.images` and `options.apis_per_image` are obeyed as far as the budget allows.

    Raises ValueError where the budget does not give one image to each API.
    """
    if apis < 1 or queries < apis or (queries_per_api is not None and queries_per_api < 1):
        raise ValueError(f"{queries} images are less than one for each of {apis} APIs: raise the budget")
    if queries_per_api is not None:
        queries = min(queries, queries_per_api * apis)
    each = _apis_per_image(options, queries, apis)
    images = queries // each
    if options.images is not None:
        images = min(images, options.images)
    if queries_per_api is not None:
        images = min(images, queries_per_api * apis // each)
    asked = _assign(images, each, apis, np.random.RandomState(seed))
    return Plan(images, tuple(np.flatnonzero(asked[:, api]) for api in range(apis)))


def _apis_per_image(options: ProceduralQueries, queries: int, apis: int) -> int:
    if options.apis_per_image is not None:
        wanted = options.apis_per_image
    elif options.images is not None:
        wanted = max(1, queries // options.images)
    else:
        few = APIS_UNDER_A_TIGHT_BUDGET
        reaches_all = queries // few * few >= apis
        wanted = few if queries < TIGHT * apis and reaches_all else apis
    return min(wanted, apis, queries)


def _assign(images: int, each: int, apis: int, rng: np.random.RandomState) -> NDArray[np.bool_]:
    """(images, apis) with `each` True a row, columns balanced: windows that run round a permutation, redrawn each cycle."""
    asked = np.zeros((images, apis), np.bool_)
    cycle = apis // math.gcd(apis, each)  # images after which every API was drawn equally often
    window = (np.arange(cycle)[:, None] * each + np.arange(each)) % apis
    for start in range(0, images, cycle):
        rows = np.arange(start, min(start + cycle, images))
        asked[rows[:, None], rng.permutation(apis)[window[: len(rows)]]] = True
    return asked


def rounds_within(
    budget: int | None, *, wanted: int, round_cost: int, api_cost: int, before: int, apis: int, per_api: int | None
) -> int:
    """Rounds of a method that asks as it goes, `wanted` at most, such that neither limit can be exceeded. In images.

    round_cost: the most that a round costs in all; api_cost: the most that it costs any one API, were it asked in every round;
    before: what each of the `apis` costs before the first round. budget None: no limit.
    Raises ValueError where not one round fits.
    """
    limits = [wanted]
    if budget is not None and round_cost:
        limits.append((budget - before * apis) // round_cost)
    if per_api is not None and api_cost:
        limits.append((per_api - before) // api_cost)
    if min(limits) < 1:
        raise ValueError(
            f"a round costs up to {round_cost} queries, {api_cost} of one API, after {before} of each API: raise the budget, "
            "or ask for fewer images a class, steps or directions"
        )
    return min(limits)
