"""Which API is asked about which image, within a budget of images. numpy only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries

Options = TypeVar("Options", bound=ProceduralQueries)
Part = TypeVar("Part")
FEW = 8
"""APIs that are asked at least, where there are so many."""
ENOUGH = 2048
"""Images that each of these is asked about before a further API is asked: measured around it, see pqd's page."""


class Limits(NamedTuple):
    """What a plan keeps to: images in all, the number of APIs, images of any one, and how many of them to ask at least."""

    queries: int
    apis: int
    queries_per_api: int | None = None
    least_apis: int | None = None

    @classmethod
    def of(cls, request: JobRequest) -> Self:
        """Those of a job."""
        return cls(request.budget.queries, len(request.apis), request.budget.queries_per_api, request.min_apis)


@dataclass(frozen=True)
class Plan:
    """`images`: size of the pool; `assigned[a]`: ascending int64 pool indices that API `a` is asked about."""

    images: int
    assigned: tuple[NDArray[np.int64], ...]

    @property
    def queries(self) -> int:
        """Images sent to APIs if the whole plan is carried out."""
        return sum(len(indices) for indices in self.assigned)


def plan(options: ProceduralQueries, limits: Limits, *, seed: int) -> Plan:
    """A plan that never asks more than `limits.queries` images in all, nor `limits.queries_per_api` of any one API.

    With few queries few APIs are asked, drawn at random, all of them about the same images: `FEW` at first, or `least_apis` if
    these are more, a further one once those before it have `options.images_per_api`. When all have, all get more. So a larger
    budget asks what a smaller one does, and more.

    `options.apis_per_image` asks all APIs alike instead: each image goes to so many, drawn at random, and every API gets the
    same number of images, give or take one. So does `options.images` alone. Both are obeyed as far as the budget allows.

    Raises ValueError where the budget does not give one image to each API.
    """
    queries, apis, queries_per_api, _ = limits
    if apis < 1 or queries < apis or (queries_per_api is not None and queries_per_api < 1):
        raise ValueError(f"{queries} images are less than one for each of {apis} APIs: raise the budget")
    if asks_in_turn(options):
        shares = in_turn(options, limits, seed=seed)
        return Plan(max(shares), tuple(np.arange(share) for share in shares))
    rng = np.random.RandomState(seed)
    most = queries if queries_per_api is None else queries_per_api
    queries = min(queries, most * apis)
    each = min(options.apis_per_image or max(1, queries // (options.images or queries)), apis, queries)
    images = min(queries // each, options.images or queries, most * apis // each)
    shown = _assign(images, each, apis, rng)
    return Plan(images, tuple(np.flatnonzero(shown[:, api]) for api in range(apis)))


def asks_in_turn(options: ProceduralQueries) -> bool:
    """Whether one API is asked after another, not all alike."""
    return options.apis_per_image is None and (options.images is None or options.images_per_api is not None)


def enough(options: ProceduralQueries, *, queries_per_api: int | None) -> int:
    """Images of an API before a further one is asked."""
    wanted = options.images_per_api or ENOUGH
    return min(wanted, options.images or wanted, queries_per_api or wanted)


def fitted(options: Options, images: int, *, queries_per_api: int | None) -> Options:
    """The options for a pool of no more than `images`: where the budget allows more, more APIs are asked about them."""
    most = min(images, options.images or images)
    if not asks_in_turn(options):
        return options.model_copy(update={"images": most})
    first = min(images, enough(options, queries_per_api=queries_per_api))
    return options.model_copy(update={"images": most, "images_per_api": first})


def in_turn(options: ProceduralQueries, limits: Limits, *, seed: int) -> list[int]:
    """Images of each API where one is asked after another: each is asked about the first so many of the pool."""
    queries, apis, queries_per_api, least_apis = limits
    few = min(max(FEW, least_apis or 0), apis)
    first = enough(options, queries_per_api=queries_per_api)
    counts = np.zeros(apis, np.int64)  # in the order in which they are asked
    if queries < few * first:
        counts[:few] = queries // few
    elif queries < apis * first:
        whole, left = divmod(queries, first)
        counts[:whole] = first
        counts[whole] = left
    else:
        counts[:] = min(limit for limit in (queries // apis, options.images, queries_per_api) if limit is not None)
    shares = np.zeros(apis, np.int64)
    shares[order(apis, seed=seed)] = counts
    return [int(share) for share in shares]


def order(apis: int, *, seed: int) -> list[int]:
    """In which APIs are asked where one is asked after another."""
    return [int(api) for api in np.random.RandomState(seed).permutation(apis)]


def handed_on(parts: Sequence[Part], stand_ins: Mapping[int, int]) -> list[Part]:
    """The part of each API, when each API of `stand_ins` has that of the one it stands in for, which has its part in turn.

    An API that stands in may be replaced as well, but none stands in twice, and none for an API that it replaced.
    """
    planned, replaced_by = list(parts), {gone: api for api, gone in stand_ins.items()}
    for first in set(replaced_by) - set(stand_ins):
        gone = first
        while (api := replaced_by.get(gone)) is not None:
            planned[gone], planned[api] = planned[api], planned[gone]
            gone = api
    return planned


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
