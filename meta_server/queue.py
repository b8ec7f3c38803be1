"""Sends work to the workers: Celery messages by task name that carry ids alone.

Messages that ask APIs lie in lanes, one for each job but for chance, and workers take from one lane after the other: so a
job of a hundred APIs does not keep one of two waiting.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from zlib import crc32

from celery import Celery
from opentelemetry import propagate

from meta_server.store.stored_job import LEARN, acquire_role

BEGIN_TASK, ACQUIRE_TASK, PROBE_TASK = "worker.begin", "worker.acquire_api", "worker.probe"
LEARN_TASK, NOTIFY_TASK = "worker.learn", "worker.notify"
ACQUIRE_QUEUE, LEARN_QUEUE, GPU_QUEUE = "acquire", "learn.cpu", "learn.gpu"  # every learner takes what needs no GPU
LANES = tuple(f"{ACQUIRE_QUEUE}.{number}" for number in range(32))  # beside it, of the APIs to be asked
VISIBILITY_SECONDS = 43200  # a task longer than this would be started again while it runs


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

    def acquire(self, job_id: str, api_id: str) -> None:
        """Have one API asked."""
        self._send(ACQUIRE_TASK, [job_id, api_id], lane_of(job_id))

    def learn(self, job_id: str, *, on_gpu: bool = False) -> None:
        """Have the meta-model trained from what the APIs answered."""
        self._send(LEARN_TASK, [job_id], GPU_QUEUE if on_gpu else LEARN_QUEUE)

    def notify(self, job_id: str) -> None:
        """Have the job's webhook told what it was not told yet."""
        self._send(NOTIFY_TASK, [job_id], ACQUIRE_QUEUE)

    def probe(self, probe_id: str) -> None:
        """Have the APIs of an estimate probed."""
        self._send(PROBE_TASK, [probe_id], ACQUIRE_QUEUE)

    def send(self, job_id: str, role: str) -> None:
        """Have the work of a role done."""
        if role == LEARN:
            self.learn(job_id)
        else:
            self.acquire(job_id, role.removeprefix(acquire_role("")))

    def begin(self, job_ids: Sequence[str], traces: Mapping[str, Trace] = MappingProxyType({})) -> None:
        """Have everything sent that is due of queued jobs: one message here, however many APIs there are to ask.

        `traces`: by job id, where each was asked for.
        """
        told = {job_id: dict(trace) for job_id, trace in traces.items() if trace}
        self._celery.send_task(
            BEGIN_TASK, args=[job_ids], queue=ACQUIRE_QUEUE, headers={TRACES: told} if told else None
        )

    def send_all(self, job_id: str, roles: Iterable[str]) -> None:
        """Have the work of these roles done."""
        for role in roles:
            self.send(job_id, role)

    def waiting(self, role: str) -> int:
        """How many messages wait for the workers of a role. Blocks for a moment."""
        queues = [LEARN_QUEUE, GPU_QUEUE] if role == LEARN else [ACQUIRE_QUEUE, *LANES]
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


def lane_of(job_id: str) -> str:
    """Where the messages wait that ask a job's APIs."""
    return LANES[crc32(job_id.encode()) % len(LANES)]


def queues_of(job_id: str, role: str) -> list[str]:
    """Where the message of a job's role may wait."""
    return [LEARN_QUEUE, GPU_QUEUE] if role == LEARN else [lane_of(job_id)]
