"""Administration of a meta server: keys, tenants' quotas, the audit log. Needs a key with the role admin."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from client._flow import AsyncDriver, Driver, Request
from contracts.access import (
    AccessKey,
    AccessKeyList,
    AccessKeyRequest,
    AuditEntry,
    AuditPage,
    NewAccessKey,
    Quota,
    TenantUsage,
)

PAGE = 100  # audit entries asked for at a time


class Admin:
    """`Metazoo.admin`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def create_key(self, request: AccessKeyRequest | Mapping[str, Any]) -> NewAccessKey:
        """Make a key; its `secret` is shown this once.

        key = metazoo.admin.create_key({"name": "Ada", "tenant": "vision", "role": "user"})
        """
        return self._driver.call(_create(request), NewAccessKey)

    def keys(self) -> list[AccessKey]:
        """Every key, oldest first.

        spare = [key.id for key in metazoo.admin.keys() if key.role == "viewer"]
        """
        return self._driver.call(Request("GET", "/admin/keys"), AccessKeyList).items

    def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key: from now on it grants nothing. Raises `NotFound`.

        metazoo.admin.revoke_key(spare[0])
        """
        return self._driver.call(_key("DELETE", key_id), AccessKey)

    def usage(self, tenant: str) -> TenantUsage:
        """A tenant's quota, and what it has used today.

        print(metazoo.admin.usage("vision").queries_today)
        """
        return self._driver.call(_tenant("GET", tenant), TenantUsage)

    def set_quota(self, tenant: str, quota: Quota | Mapping[str, Any]) -> TenantUsage:
        """Set what a tenant may use, in place of what was set before.

        metazoo.admin.set_quota("vision", {"running_jobs": 4, "queries_a_day": 100_000})
        """
        return self._driver.call(_quota(tenant, quota), TenantUsage)

    def audit(self) -> Iterator[AuditEntry]:
        """What callers asked for, newest first: every request that was more than a look.

        for entry in metazoo.admin.audit():
            print(entry.time, entry.action)
        """
        after: str | None = None
        while True:
            page = self._driver.call(_audit(after), AuditPage)
            yield from page.items
            after = page.next
            if after is None:
                return


class AsyncAdmin:
    """`AsyncMetazoo.admin`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def create_key(self, request: AccessKeyRequest | Mapping[str, Any]) -> NewAccessKey:
        """Make a key; see `Admin.create_key`."""
        return await self._driver.call(_create(request), NewAccessKey)

    async def keys(self) -> list[AccessKey]:
        """Every key, oldest first."""
        return (await self._driver.call(Request("GET", "/admin/keys"), AccessKeyList)).items

    async def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key; see `Admin.revoke_key`."""
        return await self._driver.call(_key("DELETE", key_id), AccessKey)

    async def usage(self, tenant: str) -> TenantUsage:
        """A tenant's quota, and what it has used today."""
        return await self._driver.call(_tenant("GET", tenant), TenantUsage)

    async def set_quota(self, tenant: str, quota: Quota | Mapping[str, Any]) -> TenantUsage:
        """Set what a tenant may use; see `Admin.set_quota`."""
        return await self._driver.call(_quota(tenant, quota), TenantUsage)

    async def audit(self) -> AsyncIterator[AuditEntry]:
        """What callers asked for; see `Admin.audit`."""
        after: str | None = None
        while True:
            page = await self._driver.call(_audit(after), AuditPage)
            for entry in page.items:
                yield entry
            after = page.next
            if after is None:
                return


def _body(value: AccessKeyRequest | Quota | Mapping[str, Any]) -> dict[str, Any]:
    told = value if isinstance(value, Mapping) else value.model_dump(mode="json", exclude_unset=True)
    return {"headers": {"Content-Type": "application/json"}, "content": json.dumps(dict(told)).encode()}


def _create(request: AccessKeyRequest | Mapping[str, Any]) -> Request:
    return Request("POST", "/admin/keys", **_body(request), repeatable=False)


def _key(method: str, key_id: str) -> Request:
    return Request(method, f"/admin/keys/{quote(key_id, safe='')}")


def _tenant(method: str, tenant: str) -> Request:
    return Request(method, f"/admin/tenants/{quote(tenant, safe='')}")


def _quota(tenant: str, quota: Quota | Mapping[str, Any]) -> Request:
    return Request("PUT", f"/admin/tenants/{quote(tenant, safe='')}/quota", **_body(quota))


def _audit(after: str | None) -> Request:
    return Request("GET", "/admin/audit", params={"limit": PAGE} | ({"after": after} if after else {}))
