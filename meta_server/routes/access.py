"""What every route needs: the opened services, and a caller who may call."""

import secrets
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from contracts.problems import ProblemError
from meta_server.services import Services

_bearer = HTTPBearer(auto_error=False, description="The server's API key.")


def services(request: Request) -> Services:
    """What the application opened when it started."""
    opened: Services = request.app.state.services
    return opened


async def authorised(request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
    """Refuses callers without the key; takes as long for a key that is nearly right."""
    wanted: bytes = request.app.state.key_digest
    if sent is None or not secrets.compare_digest(sha256(sent.credentials.encode()).digest(), wanted):
        detail = "send the server's key as Authorization: Bearer KEY"
        raise ProblemError("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


ServicesDep = Annotated[Services, Depends(services)]
