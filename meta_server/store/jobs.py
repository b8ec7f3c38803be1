"""Jobs in Redis: their records, budgets, events, and the roles that work on them.

Events, by type, and what their data holds:

- `status`: `status`, `reason`
- `phase`: `phase`, which has started
- `api`: `api` (its id), `state`, `planned`, `reason`
- `budget`: `api`, `chunk`, `outcome` (confirmed, released, unconfirmed), `images`
- `progress`: `phase`, `fraction` in [0, 1]
- `metrics`: `step`, `steps` and the newest value of each training metric
- `warning`: `message`, and `api` where it is about one
- `published`: `meta_model`
"""

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis

from contracts.jobs import (
    MOVES,
    ApiProgress,
    ApiSpec,
    Event,
    EventPage,
    Job,
    JobError,
    JobPage,
    JobRequest,
    JobStatus,
    Phase,
    Progress,
)
from contracts.meta_models import MetaModel, Score
from contracts.problems import Fault, ProblemError
from meta_server.store import ids, keys
from meta_server.store.index import newest_first
from meta_server.store.secrets import Secrets
from metering.leases import Lease, Leases
from metering.ledger import Ledger, budget_fields, budget_state
from metering.records import IdempotencyMark, KeyReused, MoveRefused, RecordKeys, Records
from metering.scripts import MICROSECONDS, Scripts, store_errors

IDEMPOTENCY_SECONDS = 24 * 3600.0
HEARTBEAT_SECONDS = 10.0
POLL_MILLISECONDS = 2000  # below the socket timeout of `metering.scripts.connect`

LEARN = "learn"
UNLIMITED = 2**53  # attempts: a service may restart as often as it likes
PHASES = tuple(Phase)

_STREAM_ID = re.compile(r"\d{1,20}(-\d{1,20})?")


def acquire_role(api_id: str) -> str:
    """The role that asks one API."""
    return f"acquire:{api_id}"


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What a worker needs to know of a job."""

    id: str
    request: JobRequest
    status: JobStatus
    input_shape: tuple[int, int, int] | None  # of the first API that told it
    apis: dict[str, ApiProgress]  # by API id; `answered` is not filled in
    checkpoints: dict[str, str]  # name -> where it lies in the artefact store

    def spec(self, api_id: str) -> ApiSpec:
        """The API's part of the request; its key is masked."""
        return self.request.apis[int(api_id[1:])]

    def finished(self, state: str) -> list[str]:
        """Ids of the APIs in `state` (`done` or `dropped`)."""
        return [api for api, progress in self.apis.items() if progress.state == state]

    def due(self) -> list[str]:
        """Roles whose work is not finished. The learner begins once every API is done or dropped."""
        if self.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
            return []
        waiting = [api for api, progress in self.apis.items() if progress.state not in ("done", "dropped")]
        return [acquire_role(api) for api in waiting] or [LEARN]

    def too_few(self) -> JobError | None:
        """Why the job cannot go on: fewer APIs are left than it needs. None while enough are."""
        dropped = self.finished("dropped")
        left, least = len(self.apis) - len(dropped), self.request.least_apis
        if left >= least:
            return None
        reasons = "; ".join(f"{self.apis[api].url}: {self.apis[api].reason}" for api in dropped[:5])
        message = f"{left} of {len(self.apis)} APIs are left and at least {least} are needed. Dropped: {reasons}"
        return JobError(code="too_few_apis", message=message, param="apis")


class JobStore:
    """Every read and write of jobs. `secrets` encrypts the API keys; `scripts` replaces the ones over `redis` (tests)."""

    def __init__(self, redis: Redis, *, secrets: Secrets, scripts: Scripts | None = None) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._secrets = secrets
        self._scripts = scripts or Scripts(redis)
        self._records = Records(self._scripts, MOVES)
        self.leases = Leases(self._scripts)
        self.service_leases = Leases(self._scripts, attempts=UNLIMITED)

    def ledger(self, job_id: str) -> Ledger:
        """The job's budget."""
        return Ledger(self._redis, self._scripts, keys.ledger(job_id))

    # What the server's routes call.

    async def create(
        self, request: JobRequest, *, idempotency_key: str | None = None, now: datetime | None = None
    ) -> tuple[Job, bool]:
        """Store a queued job, or find the one made by the same key and body; whether it is new.

        Raises `ProblemError` (`key-reused`), `StoreUnavailable`.
        """
        job_id = ids.new("job", now)
        api_ids = [f"a{index}" for index in range(len(request.apis))]
        with_key = [(api_id, api.api_key) for api_id, api in zip(api_ids, request.apis, strict=True)]
        api_keys = {api_id: key.get_secret_value() for api_id, key in with_key if key is not None}
        record = {"request": request.model_dump_json(), "sealed": self._secrets.seal(api_keys)}
        apis = {
            api_id: ApiProgress(url=api.url).model_dump_json(exclude={"answered"})
            for api_id, api in zip(api_ids, request.apis, strict=True)
        }
        mark = None
        if idempotency_key is not None:
            mark = IdempotencyMark(
                key=keys.idempotency(self._secrets.digest(idempotency_key.encode())),
                digest=self._secrets.digest(_canonical(request)),
                seconds=IDEMPOTENCY_SECONDS,
            )
        try:
            stored = await self._records.create(
                keys.records(job_id),
                job_id,
                record=record,
                budget=budget_fields(request.budget.queries, request.budget.queries_per_api),
                apis=apis,
                mark=mark,
            )
        except KeyReused:
            raise ProblemError("key-reused", "send the same body again, or use another Idempotency-Key") from None
        return await self.get(stored), stored == job_id

    async def get(self, job_id: str) -> Job:
        """The job. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        return (await self._read([job_id]))[0]

    async def list(self, *, after: str | None = None, limit: int = 20, status: JobStatus | None = None) -> JobPage:
        """Jobs, newest first, from the one after `after`. Raises `StoreUnavailable`."""
        index = keys.JOBS if status is None else keys.JOBS_BY_STATUS + status
        page, following = await newest_first(self._redis, index, after, limit)
        return JobPage(items=await self._read(page), next=following)

    async def cancel(self, job_id: str) -> Job:
        """A queued job is cancelled at once, a running one when its workers have stopped.

        Raises `ProblemError` (`not-found`; `conflict` when it has ended), `StoreUnavailable`.
        """
        places = keys.records(job_id)
        try:
            await self._records.move(places, JobStatus.CANCELLED, only_from=[JobStatus.QUEUED])
        except MoveRefused as refused:
            if refused.status == JobStatus.RUNNING:
                await self._cancel_running(places)
            elif refused.status and refused.status != JobStatus.CANCELLING:
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to cancel") from None
        return await self.get(job_id)

    async def _cancel_running(self, places: RecordKeys) -> None:
        try:
            await self._records.move(places, JobStatus.CANCELLING)
        except MoveRefused as refused:
            if refused.status != JobStatus.CANCELLING:  # it ended in between
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to cancel") from None

    async def events(self, job_id: str, *, after: str | None = None, limit: int = 100) -> EventPage:
        """Events after the id `after`, oldest first. Raises `ProblemError` (`not-found`, `invalid-request`)."""
        await self.status(job_id)
        start = f"({_stream_id(after)}" if after is not None else "-"
        with store_errors():
            entries = await self._redis.xrange(keys.job(job_id, "events"), min=start, count=limit)
        items = [_event(*entry) for entry in entries]
        return EventPage(items=items, last=items[-1].id if items else after)

    async def follow(self, job_id: str, *, after: str | None = None) -> AsyncIterator[Event | None]:
        """Events as they come, from the one after `after`; None every 10 seconds of silence.

        Ends after the event of the job's last status. Raises `ProblemError` (`not-found`, `invalid-request`),
        `StoreUnavailable`.
        """
        last = _stream_id(after) if after is not None else "0"
        over = MOVES[await self.status(job_id)] == frozenset()
        silence = 0.0
        while True:
            with store_errors():
                block = None if over else POLL_MILLISECONDS
                answer = await self._redis.xread({keys.job(job_id, "events"): last}, count=100, block=block)
            if answer:
                silence = 0.0
                for entry in answer[0][1]:
                    event = _event(*entry)
                    last = event.id
                    yield event
                    if event.type == "status" and not MOVES[JobStatus(event.data["status"])]:
                        return
                continue
            if over:
                return
            silence += POLL_MILLISECONDS / 1000
            if silence >= HEARTBEAT_SECONDS:
                silence = 0.0
                yield None
            # read once more without blocking when it has ended: the last event may have come in between
            over = not MOVES[await self.status(job_id)]

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
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hgetall(keys.job(job_id, "record"))
                pipe.hgetall(keys.job(job_id, "apis"))
                record, apis = map(_text, await pipe.execute())
        if not record:
            raise _not_found(job_id)
        shape = record.get("input_shape")
        return StoredJob(
            id=job_id,
            request=JobRequest.model_validate_json(record["request"]),
            status=JobStatus(record["status"]),
            input_shape=tuple(json.loads(shape)) if shape else None,
            apis={api: ApiProgress.model_validate_json(apis[api]) for api in _in_order(apis)},
            checkpoints=_part(record, "checkpoint:"),
        )

    async def api_key(self, job_id: str, api_id: str) -> SecretStr | None:
        """The key to send to an API. Raises `BadSecretKey`, `StoreUnavailable`."""
        with store_errors():
            sealed = await self._redis.hget(keys.job(job_id, "record"), "sealed")
        key = self._secrets.open(sealed.decode()).get(api_id)
        return None if key is None else SecretStr(key)

    async def take(self, job_id: str, role: str, holder: str) -> Lease | None:
        """The lease of a role, or None while someone holds it. Raises `AttemptsExhausted`, `StoreUnavailable`."""
        return await self.leases.take(keys.job(job_id, "leases"), role, holder)

    async def begin(self, job_id: str, lease: Lease) -> JobStatus:
        """A queued job is running from here on; the status it has now. Raises `LeaseLost`, `StoreUnavailable`."""
        try:
            await self._records.move(keys.records(job_id), JobStatus.RUNNING, lease=lease)
        except MoveRefused as refused:
            return JobStatus(refused.status)
        return JobStatus.RUNNING

    async def phase(self, job_id: str, lease: Lease, phase: Phase) -> None:
        """Note that a phase has started. Raises `LeaseLost`, `StoreUnavailable`."""
        await self._records.phase(keys.records(job_id), lease, phase, PHASES.index(phase))

    async def agree_on_shape(self, job_id: str, lease: Lease, shape: Sequence[int]) -> tuple[int, int, int]:
        """The input shape of all of the job's APIs: what the first to ask gave. Raises `LeaseLost`, `StoreUnavailable`."""
        standing = await self._records.decide(keys.records(job_id), lease, "input_shape", json.dumps(list(shape)))
        channels, height, width = json.loads(standing)
        return channels, height, width

    async def agree_on_classes(self, job_id: str, lease: Lease, api_id: str, classes: int) -> int:
        """How many classes an API has: what it told first. Raises `LeaseLost`, `StoreUnavailable`."""
        return int(await self._records.decide(keys.records(job_id), lease, f"classes:{api_id}", str(classes)))

    async def set_api(self, job_id: str, lease: Lease, api_id: str, progress: ApiProgress) -> None:
        """Set and announce where an API stands. Raises `LeaseLost`, `StoreUnavailable`."""
        await self._records.write(
            keys.records(job_id),
            lease,
            into=keys.job(job_id, "apis"),
            fields={api_id: progress.model_dump_json(exclude={"answered"})},
            event=("api", {"api": api_id, **progress.model_dump(mode="json", include={"state", "planned", "reason"})}),
        )

    async def warn(self, job_id: str, lease: Lease, message: str, **about: str) -> None:
        """Announce something the person should see. Raises `LeaseLost`, `StoreUnavailable`."""
        event = ("warning", {"message": message, **about})
        await self._records.write(keys.records(job_id), lease, fields={}, event=event)

    async def progress(self, job_id: str, lease: Lease, phase: Phase, fraction: float) -> None:
        """Announce how far a phase is, in [0, 1]. Raises `LeaseLost`, `StoreUnavailable`."""
        event = ("progress", {"phase": phase, "fraction": round(fraction, 4)})
        await self._records.write(
            keys.records(job_id), lease, fields={f"progress:{phase}": f"{fraction:.4f}"}, event=event
        )

    async def metrics(self, job_id: str, lease: Lease, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Announce training metrics and how far training is. Raises `LeaseLost`, `StoreUnavailable`."""
        fields = {f"metric:{name}": repr(float(value)) for name, value in values.items()}
        fields[f"progress:{Phase.META_TRAIN}"] = f"{step / steps:.4f}"
        event = ("metrics", {"step": step, "steps": steps, **values})
        await self._records.write(keys.records(job_id), lease, fields=fields, event=event)

    async def checkpoint(self, job_id: str, lease: Lease, name: str, value: str) -> None:
        """Note durable progress: `name` is kept as `value` (where it lies, or itself). Raises `LeaseLost`."""
        await self._records.write(keys.records(job_id), lease, fields={f"checkpoint:{name}": value}, progress=True)

    async def fail(self, job_id: str, error: JobError, *, lease: Lease | None = None) -> None:
        """End the job with `error`; one that has ended stays as it is. Raises `LeaseLost`, `StoreUnavailable`."""
        with suppress(MoveRefused):
            await self._records.move(
                keys.records(job_id),
                JobStatus.FAILED,
                lease=lease,
                fields={"error": error.model_dump_json()},
                event={"reason": error.code},
            )

    async def close(self, job_id: str) -> bool:
        """Once nobody works on a job that is ending or has ended: settle its open holds, and end it if it was cancelling.

        False while somebody still does. Raises `StoreUnavailable`.
        """
        if await self.ledger(job_id).abandon() is None:
            return False
        with suppress(MoveRefused):  # it had ended before
            await self._records.move(keys.records(job_id), JobStatus.CANCELLED, only_from=[JobStatus.CANCELLING])
        return True

    async def publish(
        self,
        job_id: str,
        lease: Lease,
        meta_model: MetaModel,
        *,
        folder: str,
    ) -> None:
        """Make the meta-model visible and the job succeeded, in one step.

        Raises `MoveRefused` (cancelled in between), `LeaseLost`, `StoreUnavailable`.
        """
        fields = {"meta_model": meta_model.id}
        for name, score in (("score", meta_model.score), ("random_score", meta_model.random_score)):
            if score is not None:
                fields[name] = score.model_dump_json()
        await self._records.publish(
            keys.records(job_id),
            lease,
            published_id=meta_model.id,
            published_key=keys.meta_model(meta_model.id),
            published_index=keys.META_MODELS,
            published=meta_model.model_dump_json(),
            folder=folder,
            fields=fields,
        )

    async def _read(self, job_ids: Sequence[str]) -> Sequence[Job]:
        if not job_ids:
            return []
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                for job_id in job_ids:
                    for part in ("record", "budget", "apis", "leases"):
                        pipe.hgetall(keys.job(job_id, part))
                answers = await pipe.execute()
        return [_job(job_id, *answers[4 * at : 4 * at + 4]) for at, job_id in enumerate(job_ids)]


def _job(
    job_id: str,
    raw: dict[bytes, bytes],
    budget: dict[bytes, bytes],
    raw_apis: dict[bytes, bytes],
    raw_leases: dict[bytes, bytes],
) -> Job:
    """The hashes of a job as its record on the wire."""
    if not raw:
        raise _not_found(job_id)
    record, apis, leases = _text(raw), _text(raw_apis), _text(raw_leases)
    request = JobRequest.model_validate_json(record["request"])
    spent = budget_state(budget)
    share = request.budget.queries // len(apis)
    if request.budget.queries_per_api is not None:
        share = min(share, request.budget.queries_per_api)
    per_api = {}
    for api in _in_order(apis):
        progress = ApiProgress.model_validate_json(apis[api])
        answered = spent.per_api[api].confirmed if api in spent.per_api else 0
        planned = share if progress.state in ("waiting", "probing") and not progress.planned else progress.planned
        per_api[api] = progress.model_copy(update={"answered": answered, "planned": planned})
    return Job(
        id=job_id,
        name=request.name,
        tags=request.tags,
        status=JobStatus(record["status"]),
        phase=Phase(record["phase"]) if "phase" in record else None,
        created_at=_time(record["created"]),
        started_at=_time(record["started"]) if "started" in record else None,
        finished_at=_time(record["finished"]) if "finished" in record else None,
        attempt=max((int(count) for count in _part(leases, "attempts:").values()), default=0),
        progress=Progress(phase=_fractions(record, per_api), per_api=per_api),
        budget=spent,
        seconds=_seconds(record),
        metrics={name: float(value) for name, value in _part(record, "metric:").items()},
        score=_score(record, "score"),
        random_score=_score(record, "random_score"),
        error=JobError.model_validate_json(record["error"]) if "error" in record else None,
        meta_model=record.get("meta_model"),
        request=request,
    )


def _fractions(record: Mapping[str, str], per_api: Mapping[str, ApiProgress]) -> dict[Phase, float]:
    """How far each phase that has started is."""
    started = [phase for phase in PHASES if f"at:{phase}" in record]
    if not started:
        return {}
    told = {Phase(phase): float(value) for phase, value in _part(record, "progress:").items()}
    apis = list(per_api.values())
    kept = [api for api in apis if api.state != "dropped"]
    planned = sum(api.planned for api in kept)
    counted = {
        Phase.PROBE: sum(api.state not in ("waiting", "probing") for api in apis) / len(apis),
        Phase.ACQUIRE: sum(api.planned if api.state == "done" else api.answered for api in kept) / (planned or 1),
    }
    fractions = {phase: told.get(phase, counted.get(phase, 0.0)) for phase in PHASES[: PHASES.index(started[-1]) + 1]}
    learning = started[-1] not in (Phase.PROBE, Phase.ACQUIRE)
    if learning:
        fractions |= dict.fromkeys(PHASES[: PHASES.index(started[-1])], 1.0)
    return dict.fromkeys(fractions, 1.0) if record["status"] == JobStatus.SUCCEEDED else fractions


def _seconds(record: Mapping[str, str]) -> dict[Phase, float]:
    """Wall time of each finished phase: until the next one started, or the job ended."""
    started = [(phase, int(record[f"at:{phase}"])) for phase in PHASES if f"at:{phase}" in record]
    ends = [at for _, at in started[1:]]
    if "finished" in record:
        ends.append(int(record["finished"]))
    return {phase: (end - at) / MICROSECONDS for (phase, at), end in zip(started, ends, strict=False)}


def _score(record: Mapping[str, str], name: str) -> Score | None:
    value = record.get(name) or record.get(f"checkpoint:{name}")
    return Score.model_validate_json(value) if value else None


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    name = entry_id.decode()
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(name.partition("-")[0]))
    return Event(id=name, time=when, type=fields[b"type"].decode(), data=json.loads(fields[b"data"]))


def _stream_id(after: str) -> str:
    if not _STREAM_ID.fullmatch(after):
        fault = Fault(field="after", message="must be the id of an event, such as 1700000000000-0")
        raise ProblemError("invalid-request", "the event id is malformed", errors=[fault])
    return after


def _canonical(request: JobRequest) -> bytes:
    """The request as bytes that are equal for equal requests, API keys included."""
    body = request.model_dump(mode="json")
    for told, api in zip(body["apis"], request.apis, strict=True):
        told["api_key"] = api.api_key and api.api_key.get_secret_value()
    return json.dumps(body, sort_keys=True).encode()


def _not_found(job_id: str) -> ProblemError:
    return ProblemError("not-found", f"there is no job {job_id}")


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {field.decode(): value.decode() for field, value in fields.items()}


def _part(fields: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}


def _in_order(apis: Mapping[str, Any]) -> list[str]:
    return sorted(apis, key=lambda api: int(api[1:]))


def _time(microseconds: str) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(microseconds))
