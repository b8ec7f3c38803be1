"""Keys of the operator's zoo, for the dashboard's own scripts: programs ask the zoo itself."""

from typing import Annotated

from fastapi import APIRouter, Depends

from contracts.problems import ProblemError
from contracts.zoo import Key, KeyRequest, NewKey, TopUp
from meta_server.routes.access import ServicesDep, administrator
from meta_server.routes.admin import KeyId
from meta_server.zoo_admin import ZooAdmin


async def zoo(services: ServicesDep) -> ZooAdmin:
    """The zoo. Raises `ProblemError` (`not-found`) where the settings name none."""
    if services.zoo is None:
        raise ProblemError("not-found", "this server knows no zoo: set METAZOO_ZOO_URL and METAZOO_ZOO_ADMIN_KEY")
    return services.zoo


ZooDep = Annotated[ZooAdmin, Depends(zoo)]

router = APIRouter(prefix="/admin/zoo/keys", dependencies=[Depends(administrator)], include_in_schema=False)


@router.post("", status_code=201)
async def create(wanted: KeyRequest, zoo: ZooDep) -> NewKey:
    """Make a key. Its secret is shown this once."""
    return await zoo.create(wanted)


@router.post("/{key_id}/top-up")
async def top_up(key_id: KeyId, wanted: TopUp, zoo: ZooDep) -> Key:
    """Raise a key's budget."""
    return await zoo.top_up(key_id, wanted)


@router.delete("/{key_id}")
async def revoke(key_id: KeyId, zoo: ZooDep) -> Key:
    """Revoke a key: from now on it grants nothing."""
    return await zoo.revoke(key_id)
