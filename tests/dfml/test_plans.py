import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from contracts.methods import PqdOptions
from dfml.plans import ENOUGH, FEW, Limits, Plan, fitted, handed_on, order, plan

whole = st.integers


LIMITS = {
    "queries": whole(1, 3000),
    "queries_per_api": st.none() | whole(1, 300),
    "apis": whole(1, 60),
    "images": st.none() | whole(16, 400),
    "seed": whole(0, 2**31 - 1),
}


def check(made: Plan, *, queries: int, queries_per_api: int | None, images: int | None) -> list[int]:
    """Within every limit, no image twice of an API; the number of images of each."""
    sizes = [len(indices) for indices in made.assigned]
    assert made.queries == sum(sizes) <= queries
    assert max(sizes) <= (queries_per_api or queries)
    assert 1 <= made.images <= (images or queries)
    for indices in made.assigned:
        assert np.array_equal(indices, np.unique(indices))  # ascending
        assert not len(indices) or (indices[0] >= 0 and indices[-1] < made.images)
    return sizes


@given(**LIMITS, apis_per_image=st.none() | whole(1, 80))
def test_all_alike(
    queries: int,
    queries_per_api: int | None,
    apis: int,
    images: int | None,
    apis_per_image: int | None,
    seed: int,
) -> None:
    """Never above the budget, and balanced over APIs and images."""
    assume(apis_per_image or images)
    options = PqdOptions(images=images, apis_per_image=apis_per_image)
    if queries < apis:
        with pytest.raises(ValueError, match="raise the budget"):
            plan(options, Limits(queries, apis, queries_per_api), seed=seed)
        return
    made = plan(options, Limits(queries, apis, queries_per_api), seed=seed)
    sizes = check(made, queries=queries, queries_per_api=queries_per_api, images=images)
    assert max(sizes) - min(sizes) <= 1
    asked = np.zeros(made.images, np.int64)
    for indices in made.assigned:
        asked[indices] += 1
    assert asked.min() == asked.max() >= 1  # every image is asked about, equally often


@given(**LIMITS, first=whole(1, 400), least=st.none() | whole(1, 60))
def test_one_api_after_another(
    queries: int,
    queries_per_api: int | None,
    apis: int,
    images: int | None,
    first: int,
    least: int | None,
    seed: int,
) -> None:
    """Never above the budget; all APIs but the last one asked see the same images, and little is left of the budget."""
    assume(queries >= apis)
    options = PqdOptions(images=images, images_per_api=first)
    made = plan(options, Limits(queries, apis, queries_per_api, least), seed=seed)
    sizes = sorted(check(made, queries=queries, queries_per_api=queries_per_api, images=images), reverse=True)
    asked = [size for size in sizes if size]
    assert len(asked) >= min(max(FEW, least or 0), apis)
    assert len(set(asked[:-1])) <= 1
    most = min(images or queries, queries_per_api or queries)
    assert queries - made.queries < apis or made.queries == apis * most


@pytest.mark.parametrize(
    ("queries", "asked"),
    [
        (80, [80 // FEW] * FEW),
        (FEW * ENOUGH, [ENOUGH] * FEW),
        (FEW * ENOUGH + 100, [ENOUGH] * FEW + [100]),
        (40 * ENOUGH, [ENOUGH] * 40),
        (40 * ENOUGH + 80, [ENOUGH + 2] * 40),
    ],
)
def test_few_apis_are_asked_with_few_queries(queries: int, asked: list[int]) -> None:
    made = plan(PqdOptions(), Limits(queries, 40), seed=0)
    sizes = sorted((len(indices) for indices in made.assigned), reverse=True)
    assert sizes == asked + [0] * (40 - len(asked))


def test_another_seed_asks_other_apis() -> None:
    def asked(seed: int) -> set[int]:
        made = plan(PqdOptions(), Limits(100, 40), seed=seed)
        return {api for api, indices in enumerate(made.assigned) if len(indices)}

    assert len({frozenset(asked(seed)) for seed in range(5)}) == 5


@given(apis=whole(2, 30), asked=whole(1, 29), dropped=st.lists(whole(0, 10**6), max_size=30), seed=whole(0, 2**31 - 1))
def test_whoever_stands_in_has_the_part_of_whom_it_replaced(
    apis: int, asked: int, dropped: list[int], seed: int
) -> None:
    """Against dropping one after another: parts go on to whoever comes from the end of the order, and none is lost."""
    queue = order(apis, seed=seed)
    parts = {api: place if place < asked else None for place, api in enumerate(queue)}
    at_first = [parts[api] for api in range(apis)]
    stand_ins: dict[int, int] = {}
    spares = queue[asked:]
    for pick in dropped:
        holders = [api for api, part in parts.items() if part is not None]
        gone = holders[pick % len(holders)]
        if not spares:
            break
        stand_ins[spares[-1]] = gone
        parts[gone], parts[spares.pop()] = None, parts[gone]
    assert handed_on(at_first, stand_ins) == [parts[api] for api in range(apis)]


def test_where_there_are_few_images_more_apis_are_asked_about_them() -> None:
    options = fitted(PqdOptions(), 50, queries_per_api=None)
    made = plan(options, Limits(500, 40), seed=0)
    assert sorted(len(indices) for indices in made.assigned)[-10:] == [50] * 10
    alike = fitted(PqdOptions(apis_per_image=2), 50, queries_per_api=None)
    assert plan(alike, Limits(500, 40), seed=0).images == 50


def test_the_same_seed_gives_the_same_plan() -> None:
    def assigned(seed: int) -> list[list[int]]:
        made = plan(PqdOptions(apis_per_image=2), Limits(60, 5), seed=seed)
        return [indices.tolist() for indices in made.assigned]

    assert assigned(1) == assigned(1) != assigned(2)


def test_pairs_of_apis_share_images() -> None:
    made = plan(PqdOptions(apis_per_image=4), Limits(4000, 10), seed=0)
    asked = np.zeros((made.images, 10))
    for api, indices in enumerate(made.assigned):
        asked[indices, api] = 1
    together = asked.T @ asked
    assert together.min() > 0.7 * 1000 * (4 * 3) / (10 * 9)
