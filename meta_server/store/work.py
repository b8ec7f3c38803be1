"""What a worker writes of a job while it holds one of its leases. Every write is refused when the lease was lost."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from contracts.jobs import ApiProgress, JobStatus, Phase
from contracts.meta_models import MetaModel
from meta_server.store import keys
from meta_server.store.stored_job import PHASES, kept
from metering.leases import Lease
from metering.records import MoveRefused, Records, Series

METRICS_KEPT = 2000  # points of a job's curves at least, twice as many at most; beyond, every second one goes
METRICS_SECONDS = 90 * 86400  # after the last point


class Work:
    """The writes of whoever works on jobs, over their `records`."""

    def __init__(self, records: Records) -> None:
        self._records = records

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

    async def agree_on_stand_in(self, job_id: str, lease: Lease, api_id: str, spares: Sequence[str]) -> str | None:
        """The first of these APIs that stands in for no other one; None for none. Raises `LeaseLost`, `StoreUnavailable`."""
        for spare in spares:
            if await self._records.decide(keys.records(job_id), lease, f"stand_in:{spare}", api_id) == api_id:
                return spare
        return None

    async def set_api(
        self,
        job_id: str,
        lease: Lease,
        api_id: str,
        progress: ApiProgress,
        others: Mapping[str, ApiProgress] = MappingProxyType({}),
    ) -> None:
        """Set and announce where an API stands; set `others` in the same step. Raises `LeaseLost`, `StoreUnavailable`."""
        await self._records.write(
            keys.records(job_id),
            lease,
            into=keys.job(job_id, "apis"),
            fields={api: kept(one) for api, one in {api_id: progress, **others}.items()},
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
        series = Series(keys.job(job_id, "metrics"), METRICS_KEPT, METRICS_SECONDS)
        await self._records.measure(keys.records(job_id), lease, fields=fields, event=event, series=series)

    async def checkpoint(self, job_id: str, lease: Lease, name: str, value: str) -> None:
        """Note durable progress: `name` is kept as `value` (where it lies, or itself). Raises `LeaseLost`."""
        await self._records.write(keys.records(job_id), lease, fields={f"checkpoint:{name}": value}, progress=True)

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
