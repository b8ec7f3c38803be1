"""The keys of the zoo that the operator named in the settings, over the zoo's own admin API; its admin key stays here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from contracts.problems import PROBLEMS, URN, Problem, ProblemError
from contracts.zoo import Key, KeyRequest, NewKey, TopUp, Usage
from meta_server.settings import Settings

SECONDS = 10.0  # for an answer
AT_ONCE = 8  # connections to the zoo
_PASSED_ON = ("not-found", "conflict", "invalid-request")  # what a person can act on

Told = TypeVar("Told")

_KEYS: TypeAdapter[list[Key]] = TypeAdapter(list[Key])
_KEY, _NEW, _USAGE = TypeAdapter(Key), TypeAdapter(NewKey), TypeAdapter(Usage)


class ZooAdmin:
    """Every call raises `ProblemError`: what the zoo refuses as it says it, `unavailable` when it cannot be used."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @property
    def url(self) -> str:
        """Where the zoo is."""
        return str(self._http.base_url).rstrip("/")

    async def keys(self) -> list[Key]:
        """Every key, oldest first."""
        return await self._call(_KEYS, "GET", "")

    async def key(self, key_id: str) -> Key:
        """One key."""
        return await self._call(_KEY, "GET", _path(key_id))

    async def usage(self, key_id: str) -> Usage:
        """What a key was charged, in images."""
        return await self._call(_USAGE, "GET", _path(key_id) + "/usage")

    async def usages(self, keys: Sequence[Key]) -> list[Usage]:
        """What each of them was charged, in their order."""
        return await asyncio.gather(*(self.usage(key.id) for key in keys))

    async def create(self, wanted: KeyRequest) -> NewKey:
        """A new key with its secret, which nobody keeps."""
        return await self._call(_NEW, "POST", "", wanted)

    async def top_up(self, key_id: str, wanted: TopUp) -> Key:
        """The key with more images in its budget."""
        return await self._call(_KEY, "POST", _path(key_id) + "/top-up", wanted)

    async def revoke(self, key_id: str) -> Key:
        """The key, which from now on grants nothing."""
        return await self._call(_KEY, "DELETE", _path(key_id))

    async def _call(self, kind: TypeAdapter[Told], method: str, path: str, body: BaseModel | None = None) -> Told:
        content: dict[str, Any] = {} if body is None else {"json": body.model_dump(mode="json")}
        try:
            answer = await self._http.request(method, f"/admin/keys{path}", **content)
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            doubt = "" if method == "GET" else "; it may have been done: look before you do it again"
            raise ProblemError("unavailable", f"the zoo at {self.url} did not answer: {cause}{doubt}") from None
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            return kind.validate_json(answer.content)
        except ValidationError:
            raise ProblemError("unavailable", f"what answers at {self.url} is no zoo: check METAZOO_ZOO_URL") from None

    def _refusal(self, answer: httpx.Response) -> ProblemError:
        if answer.status_code == 401:
            return ProblemError(
                "unavailable", f"the zoo at {self.url} refuses its admin key: check METAZOO_ZOO_ADMIN_KEY"
            )
        try:
            told = Problem.model_validate_json(answer.content)
        except ValidationError:
            return ProblemError("unavailable", f"the zoo at {self.url} answered {answer.status_code}")
        name = told.type.removeprefix(URN)
        if name not in PROBLEMS or name not in _PASSED_ON:
            return ProblemError("unavailable", f"the zoo at {self.url} answered {answer.status_code}: {told.detail}")
        return ProblemError(name, told.detail, errors=told.errors)


def _path(key_id: str) -> str:
    return f"/{quote(key_id, safe='')}"


@asynccontextmanager
async def zoo_admin(settings: Settings) -> AsyncIterator[ZooAdmin | None]:
    """The zoo that the settings name; None where they name none."""
    if not settings.zoo_url or not settings.zoo_admin_key:
        yield None
        return
    async with httpx.AsyncClient(
        base_url=settings.zoo_url,
        headers={"Authorization": f"Bearer {settings.zoo_admin_key.get_secret_value()}"},
        timeout=SECONDS,
        limits=httpx.Limits(max_connections=AT_ONCE),
        trust_env=False,  # a proxy would see the key
    ) as http:
        yield ZooAdmin(http)
