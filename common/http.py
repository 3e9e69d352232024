"""HTTP: what the three services' routes have in common.

Validation comes before anything else; every refusal is an RFC 9457 problem that says what to do.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import structlog
from flask import Blueprint, Flask, Response, current_app, g, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException

from common import config, openapi, telemetry
from common.config import Settings
from common.decision import Entity, Machine
from common.messages import Done, Message, Outcome, Reason, Refused
from common.tasks import spare_garbage_collection
from common.web import Listener, OutcomeUnknown, TooBusy, Web

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
NUMBER = re.compile(r"[0-9]{1,15}")
IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
ATTEMPT_HEADER = "X-Attempt-ID"
"""Set by the gateway, once per request, kept over its replays."""
ARRIVED_HEADER = "X-Arrived-At"
"""Set by the gateway: when the request came, in milliseconds since 1970."""
INIT_MAX = 1_000_000
RETRY_AFTER_S = "2"
READY_SERVERS_HEADER = "X-Ready-Servers"
"""Set by the gateway when it asks for health: how many servers of this service are ready."""
SERVER_STATE_HEADER = "X-Haproxy-Server-State"
"""Set by the gateway when it asks for health: begins with UP while this process is one of those."""

STATUS = {
    Reason.NOT_FOUND: 404,
    Reason.CONFLICT: 409,
    Reason.NO_CREDIT: 402,
    Reason.OTHER_CALL: 422,
    Reason.BUSY: 429,
    Reason.NOT_NOW: 503,
    Reason.INTERNAL: 500,
}

E = TypeVar("E", bound=Entity)
logger = structlog.get_logger()


class Problem(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail


# --- parse -----------------------------------------------------------------------------------------------------------


def entity_id(text: str) -> str:
    """Return the id from a path, or refuse it."""
    if ID.fullmatch(text) is None:
        raise Problem(400, "bad id", "an id is 1 to 64 characters of A-Z a-z 0-9 _ and -")
    return text


def number(text: str, name: str, least: int = 0, most: int = 10**15 - 1) -> int:
    """Return the number from a path, or refuse it."""
    if NUMBER.fullmatch(text) is None or not least <= int(text) <= most:
        raise Problem(400, f"bad {name}", f"{name} is a whole number from {least} to {most}, in digits 0-9 only")
    return int(text)


def new_id() -> str:
    """Return the id of what this request creates: a repeat of the request creates the same."""
    key, _ = _request_key()
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _request_key() -> tuple[str, bool]:
    """Return who asks, the client's key before the gateway's attempt id, and whether it is the client's."""
    client_key = request.headers.get("Idempotency-Key")
    if client_key is None:
        attempt_id = g.get("attempt_id") or request.headers.get(ATTEMPT_HEADER) or uuid4().hex
        g.attempt_id = attempt_id
        return f"attempt/{attempt_id}", False
    if IDEMPOTENCY_KEY.fullmatch(client_key) is None:
        detail = "an Idempotency-Key is 1 to 128 characters of A-Z a-z 0-9 _ . : and -"
        raise Problem(400, "bad Idempotency-Key", detail)
    return f"key/{client_key}", True


# --- ask and answer --------------------------------------------------------------------------------------------------


def ask(entity: str, command: Message, *, is_batch_init: bool = False) -> Done:
    """Return what was done; a refusal, or no outcome in time, raises the Problem that answers the request."""
    web: Web = current_app.extensions["web"]
    key, is_client_key = _request_key()
    call = hashlib.blake2b(f"{request.method} {request.path}".encode(), digest_size=8).digest()
    asker = web.asker(f"{entity}/{key}", int.from_bytes(call, "big"), is_client_key=is_client_key)
    settings: Settings = current_app.extensions["settings"]
    patience_ms = settings.batch_init_patience_ms if is_batch_init else settings.patience_ms
    return _done(web.ask(entity, asker, command, _listener(patience_ms)))


def find(kind: type[E], found_id: str, name: str) -> E:
    """Return the entity as it is now, or raise the Problem that says that there is none."""
    web: Web = current_app.extensions["web"]
    settings: Settings = current_app.extensions["settings"]
    entity = web.find(kind, entity_id(found_id), _listener(settings.patience_ms))
    if entity is None:
        raise Problem(404, "not found", f"there is no {name} {found_id}")
    return entity


def _listener(patience_ms: int) -> Listener:
    return Listener(_left_of(patience_ms), _has_hung_up(request.environ))


def _left_of(patience_ms: int) -> int:
    """Return how much longer to wait: the request may have waited in the gateway.  What cannot be is a wrong clock."""
    arrived = request.headers.get(ARRIVED_HEADER, "")
    waited_ms = int(time.time() * 1000) - int(arrived) if NUMBER.fullmatch(arrived) else 0
    return patience_ms - waited_ms if 0 < waited_ms < patience_ms else patience_ms


def _has_hung_up(environ: dict[str, Any]) -> Callable[[], bool]:
    """Return what says whether the connection that the request came by is closed at its other end."""
    connection: socket.socket | None = environ.get("gunicorn.socket")

    def has_hung_up() -> bool:
        try:
            return connection is not None and connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    return has_hung_up


def text(body: str) -> Response:
    """Return a plain success."""
    return Response(body, mimetype="text/plain")


def json(body: object) -> Response:
    """Return a success with fields."""
    return Response(msgspec.json.encode(body), mimetype="application/json")


def _done(outcome: Outcome) -> Done:
    match outcome:
        case Done():
            return outcome
        case Refused():
            raise Problem(STATUS[outcome.reason], outcome.reason.value, outcome.detail)


# --- the application -------------------------------------------------------------------------------------------------


def start_app(machine: Machine, routes: Blueprint) -> Flask:
    """Return the service's WSGI application, ready to take requests."""
    settings = config.load()
    telemetry.configure_logging(settings.log_level, service=machine.service, process="web")
    web = Web(settings, machine)
    web.start()
    app = make_app(routes, web, settings)
    spare_garbage_collection()
    return app


def make_app(routes: Blueprint, web: Web, settings: Settings) -> Flask:
    """Return the WSGI application that serves `routes`."""
    app = Flask(routes.name, static_folder=None)
    app.extensions["web"] = web
    app.extensions["settings"] = settings
    app.url_map.merge_slashes = False
    app.before_request(_begin)
    app.after_request(_count)
    app.register_error_handler(Exception, _answer_error)
    app.register_blueprint(routes)
    app.register_blueprint(operations)
    return app


operations = Blueprint("operations", __name__)


@operations.get("/health/live")
def live() -> Response:
    """Say that the process answers."""
    return text("alive\n")


@operations.get("/health/ready")
def ready() -> Response:
    """Say whether requests can be served; 500 when others can serve those that are waiting here, too."""
    web: Web = current_app.extensions["web"]
    is_asked_by_gateway = READY_SERVERS_HEADER in request.headers
    if is_asked_by_gateway:
        web.others.note(are_ready=_are_others_ready())
    if web.is_ready:
        return text("ready\n")
    if web.is_cut_off and is_asked_by_gateway:
        raise Problem(500, "cut off", "the log or the store is out of reach for this process, and not for others")
    raise Problem(503, "not ready", "the log or the store is out of reach, or this process is stopping")


def _are_others_ready() -> bool:
    """Say whether the gateway counts any others.  It counts this process as well, until it believes what this says."""
    is_counted = request.headers.get(SERVER_STATE_HEADER, "").startswith("UP")
    return request.headers[READY_SERVERS_HEADER] != "0" and not is_counted


@operations.get("/openapi.json")
def openapi_document() -> Response:
    """Show the OpenAPI document."""
    return json(openapi.document(current_app, {"n": INIT_MAX}))


@operations.get("/docs")
def docs() -> Response:
    """Show the OpenAPI document as a page."""
    return Response(openapi.page(), mimetype="text/html")


@operations.get("/metrics")
def metrics() -> Response:
    """Show the process's metrics, for Prometheus."""
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)


def _begin() -> None:
    g.began_s = time.perf_counter()
    if request.content_length or request.headers.get("Transfer-Encoding"):
        raise Problem(400, "unexpected body", "calls take no body: everything stands in the path")


_children: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}


def _count(response: Response) -> Response:
    route = request.url_rule.rule if request.url_rule else "unknown"
    child = _children.get((route, response.status_code))
    if child is None:
        counter = telemetry.REQUESTS.labels(route, response.status_code)
        child = _children[route, response.status_code] = (counter.inc, telemetry.REQUEST_SECONDS.labels(route).observe)
    count, observe = child
    count()
    observe(time.perf_counter() - g.began_s)
    return response


def _answer_error(error: Exception) -> Response:
    match error:
        case Problem():
            return _problem(error.status, error.title, error.detail)
        case OutcomeUnknown():
            detail = "the outcome is unknown: ask again with the same Idempotency-Key, or read what the call changes"
            return _problem(503, "no outcome in time", detail)
        case TooBusy():
            detail = "too many requests are waiting: ask again later, with the same Idempotency-Key"
            return _problem(503, "too busy", detail)
        case HTTPException():
            return _http_problem(error)
        case _:
            logger.error("unexpected error", exc_info=error, path=request.path)
            return _problem(500, "internal error", "a bug of ours: it is in this process's log")


def _http_problem(error: HTTPException) -> Response:
    details = {
        404: "there is no such path: see /orders/docs, /stock/docs and /payment/docs",
        405: "the path takes another method: see Allow",
    }
    status = error.code or 500
    response = _problem(status, error.name.lower(), details.get(status, error.description or error.name))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _problem(status: int, title: str, detail: str) -> Response:
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    response = Response(msgspec.json.encode(body), status, mimetype="application/problem+json")
    if status in (429, 503):
        response.headers["Retry-After"] = RETRY_AFTER_S
    return response
