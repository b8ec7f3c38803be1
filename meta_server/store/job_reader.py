"""What is known of a job: as its people read it, and as whoever works on it does."""

import json
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.jobs import Job, JobPage, JobStatus
from contracts.problems import ProblemError
from meta_server.store import keys
from meta_server.store.index import matching, newest_first
from meta_server.store.stored_job import StoredJob, stored_job, text, told_job
from metering.ledger import Ledger, budget_state
from metering.scripts import Scripts, store_errors


class JobReader:
    """Every read of jobs. `scripts` replaces the ones over `redis` (tests)."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._scripts = scripts

    async def get(self, job_id: str) -> Job:
        """The job. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        return (await self._read([job_id]))[0]

    async def list(
        self,
        *,
        tenant: str = DEFAULT_TENANT,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | None = None,
        tag: str | None = None,
        name: str | None = None,
    ) -> JobPage:
        """A tenant's jobs, newest first, from the one after `after`: in this state, with this tag, with `name` in their name.

        Raises `StoreUnavailable`.
        """

        def wanted(owner: bytes | None, told_name: bytes | None, told_tags: bytes | None) -> bool:
            if (owner or DEFAULT_TENANT.encode()).decode() != tenant:
                return False
            named = name is None or name.casefold() in (told_name or b"").decode().casefold()
            return named and (tag is None or tag in json.loads(told_tags or "[]"))

        if status is None and tag is None and name is None:
            page, following = await newest_first(self._redis, keys.jobs(tenant), after, limit)
            return JobPage(items=await self._read(page), next=following)
        page, following = await matching(
            self._redis,
            keys.jobs(tenant) if status is None else keys.JOBS_BY_STATUS + status,
            after,
            limit,
            record=lambda job_id: keys.job(job_id, "record"),
            fields=("tenant", "name", "tags"),
            keep=wanted,
        )
        return JobPage(items=await self._read(page), next=following)

    async def status(self, job_id: str) -> JobStatus:
        """The job's status alone. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        with store_errors():
            status = await self._redis.hget(keys.job(job_id, "record"), "status")
        if status is None:
            raise not_found(job_id)
        return JobStatus(status.decode())

    async def load(self, job_id: str) -> StoredJob:
        """What a worker needs. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        record, apis, budget = map(text, await self._hashes([job_id], ("record", "apis", "budget")))
        if not record:
            raise not_found(job_id)
        return stored_job(job_id, record, apis, budget)

    async def tenant(self, job_id: str) -> str:
        """Whose it is; the first tenant's where nothing is known. Raises `StoreUnavailable`."""
        with store_errors():
            tenant = await self._redis.hget(keys.job(job_id, "record"), "tenant")
        return DEFAULT_TENANT if tenant is None else str(tenant.decode())

    def ledger(self, job_id: str) -> Ledger:
        """The job's budget."""
        return Ledger(self._redis, self._scripts, keys.ledger(job_id))

    async def _read(self, job_ids: Sequence[str]) -> Sequence[Job]:
        if not job_ids:
            return []
        answers = await self._hashes(job_ids, ("record", "budget", "apis", "leases"))
        found = [answers[4 * at : 4 * at + 4] for at in range(len(job_ids))]
        missing = [job_id for job_id, (record, *_) in zip(job_ids, found, strict=True) if not record]
        if missing:
            raise not_found(missing[0])
        return [
            told_job(job_id, text(record), budget_state(budget), text(apis), text(leases))
            for job_id, (record, budget, apis, leases) in zip(job_ids, found, strict=True)
        ]

    async def _hashes(self, job_ids: Sequence[str], parts: Sequence[str]) -> Sequence[dict[bytes, bytes]]:
        """Each of these parts of each job, at one instant: one command, since a client's commands cost more than Redis's."""
        names = [keys.job(job_id, part) for job_id in job_ids for part in parts]
        answers = await self._scripts.run("hashes_read", keys=names, args=[])
        return [dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in answers]


def not_found(job_id: str) -> ProblemError:
    """What is answered about a job that is not there."""
    return ProblemError("not-found", f"there is no job {job_id}")
