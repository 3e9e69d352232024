"""A generator that costs little: a process of its own, raw HTTP over connections that are kept, nothing asked twice.

    python -m drills.flood URL PLAN ANSWERS

It reads PLAN, says `ready`, is told when to begin (a time of time.monotonic), writes ANSWERS and says `done`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from local.profiles import REPOSITORY

ROUND_S = 0.004
"""What is due within so long is sent together."""
PATIENCE_S = 60.0
NO_ANSWER = 0
PROBLEM = b"content-type: application/problem+json"


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What is asked, so many seconds after the beginning."""

    due_s: float
    method: str
    path: str
    key: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """What one process asks: each call when it is due or, with `at_once`, so many at a time for `seconds`."""

    calls: list[Call]
    at_once: int = 0
    seconds: float = inf


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What came of a call: when it was due, sent and answered, by time.monotonic.  Status 0: no whole answer."""

    call: Call
    due: float
    began: float
    ended: float
    status: int
    body: str
    is_told: bool
    """With Retry-After, and a problem+json that has the same status."""

    @property
    def wait_s(self) -> float:
        """How long the client waited, from when it was due."""
        return self.ended - self.due

    @property
    def took_s(self) -> float:
        """How long the answer took, from when the call was sent."""
        return self.ended - self.began


def flood(url: str, calls: Sequence[Call], folder: Path, at_once: int = 0, seconds: float = inf) -> list[Answer]:
    """Ask all this by as many processes as there are cores, and return all answers by when they were due."""
    count = os.cpu_count() or 1
    plans = [Plan(list(calls[number::count]), at_once // count, seconds) for number in range(count)]
    with ExitStack() as stack:
        floods = [stack.enter_context(_process(url, plan, folder / f"flood-{n}")) for n, plan in enumerate(plans)]
        for process in floods:
            _hear(process, "ready")
        start = time.monotonic() + 0.5
        for process in floods:
            assert process.stdin is not None
            process.stdin.write(f"{start}\n")
            process.stdin.flush()
        for process in floods:
            _hear(process, "done")
    decoder = msgspec.msgpack.Decoder(list[Answer])
    files = [folder / f"flood-{number}.answers" for number in range(count)]
    answers = [answer for file in files for answer in decoder.decode(file.read_bytes())]
    for file in files:
        file.unlink()
    return sorted(answers, key=lambda answer: answer.due)


@contextmanager
def _process(url: str, plan: Plan, path: Path) -> Iterator[subprocess.Popen[str]]:
    plans, answers = path.with_suffix(".plan"), path.with_suffix(".answers")
    plans.write_bytes(msgspec.msgpack.encode(plan))
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "drills.flood", url, str(plans), str(answers)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'test'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        plans.unlink()


def _hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line == word, f"heard {line!r}, not {word!r}: see what the generator wrote"


# --- the process -----------------------------------------------------------------------------------------------------


class Line(asyncio.Protocol):
    """One connection.  `answered` gets what came, or nothing if the connection ended before."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] | None = None
        self._received = b""
        self._length = inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """Send, and return what will come."""
        self.answer = asyncio.get_running_loop().create_future()
        self._received, self._length = b"", inf
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        """Add to what has come; when that is a whole answer, hand it on."""
        self._received += data
        if self._length == inf:
            self._length = _length(self._received)
        if len(self._received) >= self._length and self.answer is not None and not self.answer.done():
            self.answer.set_result(self._received)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Whoever waits gets nothing."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(b"")


def _length(received: bytes) -> float:
    """Return how long the whole answer is, infinite while that is not known."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return inf
    _, _, told = received[: head_end + 2].lower().partition(b"\r\ncontent-length:")
    return head_end + 4 + int(told[: told.index(b"\r")])


class Asking:
    """All connections of this process, and all that was answered."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._place = (place.hostname or "", place.port or 80)
        self._idle: list[Line] = []
        self.answers: list[Answer] = []

    async def open_loop(self, plan: Plan, start: float) -> None:
        """Ask each call when it is due, whatever came of the others."""
        async with asyncio.TaskGroup() as tasks:
            for call in plan.calls:
                early_s = start + call.due_s - time.monotonic()
                if early_s > 0:
                    await asyncio.sleep(max(early_s, ROUND_S))
                tasks.create_task(self._ask(call, start + call.due_s))

    async def closed_loop(self, plan: Plan, start: float) -> None:
        """Ask so many at once, the next when one is answered, until the time is over or nothing is left."""
        calls = iter(plan.calls)

        async def caller() -> None:
            for call in calls:
                if time.monotonic() > start + plan.seconds:
                    break
                await self._ask(call, time.monotonic())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan.at_once):
                tasks.create_task(caller())

    async def _ask(self, call: Call, due: float) -> None:
        key = "" if call.key is None else f"Idempotency-Key: {call.key}\r\n"
        request = f"{call.method} {call.path} HTTP/1.1\r\nHost: gateway\r\n{key}\r\n".encode()
        began = time.monotonic()
        received = await self._answer(request)
        status = int(received[9:12]) if received else NO_ANSWER
        head, _, body = received.partition(b"\r\n\r\n")
        told = status in (429, 503) and _is_told(status, head.lower(), body)
        self.answers.append(Answer(call, due, began, time.monotonic(), status, body.decode(), told))

    async def _answer(self, request: bytes) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await self._line()
                received = await line.ask(request)
        except (OSError, TimeoutError):
            return b""
        if received:
            self._idle.append(line)
        return received

    async def _line(self) -> Line:
        while self._idle:
            line = self._idle.pop()
            if not line.transport.is_closing():
                return line
        _, line = await asyncio.get_running_loop().create_connection(Line, *self._place)
        return line


def _is_told(status: int, head: bytes, body: bytes) -> bool:
    """Tell whether a refusal is as api.md has it."""
    try:
        problem = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return (
        b"\r\nretry-after: " in head and PROBLEM in head and isinstance(problem, dict) and problem["status"] == status
    )


async def _ask_all(url: str, plan: Plan) -> list[Answer]:
    """Begin when told to; return all answers."""
    asking = Asking(url)
    _say("ready")
    start = float(await asyncio.to_thread(sys.stdin.readline))
    await asyncio.sleep(max(start - time.monotonic(), 0))
    await (asking.closed_loop if plan.at_once else asking.open_loop)(plan, start)
    return asking.answers


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main(url: str, plan: Path, answers: Path) -> None:
    """Be one process of a flood."""
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    gc.disable()  # a pause would look like one of the system's
    calls = msgspec.msgpack.decode(plan.read_bytes(), type=Plan)
    answers.write_bytes(msgspec.msgpack.encode(uvloop.run(_ask_all(url, calls))))
    _say("done")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
