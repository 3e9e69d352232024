"""Keeps every call and its outcome while clients run: threads against the system, or a simulation."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

from histories.model import Invocation, Operation, Outcome, Unknown


class Recorder:
    """A history in the making.  Any thread may call; a call costs an entry in a dict.

    `now` is a clock that never goes back; its values may be of any unit.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._numbers = count()
        self._began: dict[int, tuple[Invocation, float]] = {}
        self._ended: dict[int, tuple[Outcome, float]] = {}

    def began(self, invocation: Invocation) -> int:
        """Note that a call begins, before anything of it is sent; return its number."""
        number = next(self._numbers)
        self._began[number] = (invocation, self._now())
        return number

    def ended(self, number: int, outcome: Outcome) -> None:
        """Note what came of it, after all of it was received."""
        self._ended[number] = (outcome, self._now())

    def history(self) -> list[Operation]:
        """Return the calls, in the order in which they began; the outcome of one that has not ended is unknown."""
        return [self._operation(number) for number in sorted(self._began.copy())]

    def _operation(self, number: int) -> Operation:
        invocation, began = self._began[number]
        outcome, ended = self._ended.get(number, (Unknown(), None))
        return Operation(invocation, outcome, began, ended)
