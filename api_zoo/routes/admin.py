"""The REST interface for the host: keys and what they have used. Needs the admin key, which no teacher URL ever takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api_zoo.routes.access import ServicesDep, administrator
from api_zoo.routes.description import problems
from contracts.problems import Fault, ProblemError
from contracts.zoo import AuditEntry, Key, KeyRequest, NewKey, TopUp, Usage
from metering.keyring import CannotTopUp, UnknownKey

_bearer = HTTPBearer(auto_error=False, scheme_name="AdminKey", description="The zoo's admin key.")


async def authorised(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
    """Refuses callers without the admin key."""
    administrator(request)


@contextmanager
def _known() -> Iterator[None]:
    try:
        yield
    except UnknownKey as error:
        raise ProblemError("not-found", f"{error}: GET /admin/keys lists those there are") from None


router = APIRouter(prefix="/admin/keys", tags=["Admin"], dependencies=[Depends(authorised)])
KeyId = Annotated[str, Path(description="The key's id.", max_length=100)]


@router.post("", status_code=201, summary="Make a key", responses=problems(400, 401, 415, 422, 429, 503))
async def create(services: ServicesDep, wanted: KeyRequest) -> NewKey:
    unknown = [model for model in wanted.models or [] if model not in services.models]
    if unknown:
        wrong = [Fault(field="models", message=f"there is no model {model}") for model in unknown]
        raise ProblemError("invalid-request", "no key was made", errors=wrong)
    return await services.keyring.create(wanted)


@router.get("", summary="Every key, oldest first", responses=problems(401, 429, 503))
async def list_keys(services: ServicesDep) -> list[Key]:
    return await services.keyring.list()


@router.get("/{key_id}", summary="One key", responses=problems(401, 404, 429, 503))
async def retrieve(services: ServicesDep, key_id: KeyId) -> Key:
    with _known():
        return await services.keyring.get(key_id)


@router.delete("/{key_id}", summary="Revoke a key", responses=problems(401, 404, 429, 503))
async def revoke(services: ServicesDep, key_id: KeyId) -> Key:
    with _known():
        return await services.keyring.revoke(key_id)


@router.get("/{key_id}/usage", summary="What a key has used", responses=problems(401, 404, 429, 503))
async def usage(services: ServicesDep, key_id: KeyId) -> Usage:
    with _known():
        return await services.keyring.usage(key_id)


@router.post(
    "/{key_id}/top-up", summary="Raise a key's budget", responses=problems(400, 401, 404, 409, 415, 422, 429, 503)
)
async def top_up(services: ServicesDep, key_id: KeyId, wanted: TopUp) -> Key:
    try:
        with _known():
            return await services.keyring.top_up(key_id, wanted.images)
    except CannotTopUp as error:
        raise ProblemError("conflict", f"{error}; nothing was changed") from None


@router.get(
    "/{key_id}/audit", summary="A key's charges and refunds, oldest first", responses=problems(401, 404, 422, 429, 503)
)
async def audit(
    services: ServicesDep,
    key_id: KeyId,
    after: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,15}-[0-9]{1,15}$", description="The id of the last entry seen.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries to answer.")] = 100,
) -> list[AuditEntry]:
    with _known():
        await services.keyring.get(key_id)
    return [
        AuditEntry.model_validate(asdict(entry))
        for entry in await services.gate.audit(key_id, after=after, limit=limit)
    ]
