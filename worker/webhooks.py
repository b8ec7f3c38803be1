"""Tells a job's webhook what became of the job, signed by the Standard Webhooks scheme, until it has answered 2xx.

A message is `{"type": "job.succeeded", "timestamp": …, "data": {"job", "name", "status", "reason", "meta_model"}}`. Its
`webhook-id` is the same each time it is sent: a message may come twice, after an answer that was lost, and never silently not.
"""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import structlog
from standardwebhooks.webhooks import Webhook as Signer

from contracts.job_records import Event
from contracts.jobs import Job
from contracts.webhooks import Webhook
from meta_server.store import keys
from meta_server.store.jobs import WEBHOOK
from worker.context import Context

WAITS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between attempts, as Standard Webhooks recommends; after the last an event is given up."""
TIMEOUT = 20.0  # seconds in which a receiver must have answered
GONE = 410

log = structlog.get_logger()


async def notify(context: Context, job_id: str) -> None:
    """Tell what is untold, in order, until something fails. Raises `StoreUnavailable`."""
    webhooks, store = context.webhooks, context.store
    lease = await store.service_leases.take(keys.job(job_id, "webhook"), "notify", context.holder)
    if lease is None:
        return  # somebody else tells it
    try:
        job = await store.get(job_id)
        secret = await store.api_key(job_id, WEBHOOK)
        if job.request.webhook is None or secret is None:
            return await webhooks.forget(job_id)
        for event in await webhooks.untold(job_id):
            status = await _send(context, job, event, job.request.webhook, secret.get_secret_value())
            if status == GONE:
                return await webhooks.forget(job_id)
            if status is None or not 200 <= status < 300:
                tries = await webhooks.tries(job_id)
                if tries < len(WAITS):
                    return await webhooks.failed(job_id, WAITS[tries])
                log.warning("webhook_given_up", event_id=event.id)
            await webhooks.told(job_id, event)
            await store.service_leases.renew(lease)
    finally:
        await store.service_leases.release(lease)


async def _send(context: Context, job: Job, event: Event, webhook: Webhook, secret: str) -> int | None:
    """One attempt: the status answered, None when there was no answer."""
    status = event.data["status"]
    body = json.dumps(
        {
            "type": f"job.{status}",
            "timestamp": event.time.isoformat(),
            "data": {
                "job": job.id,
                "name": job.name,
                "status": status,
                "reason": event.data.get("reason"),
                "meta_model": job.meta_model if status == "succeeded" else None,
            },
        }
    )
    message_id, now = f"{job.id}.{event.id}", datetime.now(UTC)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "metazoo",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(message_id, now, body),
    }
    transport = context.transport()
    try:
        async with (
            httpx.AsyncClient(transport=transport, timeout=TIMEOUT, follow_redirects=False) as http,
            asyncio.timeout(TIMEOUT),
            http.stream("POST", webhook.url, content=body, headers=headers) as answer,
        ):
            return answer.status_code  # what it says beyond its status is of no interest
    except (httpx.HTTPError, TimeoutError) as error:
        log.info("webhook_failed", cause=type(error).__name__)
        return None
