"""A request as its job's record and ledger keep it, and what is refused of one before anything is kept."""

import json
from collections.abc import Mapping
from typing import Any

from contracts._base import MASKED
from contracts.access import DEFAULT_TENANT
from contracts.jobs import JobRequest
from contracts.money import micro
from contracts.problems import Fault, ProblemError
from contracts.webhooks import Webhook
from metering.ledger import budget_fields


def found_by(request: JobRequest) -> dict[str, str]:
    """The request as fields of the record, with those that lists are filtered by."""
    return {"request": request.model_dump_json(), "name": request.name or "", "tags": json.dumps(request.tags)}


def webhook_secret(webhook: Webhook) -> str:
    """The secret that signs. Raises `ProblemError` (`invalid-request`) for one that was read back from the service."""
    secret = webhook.secret.get_secret_value()
    if secret == MASKED:
        fault = Fault(field="webhook.secret", message="is masked: send the secret itself")
        raise ProblemError("invalid-request", "1 fault; nothing was done", errors=[fault])
    return secret


def ledger_fields(request: JobRequest) -> dict[str, str]:
    """The limits and prices of a request as its ledger takes them."""
    budget = request.budget
    priced = {api_id: api.price_per_1k for api_id, api in zip(request.api_ids, request.apis, strict=True)}
    return budget_fields(
        budget.queries,
        budget.queries_per_api,
        cost=None if budget.cost is None else micro(budget.cost),
        seconds=budget.seconds,
        prices={api: micro(price) for api, price in priced.items() if price is not None},
        currency=budget.currency,
    )


def refuse_lower(request: JobRequest, raised: Mapping[str, Any]) -> None:
    """A limit that is below the one there, or that would come where there was none, is refused."""
    found = []
    for limit, value in raised.items():
        before = getattr(request.budget, limit)
        if before is None or float(value) < float(before):
            there = "no such limit" if before is None else str(before)
            found.append(Fault(field=f"budget.{limit}", message=f"the job has {there}: a budget is only raised"))
    if found:
        raise ProblemError("invalid-request", "a budget is only raised; nothing was changed", errors=found)


def mark_name(tenant: str, idempotency_key: str) -> bytes:
    """What two tenants' keys differ in, also when they are spelt the same."""
    return (idempotency_key if tenant == DEFAULT_TENANT else f"{tenant}\n{idempotency_key}").encode()


def canonical(request: JobRequest) -> bytes:
    """The request as bytes that are equal for equal requests, API keys included."""
    body = request.model_dump(mode="json")
    for told, api in zip(body["apis"], request.apis, strict=True):
        told["api_key"] = api.api_key and api.api_key.get_secret_value()
    if request.webhook is not None:
        body["webhook"]["secret"] = request.webhook.secret.get_secret_value()
    return json.dumps(body, sort_keys=True).encode()
