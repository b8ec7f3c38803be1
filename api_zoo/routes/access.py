"""Who calls, which models there are for it, and what answering uses.

A server that hosts other models than a folder's puts its own answers to these questions into `app.state.host`, and shares
the rest.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api_zoo.answering import unauthorised
from api_zoo.inference import Model
from api_zoo.services import Services
from contracts.problems import ProblemError
from contracts.zoo import Key
from metering.keyring import Caller

SEND_A_KEY = "send a key of this zoo as Authorization: Bearer mz_…"
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


Sent = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def key_of(request: Request, services: ServicesDep, sent: Sent) -> Key:
    """The caller's key. Raises 401 for any that may not be used."""
    if other := host(request):
        return await other.key_of(request)
    key = None if sent is None else await services.keyring.authenticate(sent.credentials)
    if key is None:
        raise unauthorised(SEND_A_KEY)
    if key.revoked:
        raise unauthorised("the key was revoked: ask the host for a new one")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):  # the gate decides by Redis's clock again
        raise unauthorised("the key has expired: ask the host for a new one")
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
    """What `infer` is given for a folder's models. How the key stands is left to the gate, which looks when it charges."""
    zoo: Services = request.app.state.services
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    caller = await zoo.keyring.recognise(secret) if scheme.lower() == "bearer" else None
    if caller is None:
        raise unauthorised(SEND_A_KEY)
    return zoo, caller, found(zoo, caller, request.path_params["model"])


ModelDep = Annotated[Model, Depends(model_of)]
NamesDep = Annotated[list[str], Depends(names_of)]
