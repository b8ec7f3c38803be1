"""The Celery app and its settings; the only module that knows Celery's internals. `start` is what `metazoo worker` calls.

Exclusivity is our leases', not the broker's: a task that is delivered twice finds its lease taken and returns.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from meta_server.queue import ACQUIRE_QUEUE, VISIBILITY_SECONDS, Queue
from worker import metrics
from worker.settings import Settings
from worker.stopping import Stopping
from worker.tasks import register

SOFT_SHUTDOWN_SECONDS = 30.0


class App(Celery):
    """A Celery app that can be closed with all that its tasks held open in this process. A worker never does: it ends."""

    close_tasks: Callable[[], None]

    def close(self) -> None:
        """Close it; none of its tasks may be at work."""
        self.close_tasks()
        super().close()


def create_app(settings: Settings) -> App:
    """The app with all tasks. Connects to nothing yet."""
    broker = settings.redis_url.get_secret_value()
    app = App("worker", broker=broker, set_as_current=False)
    app.conf.update(
        broker_transport="worker.broker:Transport",
        # the solo pool lost its task at soft shutdown in 3 of 3 runs, and threads cannot be revoked
        worker_pool="prefork",
        # the task of a child that was killed is delivered again at once
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_SECONDS,
        # in all three places, or a task that takes longer is started two to four times over
        visibility_timeout=VISIBILITY_SECONDS,
        # queues by turns: see `meta_server.queue`
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            "queue_order_strategy": "worker.broker:Turns",
            "priority_steps": [0],
        },
        result_backend_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
        broker_connection_retry_on_startup=True,
        # a task goes on over a lost broker connection: its lease says whether it may, and its redelivery sees the lease
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
    )
    stopping = Stopping()
    app.close_tasks = register(app, settings, Queue(broker), stopping)
    app.Worker = _orderly(app.Worker, stopping)
    return app


def start(
    settings: Settings, *, queues: Sequence[str], name: str, concurrency: int, set_up_logging: Callable[[], None]
) -> None:
    """Work on queues until told to stop: APIs are asked by threads that share one event loop, learners are processes.

    SIGTERM hands running tasks on if the environment says `REMAP_SIGTERM=SIGQUIT` before Celery is imported.
    """
    # Celery warns root because of pickle; messages here are JSON, and containers decide on users
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app = create_app(settings)

    @signals.setup_logging.connect(weak=False)
    def own_logging(**_: Any) -> None:
        set_up_logging()

    if settings.metrics_port is not None:
        port = settings.metrics_port

        @signals.worker_ready.connect(weak=False)
        def serve_metrics(**_: Any) -> None:
            metrics.serve(port)

    learns = ACQUIRE_QUEUE not in queues
    if learns:

        @signals.worker_process_init.connect(weak=False)
        def announce(**_: Any) -> None:
            from worker.announcing import start_announcing  # torch is imported in the child alone

            start_announcing(settings)

    app.worker_main(
        [
            *("--quiet", "worker"),  # no banner: each line of the log is JSON, and the queues are some hundred
            *("--queues", ",".join(queues), "--hostname", f"{name}@%h", "--concurrency", str(concurrency)),
            # waiting for APIs takes no process each; a learner that is killed must not take its worker along
            *("--pool", "prefork" if learns else "threads"),
            # without heartbeats too: when Redis is gone for good, sending the last one would keep a worker from ending
            *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"),
        ]
    )


def _orderly(worker_class: type[Any], stopping: Stopping) -> type[Any]:
    """Celery's worker, except that its soft shutdown tells the tasks and ends as soon as they have stopped."""

    class OrderlyWorker(worker_class):
        def wait_for_soft_shutdown(self) -> None:
            stopping.ask()
            stopping.wait(self.app.conf.worker_soft_shutdown_timeout)

    return OrderlyWorker
