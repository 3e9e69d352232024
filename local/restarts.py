"""Restarts: lives inside supervisord, counts how often each process died and brings it back after a second.

supervisord by itself counts nothing, and waits one second longer after every early death of a process.
"""

import time
from collections import Counter
from typing import Any

from supervisor import events

RETRY_AFTER_S = 1.0


class Restarts:
    """The XML-RPC namespace `restarts`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        events.subscribe(events.ProcessStateExitedEvent, self._died)
        events.subscribe(events.ProcessStateBackoffEvent, self._died_early)

    def counts(self) -> dict[str, int]:
        """Return how many times each process that ever died has died."""
        return dict(self._counts)

    def _died(self, event: Any) -> None:
        self._counts[event.process.config.name] += 1

    def _died_early(self, event: Any) -> None:
        self._died(event)
        event.process.backoff = 1
        event.process.delay = time.time() + RETRY_AFTER_S


def make(_supervisord: object, **_settings: object) -> Restarts:
    """Return what supervisord serves; its configuration names this function."""
    return Restarts()
