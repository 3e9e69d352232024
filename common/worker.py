"""gunicorn's threaded worker, which says that it is not ready before it stops listening."""

from __future__ import annotations

import threading
from types import FrameType

from gunicorn.workers.gthread import ThreadWorker

NOTICE_S = 1.2
"""Longer than the gateway needs to notice: two checks, 500 ms apart."""

draining = threading.Event()
"""Set once this process has been told to stop."""


class DrainingWorker(ThreadWorker):
    """Stops in two steps: readiness off, and when the gateway has noticed, the listener; running requests finish."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if not draining.is_set():
            draining.set()
            threading.Timer(NOTICE_S, super().handle_exit, (sig, frame)).start()
