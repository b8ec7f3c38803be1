"""Sends work to the workers: Celery messages by task name that carry ids alone.

Messages lie in lanes, one for each tenant but for chance, and those that ask APIs in one for each job of it. Workers serve one
tenant after the other, and of each one job after the other: so a job of a hundred APIs does not keep one of two waiting, nor a
tenant of thirty jobs one of a single job.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from zlib import crc32

from celery import Celery
from opentelemetry import propagate

from meta_server.store.stored_job import LEARN, acquire_role

BEGIN_TASK, ACQUIRE_TASK, PROBE_TASK = "worker.begin", "worker.acquire_api", "worker.probe"
LEARN_TASK, NOTIFY_TASK = "worker.learn", "worker.notify"
ACQUIRE_QUEUE, LEARN_QUEUE, GPU_QUEUE = "acquire", "learn.cpu", "learn.gpu"  # every learner takes what needs no GPU
TENANT_LANES, JOB_LANES = 16, 16
VISIBILITY_SECONDS = 43200  # a task longer than this would be started again while it runs


def _lanes(queue: str, *counts: int) -> tuple[str, ...]:
    return tuple(".".join([queue, *map(str, numbers)]) for numbers in product(*map(range, counts)))


ACQUIRE_QUEUES = (ACQUIRE_QUEUE, *_lanes(ACQUIRE_QUEUE, TENANT_LANES, JOB_LANES))  # the first for what concerns no API
LEARN_QUEUES, GPU_QUEUES = (_lanes(queue, TENANT_LANES) for queue in (LEARN_QUEUE, GPU_QUEUE))

Trace = Mapping[str, str]
"""A place in a trace, as OpenTelemetry's propagators write it; empty where nobody takes traces."""

TRACE, TRACES = "metazoo_trace", "metazoo_traces"  # headers of messages: a place, places by job id


def here() -> Trace:
    """Where in a trace the caller is."""
    carried: dict[str, str] = {}
    propagate.inject(carried)
    return carried


class Queue:
    """The queues in Redis. Sends block for a moment; connects when first used."""

    def __init__(self, redis_url: str) -> None:
        self._celery = Celery("metazoo", broker=redis_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
            broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
            broker_connection_retry_on_startup=True,
        )

    def learn(self, job_id: str, *, tenant: str, on_gpu: bool = False) -> None:
        """Have the meta-model trained from what the APIs answered."""
        self._send(LEARN_TASK, [job_id], learner_lane(tenant, GPU_QUEUE if on_gpu else LEARN_QUEUE))

    def notify(self, job_id: str) -> None:
        """Have the job's webhook told what it was not told yet."""
        self._send(NOTIFY_TASK, [job_id], ACQUIRE_QUEUE)

    def probe(self, probe_id: str) -> None:
        """Have the APIs of an estimate probed."""
        self._send(PROBE_TASK, [probe_id], ACQUIRE_QUEUE)

    def send(self, job_id: str, role: str, *, tenant: str) -> None:
        """Have the work of a role done."""
        if role == LEARN:
            self.learn(job_id, tenant=tenant)
        else:
            self._send(ACQUIRE_TASK, [job_id, role.removeprefix(acquire_role(""))], lane_of(job_id, tenant))

    def begin(self, job_ids: Sequence[str], traces: Mapping[str, Trace] = MappingProxyType({})) -> None:
        """Have everything sent that is due of queued jobs: one message here, however many APIs there are to ask.

        `traces`: by job id, where each was asked for.
        """
        told = {job_id: dict(trace) for job_id, trace in traces.items() if trace}
        self._celery.send_task(
            BEGIN_TASK, args=[job_ids], queue=ACQUIRE_QUEUE, headers={TRACES: told} if told else None
        )

    def send_all(self, job_id: str, roles: Iterable[str], *, tenant: str) -> None:
        """Have the work of these roles done."""
        for role in roles:
            self.send(job_id, role, tenant=tenant)

    def waiting(self, role: str) -> int:
        """How many messages wait for the workers of a role. Blocks for a moment."""
        queues = LEARN_QUEUES + GPU_QUEUES if role == LEARN else ACQUIRE_QUEUES
        with (
            self._celery.connection_for_write() as connection,
            connection.channel() as channel,
            channel.client.pipeline(transaction=False) as pipe,
        ):
            for queue in queues:
                pipe.llen(queue)
            return sum(map(int, pipe.execute()))

    def _send(self, task: str, args: Sequence[str], queue: str) -> None:
        trace = here()
        self._celery.send_task(task, args=args, queue=queue, headers={TRACE: trace} if trace else None)

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()


def lane_of(job_id: str, tenant: str) -> str:
    """Where the messages wait that ask a job's APIs."""
    return f"{ACQUIRE_QUEUE}.{_number(tenant, TENANT_LANES)}.{_number(job_id, JOB_LANES)}"


def learner_lane(tenant: str, queue: str) -> str:
    """Where a tenant's messages wait for learners that take from `queue`."""
    return f"{queue}.{_number(tenant, TENANT_LANES)}"


def queues_of(job_id: str, role: str, tenant: str) -> list[str]:
    """Where the message of a job's role may wait."""
    if role == LEARN:
        return [learner_lane(tenant, queue) for queue in (LEARN_QUEUE, GPU_QUEUE)]
    return [lane_of(job_id, tenant)]


def _number(name: str, of: int) -> int:
    return crc32(name.encode()) % of
