"""HTTP/1.1 over asyncio streams, with connections that are kept: what thousands of clients behind a proxy look like.

One call, one request on the wire: nothing is asked again here, whatever happens to the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.parser import BytesHeaderParser

import msgspec

IDLE_MAX_S = 20.0
"""The gateway closes what is idle for 60 s."""
PATIENCE_S = 60.0
"""The gateway gives up on a server after 30 s, and on a queue after 25 s."""


class Answer(msgspec.Struct, frozen=True):
    """What came back; names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Cut(Exception):
    """No whole answer came: refused, reset, closed in the middle, or nothing for too long."""


class Connection:
    """One connection, and since when nobody uses it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.idle_since = time.monotonic()
        self._reader = reader
        self._writer = writer

    def is_usable(self) -> bool:
        """Tell whether the other side has kept it open so far."""
        idle_s = time.monotonic() - self.idle_since
        return idle_s < IDLE_MAX_S and not self._reader.at_eof() and not self._writer.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Return the answer."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status_line, _, lines = head.partition(b"\r\n")
        headers = {name.lower(): value for name, value in BytesHeaderParser().parsebytes(lines).items()}
        body = await self._reader.readexactly(int(headers["content-length"]))
        self.idle_since = time.monotonic()
        return Answer(int(status_line.split()[1]), headers, body)

    def close(self) -> None:
        """Close it, whatever is under way."""
        self._writer.close()


class Wire:
    """All connections to one gateway; the one that was used last is used next."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._kept: list[Connection] = []

    async def ask(self, method: str, path: str, key: str | None = None) -> Answer:
        """Return the answer; Cut if there is none."""
        own = "" if key is None else f"Idempotency-Key: {key}\r\n"
        request = f"{method} {path} HTTP/1.1\r\nHost: {self._place[0]}\r\nContent-Length: 0\r\n{own}\r\n"
        try:
            return await asyncio.wait_for(self._ask(request.encode()), PATIENCE_S)
        except (OSError, EOFError, TimeoutError) as why:
            raise Cut(repr(why)) from why

    async def _ask(self, request: bytes) -> Answer:
        connection = await self._connection()
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            connection.close()
        else:
            self._kept.append(connection)
        return answer

    async def _connection(self) -> Connection:
        while self._kept:
            connection = self._kept.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return Connection(*await asyncio.open_connection(*self._place))

    def close(self) -> None:
        """Close what is kept."""
        while self._kept:
            self._kept.pop().close()
