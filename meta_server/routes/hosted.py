"""Adapted models as APIs: the zoo's own routes, whose caller is the server's and whose models are those of the store."""

from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request

from api_zoo import routes as zoo
from api_zoo.inference import Model
from api_zoo.services import Services as Hosting
from contracts.zoo import Key
from meta_server.routes.access import CallerDep, ServicesDep, owned
from meta_server.routes.access import services as opened
from meta_server.routes.description import problems
from meta_server.store.adapted_models import Served

MOST_LISTED = 100


def hosting(services: ServicesDep) -> Hosting:
    """What the zoo's code uses to answer."""
    return services.hosting


async def served(
    services: ServicesDep,
    model: Annotated[str, Path(description="The adapted model's id.", max_length=200)],
    _: CallerDep,
) -> Served:
    """The adapted model of the path. Raises 404 for an unknown one, 410 for one that has ended."""
    return await services.adapted_models.served(model)


ServedDep = Annotated[Served, Depends(served)]


def key_of(found: ServedDep) -> Key:
    """The metering key that the model's answers are counted on."""
    return Key(
        id=found.key_id,
        name=found.model.id,
        created_at=found.model.created_at,
        budget=None,
        spent=0,
        images_per_second=None,
        burst=None,
        models=[found.model.id],
        revoked=False,
    )


async def model_of(services: ServicesDep, found: ServedDep) -> Model:
    """The network that answers, loaded if it is not."""
    return await services.serving.hosted(found)


async def names_of(services: ServicesDep, caller: CallerDep) -> list[str]:
    """The newest adapted models of the caller's tenant."""
    page = await services.adapted_models.list(tenant=caller.tenant, limit=MOST_LISTED)
    return [model.id for model in page.items]


async def asking(request: Request) -> zoo.Asking:
    """The same for `infer`, which solves no dependencies: replaced ones are analysed anew at each request."""
    services = opened(request)
    await owned(request, services)
    found = await services.adapted_models.served(request.path_params["model"])
    return services.hosting, key_of(found), await services.serving.hosted(found)


def install(app: FastAPI) -> None:
    """Let `app` answer at `/v2`, and take image files at `/v1/models/{model}/classify`, as a zoo does."""
    for router in (zoo.v2, zoo.files):
        app.include_router(router, dependencies=[Depends(owned)], responses=problems(410, 422, 500))
    app.state.asking = asking
    app.dependency_overrides |= {
        zoo.services: hosting,
        zoo.key_of: key_of,
        zoo.model_of: model_of,
        zoo.names_of: names_of,
    }
