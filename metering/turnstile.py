"""Requests that ask to be admitted, asked of Redis together: those of a key that come while others are away make up one script.

A script for each would take a process longer than computing a small answer does.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from metering import keyring
from metering.scripts import Scripts

MOST = 64
"""Requests that one script decides: Redis serves nobody else meanwhile."""


@dataclass(frozen=True, slots=True)
class _Asked:
    told: tuple[str, int, str, str]  # model, images, digest, charge
    mark: str | None  # of a request that may come again
    at_hand: bytes  # its answer, if it is known already
    answer: "asyncio.Future[list[Any]]"


class Turnstile:
    """Runs `gate_admit`, with a lease and a replay window in microseconds."""

    def __init__(self, scripts: Scripts, *, lease: int, replay: int) -> None:
        self._scripts = scripts
        self._times = (lease, replay)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, list[_Asked]] = {}  # by key
        self._away: set[asyncio.Task[None]] = set()
        self._called = False

    def ask(
        self, key_id: str, *, model: str, images: int, digest: str, charge: str, mark: str | None, at_hand: bytes
    ) -> "asyncio.Future[list[Any]]":
        """What `gate_admit` answers to one request. Raises `StoreUnavailable`, after which it may have been charged."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what another loop left behind is lost with it
            self._loop, self._waiting, self._away, self._called = loop, {}, set(), False
        answer: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.setdefault(key_id, []).append(_Asked((model, images, digest, charge), mark, at_hand, answer))
        if not self._away and not self._called:
            self._called = True
            loop.call_soon(self._send)  # after the others who come in this turn of the loop
        return answer

    def _send(self) -> None:
        self._called = False
        waiting, self._waiting = self._waiting, {}
        for key_id, asked in waiting.items():
            for first in range(0, len(asked), MOST):
                task = asyncio.get_running_loop().create_task(self._run(key_id, asked[first : first + MOST]))
                self._away.add(task)
                task.add_done_callback(self._back)

    def _back(self, task: "asyncio.Task[None]") -> None:
        self._away.discard(task)
        if not self._away and self._waiting and not self._called:
            self._send()

    async def _run(self, key_id: str, asked: list[_Asked]) -> None:
        marks: list[str] = []
        args: list[str | bytes | int] = [*self._times]
        for each in asked:
            if each.mark is not None:
                marks.append(each.mark)
            args += (*each.told, 0 if each.mark is None else len(marks), each.at_hand)
        keys = [of(key_id) for of in (keyring.record, keyring.audit, keyring.slots, keyring.usage)]
        try:
            answers = await self._scripts.run("gate_admit", keys=[*keys, *marks], args=args)
        except Exception as error:
            for each in asked:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for each, answer in zip(asked, answers, strict=True):
            if not each.answer.done():  # its caller was cancelled
                each.answer.set_result(answer)
