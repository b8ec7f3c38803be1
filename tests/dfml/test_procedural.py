import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dfml import procedural
from dfml.procedural import BLOCK, SOURCES, QuerySet, query_set


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedural, "_BLOCKS", procedural._BlockCache(2**22))


def test_version_1_makes_these_images_for_ever() -> None:
    made = QuerySet(7, (16, 16)).images(range(BLOCK))
    digest = hashlib.sha256(made.tobytes()).hexdigest()
    assert procedural.VERSION == 1
    assert digest == "ae16baa66983fb4d2c3d510ff08652ade59888ee1d298d5ad019307b8af1bfbd", (
        "pixels changed: raise VERSION, and this digest with it"
    )


def test_an_image_is_the_same_in_any_batch_and_order() -> None:
    queries = QuerySet(1, (16, 16))
    all_of_them = queries.images(range(2 * BLOCK + 5))
    some = [130, 3, 64, 3, 0]
    procedural._BLOCKS = procedural._BlockCache(2**22)
    assert np.array_equal(queries.images(some), all_of_them[some])


def test_threads_that_want_the_same_block_have_it_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = procedural._make_block, list[int]()
    together = threading.Barrier(8)

    def counted(queries: QuerySet, block: int) -> object:
        made.append(block)
        if len(made) == 1:
            raise MemoryError
        return make(queries, block)

    def ask(_: int) -> object:
        together.wait(10)
        try:
            return QuerySet(1, (16, 16)).images([5])
        except MemoryError as error:
            return error

    monkeypatch.setattr(procedural, "_make_block", counted)
    with ThreadPoolExecutor(8) as pool:
        first, then = list(pool.map(ask, range(8))), list(pool.map(ask, range(8)))
    assert any(isinstance(one, MemoryError) for one in first)  # who waited for that one is told as well
    assert len({np.asarray(one).tobytes() for one in then}) == 1
    assert len(made) == 2


@pytest.mark.parametrize("other", [QuerySet(2, (16, 16)), QuerySet(1, (16, 16), (("spectra", 1.0),))])
def test_seed_and_mixture_change_the_images(other: QuerySet) -> None:
    assert not np.array_equal(QuerySet(1, (16, 16)).images([0]), other.images([0]))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [(16, 16), (20, 33)])
def test_every_source_makes_varied_images_of_any_size(source: str, size: tuple[int, int]) -> None:
    made = query_set({source: 1.0}, seed=0, size=size).images(range(32))  # type: ignore[dict-item]
    assert made.shape == (32, 3, *size)
    assert made.dtype == np.uint8
    assert len(np.unique(made.reshape(32, -1), axis=0)) == 32
    assert 90 < made.mean() < 165
    assert 30 < made.std() < 100


def test_every_block_holds_each_source_in_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def marked(level: int) -> procedural.Callable[..., procedural.Array]:
        return lambda rng, n, size: np.full((n, 3, *size), level / 255)

    monkeypatch.setattr(procedural, "_MAKERS", {source: marked(k) for k, source in enumerate(SOURCES)})
    queries = query_set({"leaves": 2.0, "spectra": 1.0, "mixes": 1.0}, seed=3, size=(8, 8))
    levels = queries.images(range(BLOCK))[:, 0, 0, 0]
    assert np.bincount(levels, minlength=4).tolist() == [32, 0, 16, 16]


def test_the_order_of_a_mixture_does_not_matter() -> None:
    one = query_set({"leaves": 1.0, "spectra": 2.0}, seed=0, size=(8, 8))
    assert one == query_set({"spectra": 2.0, "leaves": 1.0, "mixes": 0.0}, seed=0, size=(8, 8))


def test_the_cache_forgets_what_was_used_least_recently() -> None:
    cache = procedural._BlockCache(limit=2 * BLOCK * 3 * 8 * 8)
    queries = QuerySet(0, (8, 8), (("spectra", 1.0),))
    first = cache.get(queries, 0)
    for block in (1, 0, 2):
        cache.get(queries, block)
    assert cache.get(queries, 0) is first
    assert list(cache._blocks) == [(queries, 2), (queries, 0)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1, "size": (16, 16)}, "seed -1"),
        ({"seed": 0, "size": (4, 16)}, "at least 8 pixels"),
        ({"seed": 0, "size": (16, 16), "mixture": (("clouds", 1.0),)}, "unknown source clouds"),
        ({"seed": 0, "size": (16, 16), "mixture": (("leaves", 0.0),)}, "above zero"),
    ],
)
def test_faults_say_what_to_give(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuerySet(**fields)  # type: ignore[arg-type]


def test_negative_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        QuerySet(0, (8, 8)).images([-1])
