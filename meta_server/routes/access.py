"""What every route needs: the opened services, and a caller who may call.

A key stands for a role in one tenant. The server's own key (`METAZOO_SERVER_API_KEY`) is the admin of the default tenant.
What belongs to another tenant is not there.
"""

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from contracts.access import DEFAULT_TENANT, Role
from contracts.problems import ProblemError
from edge.failures import Failures
from edge.gatekeeper import SAFE
from meta_server.services import Services
from meta_server.session import Sessions, forged
from meta_server.store import keys

_bearer = HTTPBearer(auto_error=False, description="A key of the server.")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    tenant: str
    role: Role
    key: str  # its id; `settings` for the server's own


def services(request: Request) -> Services:
    """What the application opened when it started."""
    opened: Services = request.app.state.services
    return opened


def sessions(request: Request) -> Sessions:
    """What seals keys into cookies."""
    made: Sessions = request.app.state.sessions
    return made


async def authenticate(request: Request) -> Caller:
    """Who calls, by bearer key or by a browser's cookie; looked up once a request.

    Raises `ProblemError`: `unauthorized`; `rate-limited` after many wrong keys; `forbidden` for a key that may only look, and
    for pages of other sites that use the cookie of one who has a key. Raises `StoreUnavailable`.
    """
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    bearer = sent.strip() if scheme.lower() == "bearer" else None
    caller = await caller_of(request, bearer or sessions(request).key(request))
    if not bearer and forged(request):
        raise ProblemError("forbidden", "a page of another site may change nothing here: send the key as a bearer key")
    if caller.role is Role.VIEWER and request.method not in SAFE:
        raise ProblemError("forbidden", "this key may only look: ask for one with the role user")
    request.state.caller = caller
    structlog.contextvars.bind_contextvars(tenant=caller.tenant)  # until the request's task ends
    return caller


async def caller_of(request: Request, key: str | None) -> Caller:
    """Whose key it is; takes as long for one that is nearly right. Raises as `authenticate` does."""
    wanted: bytes = request.app.state.key_digest
    if key is not None:
        if secrets.compare_digest(sha256(key.encode()).digest(), wanted):
            return Caller(DEFAULT_TENANT, Role.ADMIN, "settings")
        found = await services(request).access.find(key)
        if found is not None:
            return Caller(found.tenant, found.role, found.id)
        failures: Failures = request.app.state.failures
        failures.count(request)
    detail = "send a key of the server as Authorization: Bearer KEY"
    raise ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


async def authorised(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> Caller:
    """Refuses callers without a key, and other sites' pages that use the cookie of one who has it."""
    return await authenticate(request)


async def _services(request: Request) -> Services:
    """As `services`; FastAPI would send a plain function to a thread."""
    return services(request)


CallerDep = Annotated[Caller, Depends(authorised)]
ServicesDep = Annotated[Services, Depends(_services)]

_RECORDS = {
    "job_id": ("job", lambda job_id: keys.job(job_id, "record")),
    "meta_model_id": ("meta-model", keys.meta_model),
    "adapted_id": ("adapted model", keys.adapted_model),
    "model": ("adapted model", keys.adapted_model),
    "image_set": ("image set", keys.image_set),
}
"""Path parameter -> what it names, and where that is kept."""


async def owned(request: Request, opened: ServicesDep) -> None:
    """Refuses what belongs to another tenant as what is not there. Raises `ProblemError`, `StoreUnavailable`."""
    for name in request.path_params.keys() & _RECORDS:
        await require_owned(await authenticate(request), opened, name, request.path_params[name])
        structlog.contextvars.bind_contextvars(**{name: request.path_params[name]})


async def require_owned(caller: Caller, opened: Services, kind: str, name: str) -> None:
    """As `owned`, for what a body names; `kind` is the path parameter that would name it."""
    noun, record = _RECORDS[kind]
    if (await opened.access.tenant_of(record(name)) or DEFAULT_TENANT) != caller.tenant:
        raise ProblemError("not-found", f"there is no {noun} {name}")


async def administrator(caller: CallerDep) -> None:
    """Refuses keys that may not administer the server."""
    if caller.role is not Role.ADMIN:
        raise ProblemError("forbidden", "this needs a key with the role admin")
