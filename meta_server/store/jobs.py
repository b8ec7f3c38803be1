"""Jobs in Redis: their records, budgets, and the roles that work on them."""

import json
import time
from collections.abc import Callable
from datetime import datetime

from pydantic import SecretStr
from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.jobs import (
    ENDED,
    MOVES,
    Job,
    JobChange,
    JobRequest,
    JobStatus,
    place_of,
)
from contracts.problems import ProblemError
from meta_server.planning import started
from meta_server.store import events, ids, keys
from meta_server.store.job_reader import JobReader, not_found
from meta_server.store.moves import Moves, too_many
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import kept, told_job
from meta_server.store.stored_request import (
    canonical,
    found_by,
    ledger_fields,
    mark_name,
    refuse_lower,
    webhook_secret,
)
from meta_server.store.work import Work
from metering.leases import UNLIMITED, Lease, Leases
from metering.ledger import budget_state
from metering.records import IdempotencyMark, KeyReused, MoveRefused, Records, StillAtWork, TooManyOpen
from metering.scripts import Scripts, store_errors

IDEMPOTENCY_SECONDS = 24 * 3600.0
NOBODY_ASKS = (JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.FAILED)

WEBHOOK = "webhook"  # under which its secret is sealed, beside the APIs' keys


class JobStore(JobReader):
    """Jobs: made, changed and deleted here; read as `JobReader` says; `moves` between states; `work` under a lease; `events`.

    `secrets` encrypts the API keys; `scripts` replaces the ones over `redis` (tests).
    """

    def __init__(self, redis: Redis, *, secrets: Secrets, scripts: Scripts | None = None) -> None:
        super().__init__(redis, scripts or Scripts(redis))
        self._secrets = secrets
        self.events = events.Events(redis, self._scripts, self.status)
        self._records = Records(self._scripts, MOVES, ends=ENDED)
        self.work = Work(self._records)
        self.moves = Moves(redis, self._records, self)
        self.leases = Leases(self._scripts)
        self.service_leases = Leases(self._scripts, attempts=UNLIMITED)

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
        api_ids = request.api_ids
        with_key = [(api_id, api.api_key) for api_id, api in zip(api_ids, request.apis, strict=True)]
        api_keys = {api_id: key.get_secret_value() for api_id, key in with_key if key is not None}
        if request.webhook is not None:
            api_keys[WEBHOOK] = webhook_secret(request.webhook)
            with store_errors():
                await self._redis.sadd(keys.WEBHOOKS, job_id)  # first: a job that is listed and not made is struck off
        budget = ledger_fields(request)
        record = {**found_by(request), "tenant": tenant, "sealed": self._secrets.seal(api_keys)}
        apis = {api_id: kept(progress) for api_id, progress in zip(api_ids, started(request, {}), strict=True)}
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
        except TooManyOpen as error:
            raise too_many(tenant, error) from None
        except KeyReused:
            raise ProblemError("key-reused", "send the same body again, or use another Idempotency-Key") from None
        if created is None:
            return await self.get(stored), False
        record |= {"status": JobStatus.QUEUED, "created": created}
        spent = budget_state({field.encode(): value.encode() for field, value in budget.items()})
        return told_job(job_id, record, spent, apis, {}), True  # as it would be read, without asking Redis again

    async def change(self, job_id: str, change: JobChange, *, pinned: Callable[[JobRequest], JobRequest]) -> Job:
        """Change what `change` holds. `pinned` fixes how the budget so far was planned, before it is raised.

        Raised while nobody asks (queued, paused, failed, not yet trained), the budget also reopens APIs that had answered their
        part, or had none.
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
            if raised and "backbone" not in stored.checkpoints and stored.status in NOBODY_ASKS:
                anew = started(request, stored.stand_ins())
                reopened = {api: kept(anew[place_of(api)]) for api in stored.finished("done")}
            try:
                if await self._records.change(
                    keys.records(job_id),
                    read=("request", read.decode()),
                    fields=found_by(request),
                    budget=ledger_fields(request) if raised else {},
                    apis=reopened,
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
        places = keys.records(job_id, await self.tenant(job_id))
        try:
            await self._records.delete(places, others)
        except MoveRefused as refused:
            if not refused.status:
                raise not_found(job_id) from None
            raise ProblemError("conflict", f"the job is {refused.status}: cancel it first") from None
        except StillAtWork:
            raise ProblemError("conflict", "its workers are still stopping: try again in a minute") from None

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
