"""Pages over sorted sets of ids that sort by time."""

from collections.abc import Callable, Sequence
from typing import Any

from contracts.access import DEFAULT_TENANT
from metering.scripts import store_errors

BATCH = 200  # records looked at in one round trip
MOST = 5000  # records looked at for one page


async def newest_first(redis: Any, index: str, after: str | None, limit: int) -> tuple[list[str], str | None]:
    """Up to `limit` ids, newest first, from the one after `after`; and the cursor of the next page, if there is one."""
    end = "+" if after is None else f"({after}"
    with store_errors():
        found = [name.decode() for name in await redis.zrevrangebylex(index, end, "-", start=0, num=limit + 1)]
    return found[:limit], found[limit - 1] if len(found) > limit else None


def of_tenant(name: str) -> Callable[[bytes | None], bool]:
    """Keeps what belongs to the tenant; what says nothing is the default one's."""
    return lambda tenant: (tenant or DEFAULT_TENANT.encode()).decode() == name


async def matching(
    redis: Any,
    index: str,
    after: str | None,
    limit: int,
    *,
    record: Callable[[str], str],
    fields: Sequence[str],
    keep: Callable[..., bool],
) -> tuple[list[str], str | None]:
    """As `newest_first`, of the ids alone whose record's `fields` (bytes or None each) `keep` accepts.

    A page may be short of `limit`, even empty, where few match: its cursor goes on behind the `MOST` records looked at.
    """
    found: list[str] = []
    looked = 0
    while True:
        batch, following = await newest_first(redis, index, after, BATCH)
        with store_errors():
            async with redis.pipeline(transaction=False) as pipe:
                for one in batch:
                    pipe.hmget(record(one), *fields)
                told = await pipe.execute()
        for at, one in enumerate(batch):
            if keep(*told[at]):
                found.append(one)
            if len(found) == limit and (at + 1 < len(batch) or following is not None):
                return found, one
        looked += len(batch)
        after = following
        if after is None or looked >= MOST:
            return found, after
