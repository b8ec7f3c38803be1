"""Which images a job asks about, and which API is asked about which: the same each time, from the request alone."""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts.jobs import JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import Plan, plan
from dfml.procedural import QuerySet, query_set

KEPT = 64 * 2**20  # bytes of one pool's images
JOBS = 4


def plan_of(request: JobRequest) -> Plan:
    """Which API is asked about which images of the pool, within the budget.

    Of no image, where the method asks as it goes: then the learner asks, see `worker.adaptive`.
    """
    method, budget, apis = request.method, request.budget, len(request.apis)
    if not isinstance(method, ProceduralQueries):
        return Plan(0, tuple(np.empty(0, np.int64) for _ in request.apis))
    return _plan(method.images, method.apis_per_image, budget.queries, budget.queries_per_api, apis, request.seed)


@lru_cache(JOBS)
def _plan(
    images: int | None, apis_per_image: int | None, queries: int, queries_per_api: int | None, apis: int, seed: int
) -> Plan:
    options = ProceduralQueries(images=images, apis_per_image=apis_per_image)
    return plan(options, queries=queries, queries_per_api=queries_per_api, apis=apis, seed=seed)


def queries_of(request: JobRequest, input_shape: tuple[int, int, int]) -> QuerySet:
    """The pool of images that the plan's indices mean, of the job's input shape."""
    _, height, width = input_shape
    method = request.method if isinstance(request.method, ProceduralQueries) else ProceduralQueries()
    return query_set(method.mixture, seed=request.seed, size=(height, width))


class SharedImages:
    """A pool whose images are made once for all APIs that a process asks; the newest are kept, up to `KEPT` bytes."""

    def __init__(self, queries: QuerySet) -> None:
        self._queries = queries
        self._made: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pool indices -> uint8 (n, 3, height, width). May be called in any thread."""
        with self._lock:
            missing = [index for index in indices.tolist() if index not in self._made]
            if missing:
                made = self._queries.images(np.array(missing, np.int64))
                self._made.update(zip(missing, made, strict=True))
            chosen = np.stack([self._made[index] for index in indices.tolist()])
            for index in list(self._made)[: max(0, len(self._made) - KEPT // chosen[0].nbytes)]:
                del self._made[index]
            return chosen


_shared: dict[tuple[Any, ...], SharedImages] = {}
_sharing = threading.Lock()


def shared_images(request: JobRequest, input_shape: tuple[int, int, int]) -> SharedImages:
    """The images of `queries_of`, shared by all tasks of this process; those of the few jobs asked for last."""
    key = (request.method.model_dump_json(include={"mixture"}), request.seed, *input_shape)
    with _sharing:
        found = _shared.pop(key, None) or SharedImages(queries_of(request, input_shape))
        _shared[key] = found
        for old in list(_shared)[:-JOBS]:
            del _shared[old]
        return found


Images = Callable[[NDArray[np.int64]], NDArray[np.uint8] | NDArray[np.float32]]
"""Pool indices -> uint8, or float32 in [0, 1], (n, 3, height, width)."""


def resized(
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]], shape: tuple[int, int, int]
) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    """The same images as an API sees them that takes another shape: bilinear, to the bit the same on every machine."""
    _, height, width = shape

    def fitted(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        own = images(indices).transpose(0, 2, 3, 1)
        made = [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)) for image in own]
        return np.ascontiguousarray(np.stack(made).transpose(0, 3, 1, 2))

    return fitted
