"""Jobs in Redis: their records, budgets, and the roles that work on them. What they tell is in `events`."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.jobs import (
    ENDED,
    MOVES,
    ApiProgress,
    Job,
    JobChange,
    JobError,
    JobPage,
    JobRequest,
    JobStatus,
)
from contracts.problems import ProblemError
from meta_server.store import events, ids, keys
from meta_server.store.index import matching, newest_first
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import StoredJob, stored_job, text, told_job
from meta_server.store.stored_request import (
    canonical,
    found_by,
    ledger_fields,
    mark_name,
    refuse_lower,
    webhook_secret,
)
from meta_server.store.work import Work
from metering.leases import Lease, Leases
from metering.ledger import Ledger, budget_state
from metering.records import IdempotencyMark, KeyReused, MoveRefused, RecordKeys, Records, StillAtWork, TooManyOpen
from metering.scripts import Scripts, store_errors

IDEMPOTENCY_SECONDS = 24 * 3600.0

WEBHOOK = "webhook"  # under which its secret is sealed, beside the APIs' keys
UNLIMITED = 2**53  # attempts: a service may restart as often as it likes


class JobStore:
    """Every read and write of jobs. `secrets` encrypts the API keys; `scripts` replaces the ones over `redis` (tests)."""

    def __init__(self, redis: Redis, *, secrets: Secrets, scripts: Scripts | None = None) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._secrets = secrets
        self._scripts = scripts or Scripts(redis)
        self.events = events.Events(redis, self._scripts, self.status)
        self._records = Records(self._scripts, MOVES, ends=ENDED)
        self.work = Work(self._records)
        self.leases = Leases(self._scripts)
        self.service_leases = Leases(self._scripts, attempts=UNLIMITED)

    def ledger(self, job_id: str) -> Ledger:
        """The job's budget."""
        return Ledger(self._redis, self._scripts, keys.ledger(job_id))

    # What the server's routes call.

    async def create(
        self,
        request: JobRequest,
        *,
        tenant: str = DEFAULT_TENANT,
        idempotency_key: str | None = None,
        now: datetime | None = None,
    ) -> tuple[Job, bool]:
        """Store a queued job, or find the one made by the same key and body; whether it is new.

        Raises `ProblemError` (`key-reused`; `conflict` when the tenant has as many open jobs as it may), `StoreUnavailable`.
        """
        job_id = ids.new("job", now)
        api_ids = [f"a{index}" for index in range(len(request.apis))]
        with_key = [(api_id, api.api_key) for api_id, api in zip(api_ids, request.apis, strict=True)]
        api_keys = {api_id: key.get_secret_value() for api_id, key in with_key if key is not None}
        if request.webhook is not None:
            api_keys[WEBHOOK] = webhook_secret(request.webhook)
            with store_errors():
                await self._redis.sadd(keys.WEBHOOKS, job_id)  # first: a job that is listed and not made is struck off
        budget = ledger_fields(request)
        record = {**found_by(request), "tenant": tenant, "sealed": self._secrets.seal(api_keys)}
        apis = {
            api_id: ApiProgress(url=api.url).model_dump_json(exclude={"answered"})
            for api_id, api in zip(api_ids, request.apis, strict=True)
        }
        mark = None
        if idempotency_key is not None:
            mark = IdempotencyMark(
                key=keys.idempotency(self._secrets.digest(mark_name(tenant, idempotency_key))),
                digest=self._secrets.digest(canonical(request)),
                seconds=IDEMPOTENCY_SECONDS,
            )
        try:
            stored, created = await self._records.create(
                keys.records(job_id, tenant),
                job_id,
                record=record,
                budget=budget,
                apis=apis,
                mark=mark,
                quota=keys.tenant(tenant),
            )
        except TooManyOpen as full:
            raise _full(tenant, full) from None
        except KeyReused:
            raise ProblemError("key-reused", "send the same body again, or use another Idempotency-Key") from None
        if created is None:
            return await self.get(stored), False
        record |= {"status": JobStatus.QUEUED, "created": created}
        spent = budget_state({field.encode(): value.encode() for field, value in budget.items()})
        return told_job(job_id, record, spent, apis, {}), True  # as it would be read, without asking Redis again

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

    async def change(self, job_id: str, change: JobChange, *, pinned: Callable[[JobRequest], JobRequest]) -> Job:
        """Change what `change` holds. `pinned` fixes how the budget so far was planned, before it is raised.

        Raised while nobody asks (paused, failed, not yet trained), the budget also reopens APIs that had answered their part.
        Raises `ProblemError` (`not-found`; `invalid-request` for a limit below the one there; `conflict` for the budget of a
        job that is cancelled or succeeded), `StoreUnavailable`.
        """
        while True:
            with store_errors():
                read = await self._redis.hget(keys.job(job_id, "record"), "request") or b""
            stored = await self.load(job_id)  # later than `read`: what changes in between is found out below
            raised = dict(change.budget) if change.budget else {}
            raised = {limit: value for limit, value in raised.items() if value is not None}
            refuse_lower(stored.request, raised)
            told = {field: getattr(change, field) for field in change.model_fields_set - {"budget"}}
            told = {field: value for field, value in told.items() if value is not None or field == "name"}
            request = pinned(stored.request) if raised else stored.request
            request = request.model_copy(update={**told, "budget": request.budget.model_copy(update=raised)})
            reopened = {}
            if (
                raised
                and "backbone" not in stored.checkpoints
                and stored.status in (JobStatus.PAUSED, JobStatus.FAILED)
            ):
                reopened = {api: stored.apis[api].url for api in stored.finished("done")}
            try:
                if await self._records.change(
                    keys.records(job_id),
                    read=("request", read.decode()),
                    fields=found_by(request),
                    budget=ledger_fields(request) if raised else {},
                    apis={
                        api: ApiProgress(url=url).model_dump_json(exclude={"answered"}) for api, url in reopened.items()
                    },
                    event=change.model_dump(mode="json", exclude_unset=True),
                    never_in=ENDED - {JobStatus.FAILED} if raised else (),
                ):
                    return await self.get(job_id)
            except MoveRefused as refused:
                raise ProblemError("conflict", f"the job is {refused.status}: it spends nothing any more") from None

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended: record, budget, events, metrics. Its meta-model stays.

        Raises `ProblemError` (`not-found`; `conflict` while it has not ended), `StoreUnavailable`.
        """
        others = [keys.job(job_id, part) for part in ("holds", "settled", "metrics", "sent", "webhook")]
        places = keys.records(job_id, await self._tenant(job_id))
        try:
            await self._records.delete(places, others)
        except MoveRefused as refused:
            if not refused.status:
                raise _not_found(job_id) from None
            raise ProblemError("conflict", f"the job is {refused.status}: cancel it first") from None
        except StillAtWork:
            raise ProblemError("conflict", "its workers are still stopping: try again in a minute") from None

    async def cancel(self, job_id: str) -> Job:
        """A job that nobody works on is cancelled at once, another when its workers have stopped.

        Raises `ProblemError` (`not-found`; `conflict` when it has ended), `StoreUnavailable`.
        """
        places = keys.records(job_id)
        try:
            await self._either(places, JobStatus.CANCELLED, JobStatus.QUEUED, JobStatus.CANCELLING)
        except MoveRefused as refused:
            if refused.status and refused.status != JobStatus.CANCELLING:
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to cancel") from None
        await self.close(job_id)
        return await self.get(job_id)

    async def pause(self, job_id: str, *, reason: str | None = None, lease: Lease | None = None) -> Job:
        """Let the job rest until it is resumed: a queued one at once, a running one when its workers have stopped.

        `reason` is shown to people. A worker passes its `lease`; it is then told to stop as all others are. A job that rests
        or is about to stays as it is. Raises `ProblemError` (`not-found`; `conflict` when it is ending or has ended),
        `LeaseLost`, `StoreUnavailable`.
        """
        places = keys.records(job_id)
        try:
            await self._either(
                places, JobStatus.PAUSED, JobStatus.QUEUED, JobStatus.PAUSING, reason=reason, lease=lease
            )
        except MoveRefused as refused:
            if refused.status and refused.status not in (JobStatus.PAUSING, JobStatus.PAUSED):
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to pause") from None
        await self.close(job_id)
        return await self.get(job_id)

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again; one that is queued or runs stays as it is.

        Raises `ProblemError` (`not-found`; `conflict` when it is still pausing, is ending or has ended), `StoreUnavailable`.
        """
        try:
            await self._records.move(keys.records(job_id), JobStatus.QUEUED, only_from=[JobStatus.PAUSED])
        except MoveRefused as refused:
            if refused.status == JobStatus.PAUSING:
                raise ProblemError("conflict", "the job is still pausing: resume it once it is paused") from None
            if refused.status and refused.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
                raise ProblemError("conflict", f"the job is {refused.status}: only a paused job resumes") from None
        else:
            await self._forget_sent(job_id)
        return await self.get(job_id)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed job again, with all it paid for and its checkpoints; APIs that were dropped are asked again.

        Raises `ProblemError` (`not-found`; `conflict` when it has not failed, its workers are still stopping, or its tenant
        has as many open jobs as it may), `StoreUnavailable`.
        """
        stored = await self.load(job_id)
        tenant = await self._tenant(job_id)
        dropped = {
            api: ApiProgress(url=stored.apis[api].url, planned=stored.apis[api].planned)
            for api in stored.finished("dropped")
        }
        try:
            await self._records.retry(
                keys.records(job_id),
                set_back={api: progress.model_dump_json(exclude={"answered"}) for api, progress in dropped.items()},
                quota=keys.tenant(tenant),
            )
        except TooManyOpen as full:
            raise _full(tenant, full) from None
        except MoveRefused as refused:
            raise ProblemError("conflict", f"the job is {refused.status}: only a failed job is retried") from None
        except StillAtWork:
            raise ProblemError("conflict", "its workers are still stopping: try again in a minute") from None
        await self._forget_sent(job_id)
        return await self.get(job_id)

    async def _tenant(self, job_id: str) -> str:
        with store_errors():
            tenant = await self._redis.hget(keys.job(job_id, "record"), "tenant")
        return DEFAULT_TENANT if tenant is None else str(tenant.decode())

    async def _either(
        self, places: RecordKeys, at_once: JobStatus, resting: JobStatus, otherwise: JobStatus, **how: Any
    ) -> None:
        """Move from `resting` to `at_once`, or else to `otherwise`. Raises `MoveRefused`, and what moves raise."""
        try:
            await self._records.move(places, at_once, only_from=[resting], **how)
        except MoveRefused:
            await self._records.move(places, otherwise, **how)

    async def _forget_sent(self, job_id: str) -> None:
        """What the reaper noted of messages sent: they belong to the time before the job was queued again."""
        with store_errors():
            await self._redis.delete(keys.job(job_id, "sent"))
            if (await self.load(job_id)).request.webhook is not None:
                await self._redis.sadd(keys.WEBHOOKS, job_id)  # it has news again

    # What the workers and the reaper call.

    async def status(self, job_id: str) -> JobStatus:
        """The job's status alone. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        with store_errors():
            status = await self._redis.hget(keys.job(job_id, "record"), "status")
        if status is None:
            raise _not_found(job_id)
        return JobStatus(status.decode())

    async def load(self, job_id: str) -> StoredJob:
        """What a worker needs. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        record, apis, budget = map(text, await self._hashes([job_id], ("record", "apis", "budget")))
        if not record:
            raise _not_found(job_id)
        return stored_job(job_id, record, apis, budget)

    async def first_sent(self, job_id: str, role: str) -> bool:
        """Note that a role's message is about to be sent; False when one was before. Raises `StoreUnavailable`."""
        with store_errors():
            return bool(await self._redis.hsetnx(keys.job(job_id, "sent"), role, json.dumps([0, time.time()])))

    async def api_key(self, job_id: str, api_id: str) -> SecretStr | None:
        """The key to send to an API. Raises `BadSecretKey`, `StoreUnavailable`."""
        with store_errors():
            sealed = await self._redis.hget(keys.job(job_id, "record"), "sealed")
        key = self._secrets.open(sealed.decode()).get(api_id)
        return None if key is None else SecretStr(key)

    async def take(self, job_id: str, role: str, holder: str) -> Lease | None:
        """The lease of a role, or None while someone holds it. Raises `AttemptsExhausted`, `StoreUnavailable`."""
        return await self.leases.take(keys.job(job_id, "leases"), role, holder)

    async def fail(self, job_id: str, error: JobError, *, lease: Lease | None = None) -> None:
        """End the job with `error`; one that has ended stays as it is. Raises `LeaseLost`, `StoreUnavailable`."""
        with suppress(MoveRefused):
            await self._records.move(
                keys.records(job_id),
                JobStatus.FAILED,
                lease=lease,
                fields={"error": error.model_dump_json()},
                reason=error.code,
            )

    async def close(self, job_id: str) -> bool:
        """Once nobody works on a job: pause it if it was pausing; if it is ending or has ended, settle its open holds, and end
        it if it was cancelling. Whether there is nothing more to do for it. Raises `StoreUnavailable`.
        """
        with store_errors():
            reason = await self._redis.hget(keys.job(job_id, "record"), "reason")
        with suppress(MoveRefused, StillAtWork):  # it is not pausing, or somebody still works on it
            await self._records.move(
                keys.records(job_id),
                JobStatus.PAUSED,
                only_from=[JobStatus.PAUSING],
                reason=reason.decode() or None if reason else None,
                idle=True,
            )
        if await self.ledger(job_id).abandon() is None:
            return False
        with suppress(MoveRefused):  # it had ended before
            await self._records.move(keys.records(job_id), JobStatus.CANCELLED, only_from=[JobStatus.CANCELLING])
        return True

    async def _read(self, job_ids: Sequence[str]) -> Sequence[Job]:
        if not job_ids:
            return []
        answers = await self._hashes(job_ids, ("record", "budget", "apis", "leases"))
        found = [answers[4 * at : 4 * at + 4] for at in range(len(job_ids))]
        missing = [job_id for job_id, (record, *_) in zip(job_ids, found, strict=True) if not record]
        if missing:
            raise _not_found(missing[0])
        return [
            told_job(job_id, text(record), budget_state(budget), text(apis), text(leases))
            for job_id, (record, budget, apis, leases) in zip(job_ids, found, strict=True)
        ]

    async def _hashes(self, job_ids: Sequence[str], parts: Sequence[str]) -> Sequence[dict[bytes, bytes]]:
        """Each of these parts of each job, at one instant: one command, since a client's commands cost more than Redis's."""
        names = [keys.job(job_id, part) for job_id in job_ids for part in parts]
        answers = await self._scripts.run("hashes_read", keys=names, args=[])
        return [dict(zip(pairs[::2], pairs[1::2], strict=True)) for pairs in answers]


def _full(tenant: str, full: TooManyOpen) -> ProblemError:
    detail = f"{full.open} jobs of the tenant {tenant} have not ended, and it may have no more: end one first"
    return ProblemError("conflict", detail)


def _not_found(job_id: str) -> ProblemError:
    return ProblemError("not-found", f"there is no job {job_id}")
