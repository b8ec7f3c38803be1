"""Adapted models as APIs: the zoo's own routes, whose caller is the server's and whose models are those of the store."""

from fastapi import Depends, FastAPI, Request

from api_zoo import routes as zoo
from api_zoo.inference import Model
from api_zoo.routes.access import Asking, Host
from api_zoo.services import Services as Hosting
from contracts.zoo import Key
from meta_server.routes.access import authenticate, owned, services
from meta_server.routes.description import problems
from meta_server.store.adapted_models import Served

MOST_LISTED = 100


def hosting(request: Request) -> Hosting:
    """What the zoo's code uses to answer."""
    return services(request).hosting


async def served(request: Request) -> Served:
    """The adapted model of the path. Raises 404 for an unknown one, 410 for one that has ended."""
    return await services(request).adapted_models.served(request.path_params["model"])


async def key_of(request: Request) -> Key:
    """The metering key that the model's answers are counted on."""
    return _key(await served(request))


def _key(found: Served) -> Key:
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


async def model_of(request: Request) -> Model:
    """The network that answers, loaded if it is not."""
    return await services(request).serving.hosted(await served(request))


async def names_of(request: Request) -> list[str]:
    """The newest adapted models of the caller's tenant."""
    caller = await authenticate(request)
    page = await services(request).adapted_models.list(tenant=caller.tenant, limit=MOST_LISTED)
    return [model.id for model in page.items]


async def asking(request: Request) -> Asking:
    """All of it for `infer`, which solves no dependencies."""
    await owned(request, services(request))
    found = await served(request)
    return hosting(request), _key(found), await services(request).serving.hosted(found)


def install(app: FastAPI) -> None:
    """Let `app` answer at `/v2`, and take image files at `/v1/models/{model}/classify`, as a zoo does."""
    app.include_router(zoo.answers, dependencies=[Depends(owned)], responses=problems(410, 422, 500))
    app.state.host = Host(hosting, key_of, model_of, names_of, asking)
