"""Who may call the meta server: keys with roles, tenants with quotas, and the record of what was asked."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field, StringConstraints

from contracts._base import Input, Name, Record

TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
DEFAULT_TENANT = "default"
"""Whose are the jobs of the server's own key, and of the time before there were tenants."""


class Role(StrEnum):
    """What a key may do."""

    ADMIN = "admin"  # all that a user may, and keys, quotas and the audit log of every tenant
    USER = "user"  # what its tenant has: look, start, change, delete
    VIEWER = "viewer"  # look at what its tenant has


class AccessKeyRequest(Input):
    """A key to be made."""

    name: Name = Field(description="Whose it is or what it is for.")
    tenant: TenantName = Field(DEFAULT_TENANT, description="Whose jobs and models it sees.")
    role: Role = Field(Role.USER, description="What it may do.")
    expires_at: AwareDatetime | None = Field(None, description="From when on it grants nothing; null for never.")


class AccessKey(Record):
    """A key of the meta server."""

    id: str = Field(description="Names the key; no secret.")
    name: str = Field(description="Whose it is or what it is for.")
    tenant: str = Field(description="Whose jobs and models it sees.")
    role: Role = Field(description="What it may do.")
    created_at: datetime = Field(description="When it was made.")
    expires_at: datetime | None = Field(description="From when on it grants nothing; null for never.")
    revoked: bool = Field(description="It grants nothing any more.")


class NewAccessKey(AccessKey):
    """A key just made."""

    secret: str = Field(description="What the caller sends. Shown this once; its SHA-256 alone is kept.")


class AccessKeyList(Record):
    """Every key, oldest first."""

    items: list[AccessKey] = Field(description="The keys.")


class Quota(Input):
    """What a tenant may use; null for no limit."""

    running_jobs: int | None = Field(None, ge=0, description="Jobs that have not ended, at once.")
    queries_a_day: int | None = Field(
        None, ge=0, description="Images sent to APIs from midnight to midnight UTC; then its jobs pause and say so."
    )


class TenantUsage(Record):
    """A tenant's quota, and what it has used of it."""

    tenant: str = Field(description="Its name.")
    quota: Quota = Field(description="What it may use.")
    queries_today: int = Field(description="Images sent to APIs since midnight UTC, those under way included.")


class AuditEntry(Record):
    """Something that a caller asked for and that was not only looking."""

    id: str = Field(description="Place in the log; ids grow.")
    time: datetime = Field(description="When.")
    tenant: str = Field(description="Whose key it was.")
    key: str = Field(description="The key's id; `settings` for the server's own.")
    action: str = Field(description="Method and path.")
    status: int = Field(description="HTTP status of the answer.")


class AuditPage(Record):
    """A page of the audit log, newest first; pass `next` as `after` for the following page."""

    items: list[AuditEntry] = Field(description="The entries.")
    next: str | None = Field(description="Cursor of the following page; null on the last.")
