"""Answers that earlier jobs paid for, for a job that names them: learned from too, and not asked for again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as from_safetensors

from contracts.jobs import ApiSpec
from contracts.methods import ProceduralQueries
from contracts.problems import ProblemError
from meta_server.store.artifacts import Artifacts
from meta_server.store.stored_job import StoredJob
from metering.ledger import Outcome
from worker.context import Context

Api = tuple[str, str]
"""Adapter and URL: what makes an API of two jobs the same."""
Pool = tuple[object, ...]
"""What makes an index mean the same image in two jobs."""


@dataclass(frozen=True)
class Earlier:
    """A job whose answers are used. `paths` are those of its stored answers, by API."""

    job: StoredJob
    shape: tuple[int, int, int]
    paths: dict[Api, list[str]]

    @property
    def pool(self) -> Pool:
        """Of its images."""
        return pool_of(self.job, self.shape)


def api_of(spec: ApiSpec) -> Api:
    """The API that a job asks by this."""
    return spec.adapter, spec.url


def pool_of(job: StoredJob, shape: tuple[int, int, int]) -> Pool:
    """Of the images of `shape` that the job's indices mean."""
    method = job.request.method
    mixture = sorted(method.mixture.items()) if isinstance(method, ProceduralQueries) else []
    return job.request.unlabeled, job.request.seed, tuple(mixture), shape


async def earlier_jobs(context: Context, job: StoredJob) -> list[Earlier]:
    """Those that the job names, have not been deleted, and hold any answers."""
    found = []
    for name in job.request.reuse:
        try:
            one = await context.store.load(name)
        except ProblemError:
            continue
        paths: dict[Api, list[str]] = {}
        for settled in await context.store.ledger(name).settled():
            if settled.outcome is Outcome.CONFIRMED and settled.path is not None:
                paths.setdefault(api_of(one.spec(settled.chunk.api)), []).append(settled.path)
        if one.input_shape is not None and paths:
            found.append(Earlier(one, one.input_shape, paths))
    return found


def known(earlier: Sequence[Earlier], api: Api, pool: Pool, classes: int, artifacts: Artifacts) -> NDArray[np.int64]:
    """Indices into the pool about which the API, of so many classes, was asked before. Reads files."""
    found = [np.empty(0, np.int64)]
    for one in earlier:
        if one.pool == pool:
            rows = (from_safetensors(artifacts.recall(path)) for path in one.paths.get(api, []))
            found += [row["indices"] for row in rows if row["probabilities"].shape[1] == classes]
    return np.unique(np.concatenate(found))
