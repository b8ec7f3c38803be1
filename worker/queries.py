"""Which images a job asks about, and which API is asked about which: the same each time, from the request alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts.jobs import JobError, JobRequest
from contracts.methods import ProceduralQueries
from dfml.plans import Limits, Plan, handed_on, plan
from dfml.procedural import QuerySet, query_set
from dfml.unlabelled import ImageArchive, OwnImages
from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts
from meta_server.store.image_sets import archive_of
from meta_server.store.stored_job import StoredJob
from worker.failures import JobFault

JOBS = 4


def plan_of(job: StoredJob) -> Plan:
    """Which API is asked about which images of the pool, within the budget; one that stands in for another, about the other's.

    Of no image, where the method asks as it goes: then the learner asks, see `worker.adaptive`.
    """
    request = job.request
    method = request.method
    if not isinstance(method, ProceduralQueries):
        return Plan(0, tuple(np.empty(0, np.int64) for _ in request.apis))
    first = _plan(method.images, method.apis_per_image, method.images_per_api, Limits.of(request), request.seed)
    return replace(first, assigned=tuple(handed_on(first.assigned, job.stand_ins())))


@lru_cache(JOBS)
def _plan(
    images: int | None, apis_per_image: int | None, images_per_api: int | None, limits: Limits, seed: int
) -> Plan:
    options = ProceduralQueries(images=images, apis_per_image=apis_per_image, images_per_api=images_per_api)
    return plan(options, limits, seed=seed)


def own_pool(request: JobRequest, input_shape: tuple[int, int, int], artifacts: Artifacts) -> QuerySet | OwnImages:
    """The images that the plan's indices mean: made from the seed, or those that the job names. May read a file.

    Raises `JobFault` where those that it names are gone or not what was uploaded.
    """
    if request.unlabeled is None:
        return queries_of(request, input_shape)
    try:
        archive = ImageArchive(archive_of(artifacts, request.unlabeled))
    except (ArtifactMissing, ArtifactDamaged) as error:
        raise JobFault(JobError(code="images_gone", message=str(error), param="unlabeled")) from None
    return OwnImages(archive, seed=request.seed, size=input_shape[1:])


def queries_of(request: JobRequest, input_shape: tuple[int, int, int]) -> QuerySet:
    """The pool of images that the plan's indices mean, of the job's input shape. Made once for all APIs that a process asks."""
    _, height, width = input_shape
    method = request.method if isinstance(request.method, ProceduralQueries) else ProceduralQueries()
    return query_set(method.mixture, seed=request.seed, size=(height, width))


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
