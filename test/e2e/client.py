"""A client of the gateway that normalises nothing, retries nothing and shares no connections."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from threading import Barrier
from typing import Any, TypeVar
from urllib.parse import urlsplit

import utils

GATEWAY = urlsplit(utils.ORDER_URL)
ADDRESS = (GATEWAY.hostname or "", GATEWAY.port or 80)
TIMEOUT_S = 150
"""Longer than anybody's patience."""

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


def call(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> Answer:
    """Return the answer; no answer raises OSError or HTTPException."""
    connection = HTTPConnection(*ADDRESS, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return _answer(connection.getresponse())
    finally:
        connection.close()


def post(path: str, key: str | None = None) -> Answer:
    """Post, with an Idempotency-Key if one is given."""
    return call("POST", path, {} if key is None else {"Idempotency-Key": key})


def get(path: str) -> Answer:
    """Get."""
    return call("GET", path)


def raw(request: bytes) -> Answer:
    """Send these very bytes.  The gateway may answer, and close, before it has read all of them."""
    with socket.create_connection(ADDRESS, TIMEOUT_S) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return _answer(response)


def at_once(count: int, work: Callable[[int], Output]) -> list[Output]:
    """Return the results of `work(0)`, `work(1)` ... which begin at the same moment, each in a thread of its own."""
    barrier = Barrier(count)

    def begin(number: int) -> Output:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def in_parallel(work: Callable[[Input], Output], inputs: Iterable[Input]) -> list[Output]:
    """Return the results of `work` on each input, in their order."""
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(work, inputs))


def _answer(response: HTTPResponse) -> Answer:
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
