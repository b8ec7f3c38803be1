import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.methods import PqdOptions
from dfml.plans import APIS_UNDER_A_TIGHT_BUDGET, TIGHT, plan

whole = st.integers


@given(
    queries=whole(1, 3000),
    queries_per_api=st.none() | whole(1, 300),
    apis=whole(1, 60),
    images=st.none() | whole(16, 400),
    apis_per_image=st.none() | whole(1, 80),
    seed=whole(0, 2**31 - 1),
)
def test_never_above_the_budget_and_balanced(
    queries: int,
    queries_per_api: int | None,
    apis: int,
    images: int | None,
    apis_per_image: int | None,
    seed: int,
) -> None:
    options = PqdOptions(images=images, apis_per_image=apis_per_image)
    if queries < apis:
        with pytest.raises(ValueError, match="raise the budget"):
            plan(options, queries=queries, queries_per_api=queries_per_api, apis=apis, seed=seed)
        return
    made = plan(options, queries=queries, queries_per_api=queries_per_api, apis=apis, seed=seed)
    sizes = [len(indices) for indices in made.assigned]
    assert made.queries == sum(sizes) <= queries
    assert max(sizes) <= (queries_per_api or queries)
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= made.images <= (images or queries)
    for indices in made.assigned:
        assert np.array_equal(indices, np.unique(indices))  # ascending, none twice
        assert not len(indices) or (indices[0] >= 0 and indices[-1] < made.images)
    asked = np.zeros(made.images, np.int64)
    for indices in made.assigned:
        asked[indices] += 1
    assert asked.min() == asked.max() >= 1  # every image is asked about, equally often


def test_a_generous_budget_asks_every_api_about_every_image() -> None:
    made = plan(PqdOptions(), queries=TIGHT * 40, queries_per_api=None, apis=40, seed=0)
    assert made.images == TIGHT
    assert all(len(indices) == TIGHT for indices in made.assigned)


def test_a_tight_budget_shows_more_images_to_fewer_apis() -> None:
    queries = TIGHT * 40 - 40
    made = plan(PqdOptions(), queries=queries, queries_per_api=None, apis=40, seed=0)
    assert made.images == queries // APIS_UNDER_A_TIGHT_BUDGET


def test_the_same_seed_gives_the_same_plan() -> None:
    def assigned(seed: int) -> list[list[int]]:
        made = plan(PqdOptions(apis_per_image=2), queries=60, queries_per_api=None, apis=5, seed=seed)
        return [indices.tolist() for indices in made.assigned]

    assert assigned(1) == assigned(1) != assigned(2)


def test_pairs_of_apis_share_images() -> None:
    made = plan(PqdOptions(apis_per_image=4), queries=4000, queries_per_api=None, apis=10, seed=0)
    asked = np.zeros((made.images, 10))
    for api, indices in enumerate(made.assigned):
        asked[indices, api] = 1
    together = asked.T @ asked
    assert together.min() > 0.7 * 1000 * (4 * 3) / (10 * 9)
