"""Waiting until something comes, or the time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable


class Waiting:
    """Who waits at which place."""

    def __init__(self) -> None:
        self._futures: dict[Hashable, list[asyncio.Future[None]]] = {}

    async def wait(self, place: Hashable, wait_s: float) -> None:
        """Return when the place is woken, or after `wait_s`."""
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._futures.setdefault(place, []).append(waiting)
        timer = loop.call_later(wait_s, _end, waiting)
        try:
            await waiting
        finally:
            timer.cancel()

    def wake(self, place: Hashable) -> None:
        """Let everybody go on who waits there."""
        for waiting in self._futures.pop(place, ()):
            _end(waiting)


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
