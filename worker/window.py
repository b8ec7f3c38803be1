"""How many requests to one API may be under way at once: as many as keep it busy, and no queue of our making.

Where the API's rate is known, the pacer is what slows us down, and the window grows until it does. Elsewhere latency tells, as
in TCP Vegas (Brakmo and Peterson 1995): of `size` requests, `size * (1 - shortest / latency)` wait in a queue at the API.
"""

from dataclasses import dataclass

MOST = 16
FEW_QUEUED, MANY_QUEUED = 2.0, 4.0


@dataclass
class Window:
    """`size` requests may be under way, 1 to `most`. Doubles each round trip until something speaks against it."""

    most: int = MOST
    size: float = 1.0
    _probing: bool = True  # growing fast: nothing was ever too much
    _images: int = 0
    _shortest: float = 0.0  # seconds, of a request of `_images`
    _cut_at: float = 0.0

    def answered(self, images: int, seconds: float, *, paced: bool, waited: bool) -> None:
        """A request of `images` took `seconds`. `paced`: the rate is known; `waited`: its turn had to be waited for."""
        if paced:
            if not waited:
                self._grow()
            return
        if images < self._images:  # the last of a round: it says nothing of the others
            return
        if images > self._images:
            self._images, self._shortest = images, seconds
        self._shortest = min(self._shortest, seconds)
        queued = self.size * (1 - self._shortest / seconds) if seconds > 0 else 0.0
        if queued < FEW_QUEUED:
            self._grow()
        elif queued > MANY_QUEUED:
            self._probing = False
            self.size = max(1.0, self.size - 1 / self.size)

    def refused(self, sent_at: float, now: float) -> None:
        """A request sent at `sent_at` was too much: half the window, once for all that was under way with it."""
        if sent_at >= self._cut_at:
            self._probing = False
            self._cut_at = now
            self.size = max(1.0, self.size / 2)

    def _grow(self) -> None:
        self.size = min(self.most, self.size + (1 if self._probing else 1 / self.size))
