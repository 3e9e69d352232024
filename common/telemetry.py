"""What people and machines can see of a running process: metrics, and structured log lines on stdout."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
import structlog
from prometheus_client import Counter, Gauge, Histogram, Info, make_wsgi_app

from common import __version__

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
QUIET_S = 1.0
"""How long a library that has written a line does not write it again."""

# every process
Info("checkout_build", "The code that this process runs").info({"version": __version__})
REPAIRS = Counter("checkout_repairs_total", "Times that a part of this process was replaced or begun anew", ["what"])
LOOP_LAG_SECONDS = Gauge("checkout_loop_lag_seconds", "How long the event loop took to answer the watchdog")

# web
REQUESTS = Counter("checkout_requests_total", "Requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram("checkout_request_seconds", "How long requests took", ["route"], buckets=SECONDS)
WAITING = Gauge("checkout_waiting_requests", "Requests that wait for the log or for a reply")
POLLED = Counter("checkout_polled_results_total", "Results read from the state because no reply had come")
REPLIES_LOST = Counter("checkout_reply_errors_total", "Failures of the loop that takes replies")

# processor
POSITION = Gauge("checkout_partition_position", "Offset of the next record to fold", ["partition"])
LAG = Gauge("checkout_partition_lag", "Records that are not folded yet", ["partition"])
OPEN_CHECKOUTS = Gauge("checkout_open_checkouts", "Checkouts that have not ended", ["partition"])
BATCH_MESSAGES = Histogram(
    "checkout_batch_messages", "Messages folded at once", ["partition"], buckets=(1, 2, 5, 10, 20, 50, 100, 500, 5_000)
)
REPEATS = Counter("checkout_repeated_letters_total", "Letters dropped because they were taken before", ["partition"])
GAPS = Counter("checkout_letter_gaps_total", "Letters dropped because an earlier one is missing: alarm", ["partition"])
REWINDS = Counter("checkout_rewinds_total", "Times a partition was loaded again, by cause", ["partition", "cause"])
HALTED = Gauge("checkout_partition_halted", "1 while a partition cannot go on and needs a person", ["partition"])
DEAD_LETTERS = Counter("checkout_dead_letters_total", "Messages that could not be decided: alarm", ["partition"])
STUCK = Gauge("checkout_stuck_messages", "Dead letters that keep a saga open until a person acts: alarm", ["partition"])
CHECKOUTS = Counter("checkout_checkouts_total", "Checkouts ended, by outcome", ["outcome"])
CHECKOUT_SECONDS = Histogram(
    "checkout_checkout_seconds", "From a checkout's command to its end, by the log's clock", buckets=SECONDS
)

# snapshotter
COMPARED = Counter("checkout_states_compared_total", "Times that a state was what its log makes", ["partition"])
SNAPSHOT_POSITION = Gauge("checkout_snapshot_position", "Position of the newest snapshot", ["partition"])


def forget_partition(partition: str) -> None:
    """Show nothing of a partition that is not followed here any more."""
    for gauge in (POSITION, LAG, OPEN_CHECKOUTS, STUCK):
        with contextlib.suppress(KeyError):
            gauge.remove(partition)


def configure_logging(level: str, **context: str) -> None:
    """Write one JSON object a line to stdout, each with `context`; libraries' warnings take the same way."""

    def add_context(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**context, **event}

    processors: list[structlog.typing.Processor] = [
        add_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer(serializer=_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=processors,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=_json),
        ],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    handler.addFilter(Seldom())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class Seldom(logging.Filter):
    """Lets each place of a library's code be heard once a second.

    A dead broker makes aiokafka write a hundred lines a second in every process, and writing them takes time from those
    who have to take over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is written."""
        place = (record.pathname, record.lineno)
        if record.created - self._heard.get(place, 0.0) < QUIET_S:
            return False
        self._heard[place] = record.created
        return True


def _json(value: object, **_options: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def serve(bind: str, is_ready: Callable[[], bool]) -> None:
    """Serve /metrics and the health of a process that has no HTTP of its own, from a thread."""
    metrics = make_wsgi_app()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = metrics(environ, start_response)
                return answer
            case "/health/live":
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"alive\n"]
            case "/health/ready":
                start_response("200 OK" if is_ready() else "503 Service Unavailable", [("Content-Type", "text/plain")])
                return [b"ready\n" if is_ready() else b"not ready\n"]
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics, /health/live or /health/ready\n"]

    host, _, port = bind.rpartition(":")
    server = make_server(host, int(port), application, _ThreadingServer, handler_class=_QuietHandler)
    threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Write nothing: metrics count requests."""
