"""Failures in a row, counted by place: whether it is time to doubt the client that fails.

By place, as calls to one broker or one Redis primary may hang while those to others succeed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


class Failures:
    """The failures in a row of each place, and since when there has been nothing else there."""

    def __init__(self, count: int, seconds: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """Doubt after `count` failures in a row, if they took `seconds` or longer."""
        self._count = count
        self._seconds = seconds
        self._now_s = now_s
        self._rows: dict[Hashable, tuple[int, float]] = {}

    def add(self, place: Hashable) -> bool:
        """Count one more; say whether there have been so many, and nothing else for so long."""
        before, since_s = self._rows.get(place, (0, self._now_s()))
        self._rows[place] = before + 1, since_s
        return before + 1 >= self._count and self._now_s() - since_s >= self._seconds

    def end(self, place: Hashable) -> None:
        """End the place's row: a call has succeeded."""
        self._rows.pop(place, None)

    def clear(self) -> None:
        """End all rows: they say nothing about the client that comes next."""
        self._rows.clear()
