"""Sends work to the workers: Celery messages by task name that carry ids alone."""

from collections.abc import Iterable, Sequence

from celery import Celery

from meta_server.store.stored_job import LEARN, acquire_role

BEGIN_TASK, ACQUIRE_TASK, PROBE_TASK = "worker.begin", "worker.acquire_api", "worker.probe"
LEARN_TASK, NOTIFY_TASK = "worker.learn", "worker.notify"
ACQUIRE_QUEUE, LEARN_QUEUE, GPU_QUEUE = "acquire", "learn.cpu", "learn.gpu"  # every learner takes what needs no GPU
VISIBILITY_SECONDS = 43200  # a task longer than this would be started again while it runs


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
        self._celery.send_task(ACQUIRE_TASK, args=[job_id, api_id], queue=ACQUIRE_QUEUE)

    def learn(self, job_id: str, *, on_gpu: bool = False) -> None:
        """Have the meta-model trained from what the APIs answered."""
        self._celery.send_task(LEARN_TASK, args=[job_id], queue=GPU_QUEUE if on_gpu else LEARN_QUEUE)

    def notify(self, job_id: str) -> None:
        """Have the job's webhook told what it was not told yet."""
        self._celery.send_task(NOTIFY_TASK, args=[job_id], queue=ACQUIRE_QUEUE)

    def probe(self, probe_id: str) -> None:
        """Have the APIs of an estimate probed."""
        self._celery.send_task(PROBE_TASK, args=[probe_id], queue=ACQUIRE_QUEUE)

    def send(self, job_id: str, role: str) -> None:
        """Have the work of a role done."""
        if role == LEARN:
            self.learn(job_id)
        else:
            self.acquire(job_id, role.removeprefix(acquire_role("")))

    def begin(self, job_ids: Sequence[str]) -> None:
        """Have everything sent that is due of queued jobs: one message here, however many APIs there are to ask."""
        self._celery.send_task(BEGIN_TASK, args=[job_ids], queue=ACQUIRE_QUEUE)

    def send_all(self, job_id: str, roles: Iterable[str]) -> None:
        """Have the work of these roles done."""
        for role in roles:
            self.send(job_id, role)

    def waiting(self, role: str) -> int:
        """How many messages wait in the role's queue. Blocks for a moment."""
        with self._celery.connection_for_write() as connection, connection.channel() as channel:
            return sum(int(channel.client.llen(queue)) for queue in queues_of(role))

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()


def queues_of(role: str) -> list[str]:
    """Where a role's message may wait."""
    return [LEARN_QUEUE, GPU_QUEUE] if role == LEARN else [ACQUIRE_QUEUE]
