"""Clients that speak HTTP badly, slowly, at length or not at all: nobody else notices, nothing is done by halves."""

import contextlib
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from e2e.calls import CALLS
from e2e.client import call, get, post
from e2e.shop import a_user, assert_problem, credit, done
from e2e.sockets import answers, assert_not_http, connect, read_all, read_answer, send, talk

from local.system import System

CREDIT = 1_000
SLOW = 100
IDLE = 300
HASTY = 50
OFTEN = 40
"""A service that cuts a body off loses its answer once in twenty times."""
BUFFER = 16_384
"""The gateway's.  Who sends more than fits may be cut off while sending, and then the kernel drops the answer."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
HARM = re.compile(r"Traceback|unexpected error|Error handling request|Socket error|/\d+ 5\d\d \d+ - -")
"""In the log of a service, or an answer of 5xx in the gateway's."""

HOST = b"Host: gateway\r\n"
PAY = b"POST {pay} HTTP/1.1\r\n" + HOST
"""The head of a request that takes 1 of the user's credit, to be continued; {pay} stands for its path."""
WHOLE = PAY + b"\r\n"
FIND = b"GET {find} HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HIDDEN = b"POST {pay} HTTP/1.1\r\nHost: gateway\r\nX: smuggled\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NOT_HTTP = {
    "words": b"nonsense\r\n\r\n",
    "a method": b"GET\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(100),
    "PROXY protocol": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + WHOLE,
    "HTTP/0.9": b"POST {pay}\r\n",
    "http in small letters": b"POST {pay} http/1.1\r\n" + HOST + b"\r\n",
    "version without minor": b"POST {pay} HTTP/1\r\n" + HOST + b"\r\n",
    "version with a tail": b"POST {pay} HTTP/1.1x\r\n" + HOST + b"\r\n",
    "another protocol": b"POST {pay} ICY/1.0\r\n" + HOST + b"\r\n",
    "no method": b" {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "method in small letters": b"post {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "method with NUL": b"P\x00ST {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "method with brace": b"POST{ {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "method of 5,000": b"X" * 5_000 + b" {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "path without slash": b"POST payment/pay HTTP/1.1\r\n" + HOST + b"\r\n",
    "path with space": b"GET /payment/find_user/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "path with fragment": b"POST {pay}#x HTTP/1.1\r\n" + HOST + b"\r\n",
    "path with NUL": b"POST {pay}\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "path with UTF-8": b"GET /payment/find_user/\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "path not UTF-8": b"POST /payment/pay/\xff\xfe/1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "path of 1 MB": b"POST {pay}" + b"1" * 1_000_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of another host": b"POST http://elsewhere{pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT with a path": b"CONNECT {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare CR": b"POST {pay} HTTP/1.1\rHost: gateway\r\r",
    "two hosts": PAY + b"Host: elsewhere\r\n\r\n",
    "no colon": PAY + b"no colon\r\n\r\n",
    "space before colon": PAY + b"X : y\r\n\r\n",
    "no header name": PAY + b": y\r\n\r\n",
    "header name with slash": PAY + b"X/y: z\r\n\r\n",
    "header name with NUL": PAY + b"X\x00: y\r\n\r\n",
    "header name with UTF-8": PAY + b"X\xc3\xa9: y\r\n\r\n",
    "header with NUL": PAY + b"X: a\x00b\r\n\r\n",
    "header with SOH": PAY + b"X: a\x01b\r\n\r\n",
    "header with DEL": PAY + b"X: a\x7fb\r\n\r\n",
    "header with bare CR": PAY + b"X: a\rb\r\n\r\n",
    "key with NUL": PAY + b"Idempotency-Key: a\x00\r\n\r\n",
    "header of 20 kB": PAY + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
    "header of 1 MB": PAY + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "first header folded": b"POST {pay} HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "99 more headers": PAY + b"X: y\r\n" * 99 + b"\r\n",
    "1,000 headers": PAY + b"X: y\r\n" * 1_000 + b"\r\n",
    "10,000 headers": PAY + b"".join(b"X%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
    "length -1": PAY + b"Content-Length: -1\r\n\r\n",
    "length +0": PAY + b"Content-Length: +0\r\n\r\n",
    "length 0x0": PAY + b"Content-Length: 0x0\r\n\r\n",
    "length abc": PAY + b"Content-Length: abc\r\n\r\n",
    "length empty": PAY + b"Content-Length:\r\n\r\n",
    "length enormous": PAY + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "two lengths": PAY + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in one": PAY + b"Content-Length: 1, 2\r\n\r\nab",
    "coding identity": PAY + b"Transfer-Encoding: identity\r\n\r\n",
    "coding unknown": PAY + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunked is not last": PAY + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked and unknown": PAY + CHUNKED + b"Transfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "CONNECT": b"CONNECT gateway:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form without path": b"GET http://gateway HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of a file": b"GET ftp://gateway/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "PRI": b"PRI {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "M-SEARCH": b"M-SEARCH {pay} HTTP/1.1\r\n" + HOST + b"\r\n",
}
"""Refused by the gateway's parser, its rules, gunicorn's parser, or the service."""

BROKEN_OFF = "shorter than said"
"""Who hangs up before the body is whole may find that HAProxy heard all of it at once, and answers nobody."""
BODIES = {
    "of a length": PAY + b"Content-Length: 3\r\n\r\nabc",
    "longer than said": PAY + b"Connection: close\r\nContent-Length: 3\r\n\r\nabcdefgh",
    BROKEN_OFF: PAY + b"Content-Length: 50\r\n\r\nabc",
    "of 100 kB": PAY + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000,
    "of 1 MB": PAY + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    "expected": PAY + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    "in chunks": PAY + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    "in chunks, empty": PAY + CHUNKED + b"\r\n0\r\n\r\n",
    "in chunks, with a trailer": PAY + CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "in chunks, with an extension": PAY + CHUNKED + b"\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
    "in chunks, of no size": PAY + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
    "in chunks, of enormous size": PAY + CHUNKED + b"\r\n" + b"f" * 18 + b"\r\nabc\r\n0\r\n\r\n",
    "in chunks, longer than said": PAY + CHUNKED + b"\r\n2\r\nabcdef\r\n0\r\n\r\n",
    "in chunks, cut": PAY + CHUNKED + b"\r\n3\r\nab",
    "in chunks, of HTTP/1.0": b"POST {pay} HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "in chunks, without end": PAY + CHUNKED + b"\r\n" + (b"400\r\n" + b"x" * 1_024 + b"\r\n") * 5_000,
}

SMUGGLED = {
    "CL.TE": PAY + b"Content-Length: {both}\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN,
    "TE.CL": PAY + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n{size}\r\n" + HIDDEN + b"\r\n0\r\n\r\n",
    "TE.TE": PAY + CHUNKED + b"Transfer-Encoding: x\r\nContent-Length: 4\r\n\r\n{size}\r\n" + HIDDEN + b"\r\n0\r\n\r\n",
    "coding with an underscore": PAY
    + b"Content-Length: {both}\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n"
    + HIDDEN,
    "coding after a tabulator": PAY
    + b"Content-Length: {both}\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n"
    + HIDDEN,
    "coding after VT": PAY + b"Content-Length: {both}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "coding before a space": PAY + b"Content-Length: {both}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "coding folded": PAY + b"Content-Length: {both}\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "length with an underscore": PAY + b"Content-Length: {all}\r\nContent_Length: 0\r\n\r\n" + HIDDEN,
    "in a header": PAY + b"X: a\r" + HIDDEN,
    "in a chunk's extension": PAY + CHUNKED + b"\r\n3;\n" + HIDDEN + b"abc\r\n0\r\n\r\n",
    "in the path": b"POST /payment/find_user/a%20HTTP/1.1%0d%0aHost:x%0d%0a%0d%0aPOST%20{pay} HTTP/1.1\r\n"
    + HOST
    + b"\r\n",
    "behind a preface": PREFACE + HIDDEN,
    "behind an upgrade": b"GET /stock/none HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: {all}\r\n\r\n" + HIDDEN,
}

SERVED = {
    "HTTP/1.0": b"POST {pay} HTTP/1.0\r\n\r\n",
    "HTTP/1.0, kept alive": b"POST {pay} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "absolute form": b"POST http://gateway{pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "a query": b"POST {pay}?a=b HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty lines before": b"\r\n\r\n" + WHOLE,
    "an empty header": PAY + b"X:\r\n\r\n",
    "a header that is not UTF-8": PAY + b"X: \xff\xfe\r\n\r\n",
    "a header of 10 kB": PAY + b"X: " + b"y" * 10_000 + b"\r\n\r\n",
    "90 more headers": PAY + b"X: y\r\n" * 90 + b"\r\n",
    "length 0": PAY + b"Content-Length: 0\r\n\r\n",
    "Expect": PAY + b"Expect: 100-continue\r\n\r\n",
    "Upgrade: h2c": PAY + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "an attempt id of its own": PAY + b"X-Attempt-ID: mine\r\nX_Attempt_ID: mine\r\n\r\n",
}

LENIENT = {
    "LF": b"POST {pay} HTTP/1.1\nHost: gateway\n\n",
    "LF and CR LF": b"POST {pay} HTTP/1.1\r\nHost: gateway\n\r\n",
    "a folded header": PAY + b"X: a\r\n b\r\n\r\n",
    "no host": b"POST {pay} HTTP/1.1\r\n\r\n",
    "HTTP/1.2": b"POST {pay} HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2.0": b"POST {pay} HTTP/2.0\r\n" + HOST + b"\r\n",
    "two spaces": b"POST  {pay}  HTTP/1.1\r\n" + HOST + b"\r\n",
    "tabulators": b"POST\t{pay}\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "https": b"POST https://gateway{pay} HTTP/1.1\r\n" + HOST + b"\r\n",
    "length 0 twice": PAY + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length 0 twice in one": PAY + b"Content-Length: 0, 0\r\n\r\n",
    "no websocket's handshake": PAY + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "another expectation": PAY + b"Expect: 200-ok\r\n\r\n",
}
"""Wrong, or odd, and clear: HAProxy serves some, which ones depends on its version."""


GIVEN_UP = ([], [400], [408], [413], [200, 408])
UNFINISHED = (
    b"",
    b"\r\n",
    b"POST /pay",
    PAY,
    PAY + b"Content-Length: 50\r\n\r\nabc",
    PAY + CHUNKED + b"\r\n3\r\na",
    FIND + b"GET /pay",
)


class User:
    """A user with credit, and requests that would take 1 of it."""

    def __init__(self) -> None:
        self.user_id = a_user(CREDIT)
        self.pay_path = f"/payment/pay/{self.user_id}/1"

    def request(self, template: bytes) -> bytes:
        """Return the request, its placeholders filled in."""
        hidden = HIDDEN.replace(b"{pay}", self.pay_path.encode())
        values = {"pay": self.pay_path, "find": f"/payment/find_user/{self.user_id}", "size": f"{len(hidden):x}"}
        values |= {"all": str(len(hidden)), "both": str(len(b"0\r\n\r\n") + len(hidden))}
        for name, value in values.items():
            template = template.replace(b"{%b}" % name.encode(), value.encode())
        return template

    @property
    def paid(self) -> int:
        """How often the user has paid."""
        return CREDIT - credit(self.user_id)


@pytest.fixture
def user(unharmed: None) -> User:  # noqa: ARG001 - the system is up
    """Return a new user."""
    return User()


@pytest.fixture(autouse=True)
def unharmed(system: System) -> Iterator[None]:
    """No process ends, and no log tells of a bug or of an answer of 5xx."""
    logs = [*system.profile.logs.glob("*-web-*.log"), *system.profile.logs.glob("gateway.log")]
    ends = {log: log.stat().st_size for log in logs}
    running = processes(system)
    yield
    assert processes(system) == running
    assert [line for log in logs for line in lines_from(log, ends[log]) if HARM.search(line)] == []


def processes(system: System) -> set[int]:
    """Return the pids of all processes of the system, gunicorn's workers included."""
    return {process.pid for process in psutil.Process(system.supervision.pid()).children(recursive=True)}


def lines_from(log: Path, start: int) -> list[str]:
    """Return what was written to the log since it had `start` bytes."""
    return log.read_bytes()[start:].decode(errors="replace").splitlines()


# --- bad requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_HTTP)
def test_a_bad_request_is_refused_and_changes_nothing(user: User, name: str) -> None:
    request = user.request(NOT_HTTP[name])
    found = send(request)

    for answer in found:
        assert_not_http(answer, 400, 404, 405)
    assert len(found) == 1 or (not found and len(request) > BUFFER)
    assert user.paid == 0


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_refused_and_changes_nothing(user: User, name: str) -> None:
    found = send(user.request(BODIES[name]))

    for answer in found:
        assert_not_http(answer, 400, 413)
    assert len(found) == 1 or (not found and name == BROKEN_OFF)
    assert user.paid == 0


@pytest.mark.parametrize("name", ["of 100 kB", "of 1 MB", "in chunks, without end"])
def test_a_long_body_is_refused_every_time_and_never_ends_in_a_bad_gateway(user: User, name: str) -> None:
    request = user.request(BODIES[name])
    for _ in range(OFTEN):
        (answer,) = send(request)
        assert_not_http(answer, 400, 413)


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_hidden_request_is_not_carried_out(user: User, name: str) -> None:
    received = talk(user.request(SMUGGLED[name]))

    assert b" 200 OK\r\n" not in received
    assert user.paid == 0
    assert b"credit updated" not in received


@pytest.mark.parametrize("name", SERVED)
def test_an_unusual_request_is_served_once(user: User, name: str) -> None:
    *before, answer = send(user.request(SERVED[name]))

    assert [each.status for each in before] in ([], [100])
    assert done(answer).text.endswith(f" {CREDIT - 1}")
    assert user.paid == 1


@pytest.mark.parametrize("name", LENIENT)
def test_a_wrong_request_is_refused_or_served_once(user: User, name: str) -> None:
    (answer,) = send(user.request(LENIENT[name]))

    assert user.paid == (answer.status == 200)
    if answer.status != 200:
        assert_not_http(answer, 400, 417, 505)


def test_a_connection_that_begins_as_http_2_ends_without_harm(user: User) -> None:
    frames = (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"\xff" * 100, WHOLE)
    for data in frames:
        assert not re.search(rb"HTTP/1\.. (200|5..)", talk(PREFACE + user.request(data)))

    assert user.paid == 0


# --- unfinished requests ---------------------------------------------------------------------------------------------


def test_a_request_that_is_cut_anywhere_changes_nothing(user: User) -> None:
    whole = user.request(WHOLE)
    for length in range(len(whole)):
        for answer in send(whole[:length]):
            assert_not_http(answer)

    assert user.paid == 0


def test_a_client_that_leaves_in_the_middle_of_a_request_changes_nothing(user: User) -> None:
    whole = user.request(WHOLE)
    for length in range(0, len(whole), 3):
        with connect() as connection:
            connection.sendall(whole[:length])

    done(get("/payment/health/live"))
    assert user.paid == 0


def test_the_gateway_gives_up_on_who_does_not_finish_and_serves_the_others_meanwhile(user: User) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect()) for _ in UNFINISHED]
        for connection, beginning in zip(silent, UNFINISHED, strict=True):
            connection.sendall(user.request(beginning))
        dripping = stack.enter_context(connect())
        dripping.sendall(user.request(PAY + b"X: "))
        wait_for_answers([*silent, dripping], lambda: drip_and_ask(dripping, user))
        for connection in (*silent, dripping):
            assert [answer.status for answer in answers(read_all(connection))] in GIVEN_UP

    assert user.paid == 0


def wait_for_answers(connections: list[socket.socket], meanwhile: Callable[[], None]) -> None:
    """Wait until each has something to read, and do something else again and again."""
    while len(select.select(connections, [], [], 0.5)[0]) < len(connections):
        meanwhile()


def drip_and_ask(connection: socket.socket, user: User) -> None:
    """Send one more byte, if the gateway still listens, and have another client served."""
    with contextlib.suppress(OSError):
        connection.sendall(b"y")
    done(get(f"/payment/find_user/{user.user_id}"))


# --- slow, idle and hasty clients ------------------------------------------------------------------------------------


def test_many_slow_requests_are_each_served_once_and_hold_up_nobody(user: User) -> None:
    whole = user.request(WHOLE)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect()) for _ in range(SLOW)]
        for position in range(len(whole)):
            for connection in slow:
                connection.sendall(whole[position : position + 1])
            done(get(f"/payment/find_user/{user.user_id}"))
        rests = {done(read_answer(connection)).text.rpartition(" ")[2] for connection in slow}

    assert rests == {str(CREDIT - count) for count in range(1, SLOW + 1)}


def test_idle_connections_hold_up_nobody_and_can_be_used_later(user: User) -> None:
    find = user.request(FIND)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect()) for _ in range(IDLE)]
        done(post(user.pay_path))
        for connection in idle:
            connection.sendall(find)
        assert {done(read_answer(connection)).json["credit"] for connection in idle} == {CREDIT - 1}
        done(post(user.pay_path))
        idle[0].sendall(find)
        assert done(read_answer(idle[0])).json["credit"] == CREDIT - 2


@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
def test_who_leaves_without_reading_has_acted_once_or_not_at_all(user: User, resets: bool) -> None:  # noqa: FBT001
    keys = [uuid4().hex for _ in range(HASTY)]
    for key in keys:
        with connect() as connection:
            connection.sendall(user.request(PAY + f"Idempotency-Key: {key}\r\n\r\n".encode()))
            if resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    assert user.paid <= HASTY
    rests = {done(post(user.pay_path, key)).text.rpartition(" ")[2] for key in keys}
    assert rests == {str(CREDIT - count) for count in range(1, HASTY + 1)}
    assert user.paid == HASTY


# --- several requests on one connection ------------------------------------------------------------------------------


def test_requests_in_one_packet_are_answered_in_order_and_each_is_carried_out_once(user: User) -> None:
    *paid, found = send(user.request(WHOLE * 3 + FIND))

    assert [done(answer).text.rpartition(" ")[2] for answer in paid] == ["999", "998", "997"]
    assert done(found).json["credit"] == 997


def test_after_a_refusal_the_next_request_on_the_connection_is_served(user: User) -> None:
    unknown = WHOLE.replace(b"{pay}", b"/payment/pay/{none}/1")
    first, second, third = send(user.request(unknown + WHOLE + FIND))

    assert_problem(first, 400)
    assert done(second).text.endswith(f" {CREDIT - 1}")
    assert done(third).json["credit"] == CREDIT - 1


def test_what_follows_a_body_is_the_next_request_or_is_not_read(user: User) -> None:
    refused, *served = send(user.request(PAY + b"Content-Length: 3\r\n\r\nabc" + FIND))

    assert_not_http(refused, 400, 413)
    assert [done(answer).json["credit"] for answer in served] in ([], [CREDIT])
    assert user.paid == 0


def test_all_three_services_are_well_after_all_this() -> None:
    for calling in CALLS:
        done(call(calling.method, calling.path()))
