"""A TCP relay before the broker, which can hold up what goes either way, and cut everything."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator

from local.profiles import HOST

CHUNK_BYTES = 1 << 16


class Relay:
    """Carries bytes between clients and a broker.

    Clients stay on it: where the broker's answers name the broker's own address, they name the relay's instead.
    """

    def __init__(self, broker: str) -> None:
        self._broker_port = int(broker.rpartition(":")[2])
        self._requests = _open_gate()
        self._answers = _open_gate()
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"{HOST}:{self._port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, HOST, 0)
        self._port: int = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        self._abort()
        await self._server.wait_closed()

    @contextlib.contextmanager
    def requests_held(self) -> Iterator[None]:
        """Let nothing reach the broker; what was sent meanwhile arrives afterwards."""
        with _shut(self._requests):
            yield

    @contextlib.contextmanager
    def answers_held(self) -> Iterator[None]:
        """Let nothing come back from the broker; what it answered meanwhile comes afterwards."""
        with _shut(self._answers):
            yield

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Break every connection, and every new one."""
        self._is_cut = True
        self._abort()
        try:
            yield
        finally:
            self._is_cut = False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self._is_cut:
                writer.transport.abort()
                return
            there_reader, there_writer = await asyncio.open_connection(HOST, self._broker_port)
            self._writers |= {writer, there_writer}
            await asyncio.gather(
                self._pump(reader, there_writer, self._requests), self._pump(there_reader, writer, self._answers)
            )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                await gate.wait()
                writer.write(data.replace(_as_kafka_says(self._broker_port), _as_kafka_says(self._port)))
                await writer.drain()
        finally:
            writer.close()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@contextlib.asynccontextmanager
async def a_relay(broker: str) -> AsyncIterator[Relay]:
    relay = Relay(broker)
    await relay.open()
    try:
        yield relay
    finally:
        await relay.close()


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@contextlib.contextmanager
def _shut(gate: asyncio.Event) -> Iterator[None]:
    gate.clear()
    try:
        yield
    finally:
        gate.set()


def _as_kafka_says(port: int) -> bytes:
    """Return the end of an address as Kafka's protocol has it: the host's characters, the port in four bytes."""
    return HOST.encode() + struct.pack(">i", port)
