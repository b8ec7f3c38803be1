"""What workers count is read from all of their processes."""

import subprocess
import sys
from pathlib import Path

PARENT = """
import multiprocessing, urllib.request
from metazoo.redis_server import free_port
from worker import metrics
from worker.tasks import _timed

def child(outcome):
    metrics.images.labels(outcome).inc(5)
    with _timed("acquire:a0") as timed:
        timed.outcome = outcome

context = multiprocessing.get_context("fork")
children = [context.Process(target=child, args=(outcome,)) for outcome in ("confirmed", "confirmed", "released")]
[process.start() for process in children]
[process.join() for process in children]
port = free_port()
metrics.serve(port)
print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
"""


def test_the_parent_tells_of_all_children(tmp_path: Path) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    told = subprocess.run(
        [sys.executable, "-c", PARENT], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert 'metazoo_worker_images_total{outcome="confirmed"} 10.0' in told
    assert 'metazoo_worker_images_total{outcome="released"} 5.0' in told
    assert 'metazoo_worker_task_seconds_count{outcome="confirmed",role="acquire"} 2.0' in told
