"""Who calls, which models there are for it, and what answering uses.

A server that hosts other models than a folder's puts its own answers to these questions into `app.state.host`, and shares
the rest.
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api_zoo.answering import EXPIRED, REVOKED, unauthorised
from api_zoo.inference import Model
from api_zoo.services import Services
from contracts.problems import ProblemError
from contracts.zoo import Key
from edge.failures import Failures
from metering.keyring import Caller

SEND_A_KEY = "send a key of this zoo as Authorization: Bearer mz_…"
SEND_THE_ADMIN_KEY = "send the zoo's admin key as Authorization: Bearer KEY"
_bearer = HTTPBearer(auto_error=False, description="An API key of this zoo: mz_ID_SECRET.")

Asking = tuple[Services, Caller | Key, Model]
"""Who asks which model, and what answering uses."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a server that hosts other models than a folder's answers the same questions with.

    FastAPI's own way, `dependency_overrides`, analyses every dependency of the application anew at each request.
    """

    services: Callable[[Request], Services]
    key_of: Callable[[Request], Awaitable[Key]]
    model_of: Callable[[Request], Awaitable[Model]]
    names_of: Callable[[Request], Awaitable[list[str]]]
    asking: Callable[[Request], Awaitable[Asking]]


def host(request: Request) -> Host | None:
    """The application's own, if it hosts other models."""
    other: Host | None = getattr(request.app.state, "host", None)
    return other


async def services(request: Request) -> Services:
    """What the application opened when it started."""
    other = host(request)
    opened: Services = request.app.state.services if other is None else other.services(request)
    return opened


ServicesDep = Annotated[Services, Depends(services)]


def refused(request: Request, why: str) -> ProblemError:
    """The 401 to a key that may not be used. Raises 429 once too many came from the same address."""
    failures: Failures = request.app.state.failures
    failures.count(request)
    return unauthorised(why)


async def authenticate(request: Request) -> None:
    """Refuses, before its body is read, a request without a key that stands; below `/admin` that is the host's key.

    How a caller's key stands is known as of a second ago; the gate looks again when it charges.
    """
    if request.scope["path"].startswith("/admin/"):
        administrator(request)
    else:
        await recognised(request)


def bearer(request: Request) -> str | None:
    """The key that was sent, if one was."""
    told = next((value.decode("latin-1") for name, value in request.scope["headers"] if name == b"authorization"), "")
    scheme, _, sent = told.partition(" ")
    return sent.strip() if scheme.lower() == "bearer" else None


def administrator(request: Request) -> None:
    """Refuses callers without the admin key; takes as long for one that is nearly right."""
    zoo: Services = request.app.state.services
    sent, wanted = bearer(request), zoo.settings.admin_key.get_secret_value()
    if sent is None:
        raise unauthorised(SEND_THE_ADMIN_KEY)
    if not secrets.compare_digest(sha256(sent.encode()).digest(), sha256(wanted.encode()).digest()):
        raise refused(request, SEND_THE_ADMIN_KEY)


async def recognised(request: Request) -> Caller:
    """Whose key was sent; looked up once a request. Raises 401 for any that may not be used, 429 after too many."""
    state = request.scope.setdefault("state", {})
    known: Caller | None = state.get("caller")
    if known is not None:
        return known
    zoo: Services = request.app.state.services
    sent = bearer(request)
    if sent is None:
        raise unauthorised(SEND_A_KEY)
    caller = await zoo.keyring.recognise(sent)
    if caller is None:
        raise refused(request, SEND_A_KEY)
    if caller.revoked:
        raise refused(request, REVOKED)
    if caller.expires is not None and caller.expires <= time.time():
        raise refused(request, EXPIRED)
    state["caller"] = caller
    return caller


Sent = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def key_of(request: Request, services: ServicesDep, sent: Sent) -> Key:
    """The caller's key. Raises 401 for any that may not be used."""
    if other := host(request):
        return await other.key_of(request)
    if sent is None:
        raise unauthorised(SEND_A_KEY)
    key = await services.keyring.authenticate(sent.credentials)
    if key is None:
        raise refused(request, SEND_A_KEY)
    if key.revoked:
        raise refused(request, REVOKED)
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):  # the gate decides by Redis's clock again
        raise refused(request, EXPIRED)
    return key


KeyDep = Annotated[Key, Depends(key_of)]


ModelName = Annotated[str, Path(description="The model's name.", max_length=200)]


def found(services: Services, caller: Caller | Key, model: str) -> Model:
    """The model of a name. Raises 404 for an unknown one, 403 for one that the key may not use."""
    hosted = services.models.get(model)
    if hosted is None:
        raise ProblemError("not-found", f"there is no model {model!r}: POST /v2/repository/index lists those there are")
    if caller.models is not None and model not in caller.models:
        raise ProblemError("forbidden", f"the key may not use {model}: POST /v2/repository/index lists what it may")
    return hosted


async def model_of(request: Request, services: ServicesDep, key: KeyDep, model: ModelName) -> Model:
    """The model of the path, for a key that stands."""
    if other := host(request):
        return await other.model_of(request)
    return found(services, key, model)


async def names_of(request: Request, services: ServicesDep, sent: Sent) -> list[str]:
    """The models that the key may use."""
    if other := host(request):
        return await other.names_of(request)
    key = await key_of(request, services, sent)
    return [name for name in services.models if key.models is None or name in key.models]


async def asking(request: Request) -> Asking:
    """What `infer` is given for a folder's models."""
    zoo: Services = request.app.state.services
    caller = await recognised(request)
    return zoo, caller, found(zoo, caller, request.path_params["model"])


ModelDep = Annotated[Model, Depends(model_of)]
NamesDep = Annotated[list[str], Depends(names_of)]
