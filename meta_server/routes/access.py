"""What every route needs: the opened services, and a caller who may call."""

import secrets
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from contracts.problems import ProblemError
from meta_server.services import Services
from meta_server.session import Sessions, forged

_bearer = HTTPBearer(auto_error=False, description="The server's API key.")


def services(request: Request) -> Services:
    """What the application opened when it started."""
    opened: Services = request.app.state.services
    return opened


def sessions(request: Request) -> Sessions:
    """What seals keys into cookies."""
    made: Sessions = request.app.state.sessions
    return made


async def authorised(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
    """Refuses callers without the key, and other sites' pages that use the cookie of one who has it."""
    key = sent.credentials if sent is not None else sessions(request).key(request)
    check_key(request, key)
    if sent is None and forged(request):
        raise ProblemError("forbidden", "a page of another site may change nothing here: send the key as a bearer key")


def check_key(request: Request, key: str | None) -> None:
    """Refuses a key that is not the server's; takes as long for one that is nearly right."""
    wanted: bytes = request.app.state.key_digest
    if key is None or not secrets.compare_digest(sha256(key.encode()).digest(), wanted):
        detail = "send the server's key as Authorization: Bearer KEY"
        raise ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


ServicesDep = Annotated[Services, Depends(services)]
