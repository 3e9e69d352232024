"""Clients that send bytes instead of requests: what comes back, in order, until the gateway hangs up."""

import contextlib
import socket
import subprocess
from functools import cache

from e2e.client import ADDRESS, TIMEOUT_S, Answer
from e2e.shop import assert_problem


def connect() -> socket.socket:
    """Return a connection to the gateway."""
    return socket.create_connection(ADDRESS, TIMEOUT_S)


def send(data: bytes) -> list[Answer]:
    """Send all of this, say that nothing follows, and return what is answered."""
    return answers(talk(data))


def talk(data: bytes) -> bytes:
    """Send all of this, say that nothing follows, and return what comes back.  The gateway may hang up before."""
    with connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the gateway hangs up."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            received += part
    return bytes(received)


def read_answer(connection: socket.socket) -> Answer:
    """Return the one answer that comes; the connection stays open."""
    received = connection.recv(65_536)
    while b"\r\n\r\n" not in received or len(_first(received)[0].body) < _length(received):
        part = connection.recv(65_536)
        assert part, received
        received += part
    return _first(received)[0]


def answers(received: bytes) -> list[Answer]:
    """Return the answers one after the other.  What is not a whole answer raises ValueError or AssertionError."""
    found = []
    while received:
        assert b"\r\n\r\n" in received, received
        assert len(_first(received)[0].body) == _length(received), received
        answer, received = _first(received)
        found.append(answer)
    return found


def _first(received: bytes) -> tuple[Answer, bytes]:
    """Return the first answer, as far as its body has come, and the rest."""
    head, _, rest = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = _length(received)
    return Answer(int(status_line.split()[1]), headers, rest[:length]), rest[length:]


def _length(received: bytes) -> int:
    """Return the length of the first answer's body; 100 Continue has none."""
    head = received.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")


def assert_not_http(answer: Answer, *statuses: int) -> None:
    """The gateway could not parse the request.  Before HAProxy 3.2 its parser shows a page of its own (#3032)."""
    assert answer.status in (statuses or (400,)), (answer.status, answer.body)
    pages = (b"Your browser sent an invalid request.", b"Your browser didn't send a complete request in time.")
    if not any(page in answer.body for page in pages) or haproxy_version() >= (3, 2):
        assert_problem(answer, answer.status)


@cache
def haproxy_version() -> tuple[int, ...]:
    """Return the version of the HAProxy that is tested."""
    shown = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in shown.split()[2].split("-")[0].split("."))
