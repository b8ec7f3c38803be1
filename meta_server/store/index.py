"""Pages over sorted sets of ids that sort by time."""

from typing import Any

from metering.scripts import store_errors


async def newest_first(redis: Any, index: str, after: str | None, limit: int) -> tuple[list[str], str | None]:
    """Up to `limit` ids, newest first, from the one after `after`; and the cursor of the next page, if there is one."""
    end = "+" if after is None else f"({after}"
    with store_errors():
        found = [name.decode() for name in await redis.zrevrangebylex(index, end, "-", start=0, num=limit + 1)]
    return found[:limit], found[limit - 1] if len(found) > limit else None
