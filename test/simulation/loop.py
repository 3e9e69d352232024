"""An event loop with a clock of its own: waiting costs nothing, and the same seed gives the same run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


class Deadlock(Exception):
    """Nothing is ready and no timer runs: whoever waits would wait for ever."""


class Endless(Exception):
    """More goes on than in any sound run: something feeds on itself."""


TURNS_MAX = 60_000
"""A sound run takes some 5,000."""


class _Clock:
    """Stands where a loop has its selector: instead of waiting, time goes on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns = 0

    def select(self, timeout: float | None) -> list[object]:
        self.turns += 1
        if timeout is None:
            raise Deadlock
        if self.turns > TURNS_MAX:
            raise Endless
        self.now_s += max(timeout, 0.0)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """asyncio's own loop, without sockets and with virtual time that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Clock()
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the virtual time, in s."""
        return self._selector.now_s

    def allow_more_turns(self) -> None:
        """Let what is cancelled end."""
        self._selector.turns = 0

    def _process_events(self, events: list[object]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no threads."""


def run(work: Coroutine[Any, Any, T], on_error: Handler) -> T:
    """Run `work` to its end in a loop of its own; what a task raises unseen goes to `on_error`."""
    loop = SimulatedLoop()
    loop.set_exception_handler(on_error)
    try:
        return loop.run_until_complete(work)
    finally:
        _cancel_rest(loop)
        loop.close()


def _cancel_rest(loop: SimulatedLoop) -> None:
    loop.allow_more_turns()
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
