"""Which places of a row are left to be asked about: taken from the front, in pieces, and given back when refused."""

from collections.abc import Iterable


class Todo:
    """Places 0 to `count`. Kept as disjoint ranges, ascending."""

    def __init__(self, count: int) -> None:
        self._ranges = [(0, count)] if count else []

    @classmethod
    def of(cls, places: Iterable[int]) -> "Todo":
        """These places alone, ascending."""
        made = cls(0)
        for place in places:
            if made._ranges and made._ranges[-1][1] == place:
                made._ranges[-1] = (made._ranges[-1][0], place + 1)
            else:
                made._ranges.append((place, place + 1))
        return made

    def __len__(self) -> int:
        """Places left."""
        return sum(stop - start for start, stop in self._ranges)

    def left(self, until: int | None = None) -> bool:
        """Whether any are left, or any before the place `until`."""
        return bool(self._ranges) and (until is None or self._ranges[0][0] < until)

    def take(self, most: int, until: int | None = None) -> tuple[int, int]:
        """The first places left, at most so many in a row, none from `until` on, as (start, stop). IndexError for none."""
        start, stop = self._ranges.pop(0)
        end = min(stop, start + most) if until is None else min(stop, start + most, until)
        if end < stop:
            self._ranges.insert(0, (end, stop))
        return start, end

    def remove(self, start: int, stop: int) -> None:
        """Places start to stop need no asking, whether they were left or not."""
        parts = [part for left, right in self._ranges for part in ((left, min(right, start)), (max(left, stop), right))]
        self._ranges = [(left, right) for left, right in parts if left < right]

    def give_back(self, start: int, stop: int) -> None:
        """Places start to stop, which were taken or removed, are left again."""
        merged: list[tuple[int, int]] = []
        for left, right in sorted([*self._ranges, (start, stop)]):
            if merged and left == merged[-1][1]:
                left = merged.pop()[0]
            merged.append((left, right))
        self._ranges = merged
