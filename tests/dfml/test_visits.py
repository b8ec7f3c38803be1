"""Plans of visits: no budget is exceeded, and what is asked is what was planned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.methods import BidfMkdOptions
from dfml.access import PROBE
from dfml.visits import plan, visit_cost, visit_deadlines

ANY_OPTIONS = st.builds(
    BidfMkdOptions,
    images_per_class=st.none() | st.integers(1, 40),
    iterations=st.none() | st.integers(1, 300),
    directions=st.integers(1, 120),
    antithetic=st.booleans(),
    updates=st.integers(1, 300),
)


@settings(max_examples=40, deadline=None)
@given(
    options=ANY_OPTIONS,
    queries=st.integers(1, 3_000_000),
    per_api=st.none() | st.integers(1, 300_000),
    ways=st.lists(st.integers(2, 12), min_size=1, max_size=12),
    seed=st.integers(0, 5),
)
def test_no_budget_is_exceeded_by_one_image(
    options: BidfMkdOptions, queries: int, per_api: int | None, ways: list[int], seed: int
) -> None:
    try:
        made = plan(options, queries=queries, queries_per_api=per_api, ways=ways, seed=seed)
    except ValueError as error:
        assert "raise it" in str(error)  # noqa: PT017
        return
    costs = [visit_cost(options, ways=way, images=made.images, iterations=made.iterations) for way in ways]
    spent = [costs[api] * made.visits.count(api) + (PROBE if api in made.visits else 0) for api in range(len(ways))]
    assert sum(spent) == made.queries <= queries
    assert per_api is None or max(spent) <= per_api
    assert 1 <= len(made.visits) <= options.updates
    assert options.images_per_class in (None, made.images)
    assert options.iterations in (None, made.iterations)
    deadlines = visit_deadlines(len(made.visits), options.updates)
    assert deadlines == sorted(set(deadlines))
    assert deadlines[0] == 0
    assert deadlines[-1] < options.updates


def test_plans_by_hand() -> None:
    ample = plan(BidfMkdOptions(), queries=10**7, queries_per_api=None, ways=[5] * 4, seed=0)
    assert (ample.images, ample.iterations) == (30, 200)
    assert [ample.visits.count(api) for api in range(4)] == [4] * 4  # 2 * 5 * 30 * 2001 a visit
    tight = plan(BidfMkdOptions(), queries=40_000, queries_per_api=None, ways=[5] * 4, seed=0)
    assert sorted(set(tight.visits)) == [0, 1, 2, 3]
    assert 1 < tight.images < 30
    assert tight.iterations / 200 == pytest.approx(tight.images / 30, rel=0.2)
    assert tight.queries > 30_000
    poor = plan(BidfMkdOptions(), queries=300, queries_per_api=None, ways=[5] * 40, seed=0)
    assert (poor.images, poor.iterations, len(poor.visits)) == (1, 1, 2)
    with pytest.raises(ValueError, match="smallest visit of an API costs 118 queries"):
        plan(BidfMkdOptions(), queries=117, queries_per_api=None, ways=[5] * 40, seed=0)
