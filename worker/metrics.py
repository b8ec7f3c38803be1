"""What workers count, as Prometheus reads it on `METAZOO_METRICS_PORT`.

Tasks run in child processes: `metazoo worker` names a folder in `PROMETHEUS_MULTIPROC_DIR` before this is imported, where they
write and the parent reads.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

images = Counter("metazoo_worker_images", "Images sent to APIs whose outcome is settled.", ["outcome"])
tasks = Histogram(
    "metazoo_worker_task_seconds",
    "Seconds of a task, by what it does and how it ended.",
    ["role", "outcome"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600),
)


def serve(port: int) -> None:
    """Answer with what all child processes have counted, from a thread of this process."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    start_http_server(port, registry=registry)
