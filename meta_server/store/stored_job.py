"""A job as Redis holds it in hashes of text: what of it a worker reads, and what the service tells."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from contracts.access import DEFAULT_TENANT
from contracts.jobs import (
    ApiProgress,
    ApiSpec,
    BudgetState,
    Job,
    JobError,
    JobRequest,
    JobStatus,
    Phase,
    Progress,
    place_of,
)
from contracts.meta_models import Score
from contracts.methods import LEARN_AS_ANSWERS_COME
from metering.scripts import MICROSECONDS

LEARN = "learn"
EARLY_AFTER = 60.0  # seconds of a job in which its learner waits for all answers: then it takes those that are there
LATE = "late"  # the checkpoint that says so: the learner had to give way, and waits for all answers
PHASES = tuple(Phase)


def acquire_role(api_id: str) -> str:
    """The role that asks one API."""
    return f"acquire:{api_id}"


def kept(progress: ApiProgress) -> str:
    """Where an API stands, as the hash of a job's APIs holds it."""
    return progress.model_dump_json(exclude={"answered"})


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What a worker needs to know of a job."""

    id: str
    request: JobRequest
    status: JobStatus
    input_shape: tuple[int, int, int] | None  # of the first API that told it
    apis: dict[str, ApiProgress]  # by API id; `answered` is not filled in
    checkpoints: dict[str, str]  # name -> where it lies in the artefact store
    started: float | None = None  # when a worker first began, in seconds since the epoch
    answered: dict[str, int] = field(default_factory=dict)  # images answered and stored, by API id
    tenant: str = DEFAULT_TENANT

    def spec(self, api_id: str) -> ApiSpec:
        """The API's part of the request; its key is masked."""
        return self.request.apis[place_of(api_id)]

    def finished(self, state: str) -> list[str]:
        """Ids of the APIs in `state` (`done` or `dropped`)."""
        return [api for api, progress in self.apis.items() if progress.state == state]

    def stand_ins(self) -> dict[int, int]:
        """Places of the APIs that stand in for a dropped one, and of that one."""
        return {
            place_of(api): place_of(progress.stands_in_for)
            for api, progress in self.apis.items()
            if progress.stands_in_for is not None
        }

    def asked(self) -> dict[str, ApiProgress]:
        """The APIs that are asked anything, as far as is known."""
        return {api: progress for api, progress in self.apis.items() if self.request.asks(progress)}

    def waiting(self) -> list[str]:
        """Ids of the APIs that are neither done nor dropped."""
        return [api for api, progress in self.apis.items() if progress.state not in ("done", "dropped")]

    def due(self, now: float | None = None) -> list[str]:
        """Roles whose work is not finished, at `now` in seconds since the epoch (default: now).

        The learner begins once every API is done or dropped; in a job that takes long, once `min_apis` APIs have given half of
        what is planned for them.
        """
        if self.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
            return []
        waiting = self.waiting()
        early = [LEARN] if waiting and self._learns_early(time.time() if now is None else now) else []
        return [acquire_role(api) for api in waiting] + early or [LEARN]

    def _learns_early(self, now: float) -> bool:
        if self.request.method.name not in LEARN_AS_ANSWERS_COME or self.started is None or LATE in self.checkpoints:
            return False
        asked = self.asked()
        halves = sum(
            progress.state == "done" or 0 < progress.planned <= 2 * self.answered.get(api, 0)
            for api, progress in asked.items()
            if progress.state != "dropped"
        )
        return now - self.started >= EARLY_AFTER and halves >= self.request.least_apis(len(asked))

    def deadline(self) -> float:
        """When APIs are asked no more, in seconds since the epoch."""
        if self.started is None or self.request.acquire_deadline is None:
            return math.inf
        return self.started + self.request.acquire_deadline

    def too_few(self) -> JobError | None:
        """Why the job cannot go on: fewer APIs are left than it needs. None while enough are."""
        dropped, asked = self.finished("dropped"), self.asked()
        left, least = sum(api not in dropped for api in asked), self.request.least_apis(len(asked))
        if left >= least:
            return None
        reasons = "; ".join(f"{self.apis[api].url}: {self.apis[api].reason}" for api in dropped[:5])
        message = f"{left} of {len(asked)} APIs are left and at least {least} are needed. Dropped: {reasons}"
        return JobError(code="too_few_apis", message=message, param="apis")


def stored_job(
    job_id: str, record: Mapping[str, str], apis: Mapping[str, str], budget: Mapping[str, str] | None = None
) -> StoredJob:
    """The hashes of a job as a worker reads them."""
    shape = record.get("input_shape")
    return StoredJob(
        id=job_id,
        request=_request(record["request"]),
        status=JobStatus(record["status"]),
        input_shape=tuple(json.loads(shape)) if shape else None,
        apis={api: ApiProgress.model_validate_json(apis[api]) for api in _in_order(apis)},
        checkpoints=_part(record, "checkpoint:"),
        started=int(record["started"]) / MICROSECONDS if "started" in record else None,
        answered={api: int(images) for api, images in _part(budget or {}, "confirmed:").items()},
        tenant=record.get("tenant", DEFAULT_TENANT),
    )


def told_job(
    job_id: str,
    record: Mapping[str, str],
    spent: BudgetState,
    apis: Mapping[str, str],
    leases: Mapping[str, str],
) -> Job:
    """The hashes of a job, and where its budget stands, as its record on the wire."""
    request = _request(record["request"])
    share = request.budget.queries // len(apis)
    if request.budget.queries_per_api is not None:
        share = min(share, request.budget.queries_per_api)
    per_api = {}
    for api in _in_order(apis):
        progress = json.loads(apis[api])
        progress["answered"] = spent.per_api[api].confirmed if api in spent.per_api else 0
        if progress["state"] in ("waiting", "probing") and not progress["planned"]:
            progress["planned"] = share
        per_api[api] = ApiProgress.model_validate(progress)
    return Job(
        id=job_id,
        name=request.name,
        tags=request.tags,
        notes=request.notes,
        status=JobStatus(record["status"]),
        reason=record.get("reason") or None,
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


@lru_cache(256)
def _request(stored: str) -> JobRequest:
    """A stored request, frozen: the same jobs are told again and again."""
    return JobRequest.model_validate_json(stored)


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
        acquired = all(api.state in ("done", "dropped") for api in apis)  # a learner may begin before
        fractions |= {
            phase: 1.0
            for phase in PHASES[: PHASES.index(started[-1])]
            if acquired or phase not in (Phase.PROBE, Phase.ACQUIRE)
        }
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


def text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as redis-py gives it, decoded."""
    return {field.decode(): value.decode() for field, value in fields.items()}


def _part(fields: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}


def _in_order(apis: Mapping[str, Any]) -> list[str]:
    return sorted(apis, key=place_of)


def _time(microseconds: str) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(microseconds))
