"""What a key has used."""

from fastapi import APIRouter

from api_zoo.routes.access import KeyDep, ServicesDep
from api_zoo.routes.description import problems
from contracts.zoo import Usage

router = APIRouter(prefix="/v1", tags=["Keys"])


@router.get("/usage", summary="What the key has used", responses=problems(401, 429, 503))
async def usage(services: ServicesDep, key: KeyDep) -> Usage:
    return await services.keyring.usage(key.id)
