"""gunicorn's threaded worker, which says that it is not ready before it stops listening."""

from __future__ import annotations

import contextlib
import threading
from types import FrameType
from typing import Any

from gunicorn import util
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker

NOTICE_S = 1.2
"""Longer than the gateway needs to notice: two checks, 500 ms apart."""

NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)
PROBLEM = (
    b'{"type":"about:blank","title":"bad request","status":400,"detail":"this is not a valid HTTP request: '
    b'a method is in capitals, a header has no control characters, and there are 90 of them at most"}'
)
"""What the gateway's parser lets through and gunicorn's does not."""

draining = threading.Event()
"""Set once this process has been told to stop."""


class DrainingWorker(ThreadWorker):
    """Stops in two steps: readiness off, and when the gateway has noticed, the listener; running requests finish."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if not draining.is_set():
            draining.set()
            threading.Timer(NOTICE_S, super().handle_exit, (sig, frame)).start()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Refuse in problem+json, as every other refusal; gunicorn's own page is HTML and shows the request."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.debug("not HTTP: %s", exc)
        with contextlib.suppress(OSError):
            util.write_nonblock(client, NOT_HTTP % (len(PROBLEM), PROBLEM))
