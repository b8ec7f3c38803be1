"""Whether the server lives, and whether it can serve."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meta_server.routes.access import ServicesDep
from meta_server.routes.description import problems
from metering.scripts import store_errors

router = APIRouter(prefix="/health", tags=["health"])


class Health(BaseModel):
    """Said by a service that can serve."""

    status: str = Field("ok", description="Always `ok`.")


@router.get("/live")
async def live() -> Health:
    """The process runs."""
    return Health()


@router.get("/ready", responses=problems(503))
async def ready(services: ServicesDep) -> Health:
    """Requests can be served: Redis answers."""
    with store_errors():
        await services.redis.ping()
    return Health()
