"""What the server tells Prometheus beside its requests: how many jobs are where, what waits, what is loaded."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from fastapi import Request
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from redis.exceptions import RedisError

from contracts.jobs import JobStatus
from meta_server.queue import ACQUIRE_QUEUE, ACQUIRE_QUEUES, GPU_QUEUE, GPU_QUEUES, LEARN_QUEUE, LEARN_QUEUES
from meta_server.services import Services
from meta_server.store import keys

QUEUES = {ACQUIRE_QUEUE: ACQUIRE_QUEUES, LEARN_QUEUE: LEARN_QUEUES, GPU_QUEUE: GPU_QUEUES}


async def gauges(request: Request) -> Iterable[Metric]:
    """The gauges as they are now. While Redis is away, `metazoo_redis_up` is 0 and what Redis holds is left out."""
    services: Services = request.app.state.services
    up = GaugeMetricFamily("metazoo_redis_up", "1 while Redis answers.")
    told = "Bytes of networks kept loaded by the process that answers."
    loaded = GaugeMetricFamily("metazoo_loaded_bytes", told, services.serving.loaded_bytes)
    redis: Any = services.redis
    try:
        async with redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(keys.JOBS_BY_STATUS + status)
            for queue in chain(*QUEUES.values()):
                pipe.llen(queue)
            pipe.zcard(keys.META_MODELS)
            pipe.zcard(keys.ADAPTED_MODELS)
            counts = await pipe.execute()
    except RedisError:
        up.add_metric([], 0)
        return [up, loaded]
    up.add_metric([], 1)
    jobs = GaugeMetricFamily("metazoo_jobs", "Jobs by state.", labels=["status"])
    for status, count in zip(JobStatus, counts, strict=False):
        jobs.add_metric([status], count)
    waiting = GaugeMetricFamily("metazoo_queue_tasks", "Tasks that no worker has taken.", labels=["queue"])
    lengths = iter(counts[len(JobStatus) :])
    for name, queues in QUEUES.items():
        waiting.add_metric([name], sum(next(lengths) for _ in queues))
    published = GaugeMetricFamily("metazoo_meta_models", "Meta-models published.", counts[-2])
    adapted = GaugeMetricFamily("metazoo_adapted_models", "Adapted models served.", counts[-1])
    return [up, loaded, jobs, waiting, published, adapted]
