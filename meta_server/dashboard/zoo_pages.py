"""Pages of the operator's zoo: its keys, and what was charged to them. For keys of the server with the role admin."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from contracts.zoo import Key, Usage
from meta_server.dashboard.forms import ZOO_KEY
from meta_server.dashboard.look import page
from meta_server.routes.access import ServicesDep, administrator
from meta_server.routes.admin import KeyId
from meta_server.routes.zoo_keys import ZooDep

PAGE = 25  # keys
CHARTED = 20  # keys whose use is asked for and drawn: those charged most
DAYS = 30  # drawn at most

router = APIRouter(prefix="/zoo", dependencies=[Depends(administrator)])


class KeyState(StrEnum):
    """What a key is still good for."""

    ACTIVE = "active"
    SPENT = "spent"
    EXPIRED = "expired"
    REVOKED = "revoked"


def state_of(key: Key) -> KeyState:
    """How a key stands now."""
    if key.revoked:
        return KeyState.REVOKED
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return KeyState.EXPIRED
    return KeyState.SPENT if key.budget is not None and key.spent >= key.budget else KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class DailyUse:
    """Images charged by day: `series` holds a number for each of `days`, the busiest first."""

    days: Sequence[date]
    series: Sequence[tuple[str, Sequence[int]]]

    @property
    def total(self) -> int:
        """Images on all of these days."""
        return sum(sum(counts) for _, counts in self.series)


def daily(charges: Sequence[tuple[date, str, int]]) -> DailyUse:
    """What was charged, by day and name, over the last days that saw any; days in between are there too, empty."""
    if not charges:
        return DailyUse([], [])
    newest = max(day for day, _, _ in charges)
    first = max(min(day for day, _, _ in charges), newest - timedelta(days=DAYS - 1))
    days = [first + timedelta(days=at) for at in range((newest - first).days + 1)]
    counted: dict[str, Counter[date]] = {}
    for day, name, images in charges:
        if day >= first:
            counted.setdefault(name, Counter())[day] += images
    series = [(name, [by_day[day] for day in days]) for name, by_day in counted.items()]
    return DailyUse(days, sorted(series, key=lambda one: (-sum(one[1]), one[0])))


def by_model(usages: Sequence[Usage]) -> DailyUse:
    """Use of these keys together, by day and model."""
    return daily(
        [(day, model, n) for usage in usages for day, models in usage.per_day.items() for model, n in models.items()]
    )


def by_key(keys: Sequence[Key], usages: Sequence[Usage]) -> DailyUse:
    """Use of these keys, by day and key; keys of one name are told apart by the end of their ids."""
    names = Counter(key.name for key in keys)
    labels = [key.name if names[key.name] == 1 else f"{key.name} {key.id[-4:]}" for key in keys]
    used = zip(labels, usages, strict=True)
    return daily([(day, label, sum(m.values())) for label, usage in used for day, m in usage.per_day.items()])


@router.get("")
async def zoo_keys(
    request: Request,
    services: ServicesDep,
    state: Annotated[KeyState | None, Query()] = None,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Every key, newest first, and what the busiest were charged."""
    if services.zoo is None:
        return page(request, "zoo_off.html")
    keys = (await services.zoo.keys())[::-1]
    busiest = sorted((key for key in keys if key.spent), key=lambda key: -key.spent)[:CHARTED]
    usages = await services.zoo.usages(busiest)
    matching = [key for key in keys if state is None or state_of(key) is state]
    begin = next((at + 1 for at, key in enumerate(matching) if key.id == after), 0)
    listed = matching[begin : begin + PAGE]
    return page(
        request,
        "zoo_keys.html",
        zoo_url=services.zoo.url,
        keys=[(key, state_of(key)) for key in listed],
        states=Counter(map(state_of, keys)),
        chosen=state,
        first=begin == 0,
        following=listed[-1].id if len(matching) > begin + PAGE else None,
        spent=sum(key.spent for key in keys),
        charted=len(busiest),
        uses={"key": by_key(busiest, usages), "model": by_model(usages)},
        fields=ZOO_KEY.fields(),
    )


@router.get("/keys/{key_id}")
async def zoo_key(request: Request, key_id: KeyId, zoo: ZooDep) -> Response:
    """One key: its limits, what it has left and what it was used for."""
    key, usage = await zoo.key(key_id), await zoo.usage(key_id)
    uses = {"model": by_model([usage])}
    return page(request, "zoo_key.html", key=key, state=state_of(key), usage=usage, uses=uses)
