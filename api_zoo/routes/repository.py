"""What the Open Inference Protocol v2 tells of a server and its models."""

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import Field

from api_zoo.routes.access import ModelDep, NamesDep, ServicesDep
from api_zoo.routes.description import problems
from contracts._base import Record
from contracts.zoo import ModelMetadata, ServerMetadata
from metering.scripts import store_errors

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])


class LiveStatus(Record):
    """The process answers."""

    live: bool = Field(description="Always true.")


class ReadyStatus(Record):
    """Requests can be answered."""

    ready: bool = Field(description="Always true; a 503 otherwise.")


class ModelReady(Record):
    """The model can be asked."""

    name: str = Field(description="As in its path.")
    ready: bool = Field(description="Always true.")


class IndexRequest(Record):
    """Which models to list."""

    ready: bool = Field(False, description="Only models that are ready; all of this zoo always are.")


class IndexEntry(Record):
    """A model of the repository."""

    name: str = Field(description="What its path calls it.")
    version: str = Field("1", description="Always the one.")
    state: str = Field("READY", description="Always `READY`.")
    reason: str = Field("", description="Always empty.")


@router.get("", summary="The server and its extensions")
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="metazoo", version=version("metazoo"), extensions=["binary_tensor_data"])


@router.get("/health/live", summary="Whether the process answers")
async def live() -> LiveStatus:
    return LiveStatus(live=True)


@router.get("/health/ready", summary="Whether requests can be answered", responses=problems(503))
async def ready(services: ServicesDep) -> ReadyStatus:
    with store_errors():
        await services.redis.ping()
    return ReadyStatus(ready=True)


@router.post(
    "/repository/index", summary="The models that the key may use", responses=problems(400, 401, 422, 429, 503)
)
async def index(names: NamesDep, wanted: IndexRequest | None = None) -> list[IndexEntry]:
    return [IndexEntry(name=name) for name in names]


@router.get("/models/{model}", summary="What a model takes and gives", responses=problems(401, 403, 404, 429, 503))
async def model_metadata(services: ServicesDep, model: ModelDep) -> ModelMetadata:
    return model.metadata(services.settings.max_images)


@router.get(
    "/models/{model}/ready", summary="Whether a model can be asked", responses=problems(401, 403, 404, 429, 503)
)
async def model_ready(model: ModelDep) -> ModelReady:
    return ModelReady(name=model.name, ready=True)
