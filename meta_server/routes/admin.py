"""Keys, quotas and the audit log over REST, for keys with the role admin."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from contracts.access import (
    AccessKey,
    AccessKeyList,
    AccessKeyRequest,
    AuditPage,
    NewAccessKey,
    Quota,
    TenantName,
    TenantUsage,
)
from meta_server.routes.access import ServicesDep, administrator
from meta_server.routes.description import Limit, problems
from meta_server.store.events import STREAM_ID

KeyId = Annotated[str, Path(description="The key's id.", max_length=100)]
Tenant = Annotated[TenantName, Path(description="The tenant's name.")]

router = APIRouter(
    prefix="/admin",
    tags=["admin"],
    dependencies=[Depends(administrator)],
    responses=problems(401, 403, 422, 429, 500, 503),
)


@router.post("/keys", status_code=201, responses=problems(400, 408, 413, 415))
async def create_key(request: AccessKeyRequest, services: ServicesDep) -> NewAccessKey:
    """Make a key. Its secret is shown this once."""
    return await services.access.create(request)


@router.get("/keys")
async def list_keys(services: ServicesDep) -> AccessKeyList:
    """Every key, oldest first."""
    return AccessKeyList(items=await services.access.list())


@router.delete("/keys/{key_id}", responses=problems(404))
async def revoke_key(key_id: KeyId, services: ServicesDep) -> AccessKey:
    """Revoke a key: from now on it grants nothing."""
    return await services.access.revoke(key_id)


@router.get("/tenants/{tenant}")
async def tenant_usage(tenant: Tenant, services: ServicesDep) -> TenantUsage:
    """A tenant's quota and what it has used today."""
    return await services.access.usage(tenant)


@router.put("/tenants/{tenant}/quota", responses=problems(400, 408, 413, 415))
async def set_quota(tenant: Tenant, quota: Quota, services: ServicesDep) -> TenantUsage:
    """Set what a tenant may use, in place of what was set before. It counts at once."""
    return await services.access.set_quota(tenant, quota)


@router.get("/audit")
async def audit_log(
    services: ServicesDep,
    after: Annotated[str | None, Query(description="The `next` of the page before.", pattern=STREAM_ID)] = None,
    limit: Limit = 100,
) -> AuditPage:
    """What callers asked for, newest first: every request that was more than a look."""
    return await services.access.audit(after=after, limit=limit)
