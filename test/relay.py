"""TCP relays: what two processes say to each other passes here, and can be held up, slowed down or cut.

As on a network that drops packets, a connection of which something is held up stays open, nothing gets through, and not
even its end is heard at the other side.  What was held up arrives afterwards, unless the connection is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

from local.profiles import HOST

Translate = Callable[[bytes], bytes]
"""Makes of what was said what is heard; called with whatever comes at a time."""


def unchanged(data: bytes) -> bytes:
    """Translate nothing."""
    return data


class End(asyncio.Protocol):
    """One end of a connection: what comes in here goes out at the other end, `delay_s` later."""

    def __init__(self, connection: Connection, translate: Translate) -> None:
        self.delay_s = 0.0
        self.is_lost = False
        self._connection = connection
        self._translate = translate
        self._other: End | None = None
        self._transport: asyncio.Transport | None = None
        self._early: list[Callable[[End], None]] = []
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._is_reading = True
        self._is_held = False
        self._is_crowded = False
        self._has_ended = False

    def join(self, other: End) -> None:
        """Begin to carry."""
        self._other = other
        self._attend()

    def hold(self, *, is_held: bool) -> None:
        """Let nothing through, or what was held up and all that comes."""
        self._is_held = is_held
        self._attend()

    def abort(self) -> None:
        """Break it, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_made(self) -> bool:
        """Say whether there ever was a connection."""
        return self._transport is not None

    @property
    def peer_port(self) -> int:
        """The port at the other side of the connection."""
        assert self._transport is not None
        port: int = self._transport.get_extra_info("peername")[1]
        return port

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        asyncio.get_running_loop().call_soon(self._attend)  # not now: uvloop begins to read after this call
        self._connection.note_made(self)

    def data_received(self, data: bytes) -> None:
        heard = self._translate(data)
        self._pass_on(lambda other: other.say(heard))

    def eof_received(self) -> bool:
        self._has_ended = True
        self._pass_on(lambda other: other.finish())
        return True

    def connection_lost(self, _why: Exception | None) -> None:
        self.is_lost = True
        self._pass_on(End.close)
        self._connection.note_lost()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.wait(is_crowded=True)

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.wait(is_crowded=False)

    # What the other end calls

    def say(self, data: bytes) -> None:
        """Send it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Send that nothing more will come."""
        if self._has_ended:
            self.close()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Send what is on its way, and be done."""
        if self._transport is not None:
            self._transport.close()

    def wait(self, *, is_crowded: bool) -> None:
        """Take nothing in while the other end cannot get rid of it."""
        self._is_crowded = is_crowded
        self._attend()

    # Reading

    def _attend(self) -> None:
        """Read if there is somebody to tell and nothing against it, and first pass on what came too early."""
        is_open = self._other is not None and not self._is_held
        if is_open:
            early, self._early = self._early, []
            for act in early:
                self._pass_on(act)
        if self._transport is not None and not self.is_lost:
            self._read(self._transport, reads=is_open and not self._is_crowded)

    def _read(self, transport: asyncio.Transport, *, reads: bool) -> None:
        if reads and not self._is_reading:
            transport.resume_reading()
        elif self._is_reading and not reads:
            transport.pause_reading()
        self._is_reading = reads

    def _pass_on(self, act: Callable[[End], None]) -> None:
        """Do it to the other end, now or when its time has come, in order."""
        other = self._other
        if other is None or self._is_held:
            self._early.append(act)
            return
        if self.delay_s == 0 and not self._queue:
            act(other)
            return
        loop = asyncio.get_running_loop()
        self._queue.append((loop.time() + self.delay_s, lambda: act(other)))
        if len(self._queue) == 1:
            loop.call_later(self.delay_s, self._release)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._queue[0][0] <= loop.time():
            _, act = self._queue.popleft()
            act()
        if self._queue:
            loop.call_at(self._queue[0][0], self._release)


class Connection:
    """Two ends: `requests` come in at the caller's, `answers` at the callee's."""

    def __init__(self, relay: Relay) -> None:
        self.requests = End(self, relay.requests_filter())
        self.answers = End(self, relay.answers_filter())
        self.caller = (0, 0)
        """From which port, to which port: nobody else has both."""
        self._relay = relay

    def hold(self, *, requests: bool, answers: bool) -> None:
        """Let nothing through one way, both ways or neither."""
        self.requests.hold(is_held=requests)
        self.answers.hold(is_held=answers)

    def abort(self) -> None:
        """Break it: both sides are told."""
        self.requests.abort()
        self.answers.abort()

    def note_made(self, end: End) -> None:
        """Be called."""
        if end is self.requests:
            self.caller = (end.peer_port, self._relay.port)
            self._relay.take(self)

    def note_lost(self) -> None:
        """Be done once both ends are: until then one may have to be told of the other's loss."""
        if self.requests.is_lost and (self.answers.is_lost or not self.answers.is_made):
            self._relay.drop(self)


class Relay:
    """Carries whoever connects to its port on to another."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        """With port 0 the kernel chooses one."""
        self.target_port = target_port
        self.port = port
        self.connections: set[Connection] = set()
        self._holds = {"requests": False, "answers": False}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"{HOST}:{self.port}"

    async def open(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self).requests, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and break every connection."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.abort()
        await self._server.wait_closed()

    def hold(self, *, requests: bool, answers: bool) -> None:
        """Let nothing through one way, both ways or neither, on all connections that there are and will be."""
        self._holds = {"requests": requests, "answers": answers}
        for connection in self.connections:
            connection.hold(**self._holds)

    def abort(self) -> None:
        """Break every connection."""
        for connection in list(self.connections):
            connection.abort()

    # What others may do differently

    async def admit(self, connection: Connection) -> bool:
        """Return whether to carry a new connection, at the moment when that may begin."""
        del connection
        return True

    def requests_filter(self) -> Translate:
        """Return what a new connection's requests pass."""
        return unchanged

    def answers_filter(self) -> Translate:
        """Return what a new connection's answers pass."""
        return unchanged

    # What connections call

    def take(self, connection: Connection) -> None:
        """Begin with a connection."""
        self.connections.add(connection)
        connection.hold(**self._holds)
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def drop(self, connection: Connection) -> None:
        """Be done with a connection."""
        self.connections.discard(connection)

    async def _connect(self, connection: Connection) -> None:
        if not await self.admit(connection):
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection.answers, HOST, self.target_port)
        except OSError:
            connection.abort()
            return
        connection.requests.join(connection.answers)
        connection.answers.join(connection.requests)


@contextlib.asynccontextmanager
async def relaying(relay: Relay) -> AsyncIterator[Relay]:
    """Yield a relay that listens."""
    await relay.open()
    try:
        yield relay
    finally:
        await relay.close()
