"""The requests that are made about jobs; does no I/O."""

import json
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, SecretStr

from client._flow import Request
from contracts.jobs import JobRequest, JobStatus

PAGE = 100  # events asked for at a time


def path_of(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def retrieve(job_id: str) -> Request:
    return Request("GET", path_of(job_id))


def delete(job_id: str) -> Request:
    return Request("DELETE", path_of(job_id))


def move(job_id: str, move: str) -> Request:
    return Request("POST", f"{path_of(job_id)}/{move}")


def create(request: JobRequest | Mapping[str, Any], idempotency_key: str | None) -> Request:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Request("POST", "/v1/jobs", headers=headers, content=json.dumps(request, default=_revealed).encode())


def estimate(request: JobRequest | Mapping[str, Any], probe: bool, probe_images: int) -> Request:
    body = _revealed(request) | ({"probe": True, "probe_images": probe_images} if probe else {})
    content = json.dumps(body, default=_revealed).encode()
    headers = {"Content-Type": "application/json"}
    return Request("POST", "/v1/jobs/estimate", headers=headers, content=content, repeatable=not body.get("probe"))


def _revealed(value: object) -> Any:
    """Models as what the caller set in them; keys as they are, because this is where they are meant to go."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a job cannot hold a {type(value).__name__}")


def change(job_id: str, changes: Mapping[str, Any]) -> Request:
    headers = {"Content-Type": "application/json"}
    return Request("PATCH", path_of(job_id), headers=headers, content=json.dumps(changes, default=_revealed).encode())


def metrics(job_id: str, after: str | None) -> Request:
    return Request("GET", f"{path_of(job_id)}/metrics", params={"after": after} if after else {})


def answers(job_id: str, after: str | None) -> Request:
    return Request("GET", f"{path_of(job_id)}/answers", params={"limit": 1000} | ({"after": after} if after else {}))


def answer_path(job_id: str, name: str) -> str:
    return f"{path_of(job_id)}/answers/{quote(name, safe='')}"


def images_path(job_id: str) -> str:
    return f"{path_of(job_id)}/images"


def page(after: str | None, limit: int, status: JobStatus | str | None, tag: str | None, name: str | None) -> Request:
    given = {"after": after, "limit": limit, "status": status, "tag": tag, "name": name}
    return Request("GET", "/v1/jobs", params={name: value for name, value in given.items() if value is not None})


def events(job_id: str, after: str | None) -> Request:
    resume = {"after": after} if after else {}
    return Request("GET", f"{path_of(job_id)}/events", params={"limit": PAGE, **resume})
