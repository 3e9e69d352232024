"""A relay before the broker, which can hold up what goes either way, and cut everything."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Iterator

import relay

from local.profiles import HOST


class Relay(relay.Relay):
    """Carries bytes between clients and a broker.

    Clients stay on it: where the broker's answers name the broker's own address, they name the relay's instead.
    """

    def __init__(self, broker: str) -> None:
        super().__init__(int(broker.rpartition(":")[2]))
        self._is_cut = False

    @contextlib.contextmanager
    def requests_held(self) -> Iterator[None]:
        """Let nothing reach the broker; what was sent meanwhile arrives afterwards."""
        self.hold(requests=True, answers=False)
        try:
            yield
        finally:
            self.hold(requests=False, answers=False)

    @contextlib.contextmanager
    def answers_held(self) -> Iterator[None]:
        """Let nothing come back from the broker; what it answered meanwhile comes afterwards."""
        self.hold(requests=False, answers=True)
        try:
            yield
        finally:
            self.hold(requests=False, answers=False)

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Break every connection, and every new one."""
        self._is_cut = True
        self.abort()
        try:
            yield
        finally:
            self._is_cut = False

    async def admit(self, connection: relay.Connection) -> bool:
        """Return whether it is not cut."""
        return not self._is_cut and await super().admit(connection)

    def answers_filter(self) -> relay.Translate:
        """Return what puts the relay's address in place of the broker's."""
        return lambda data: data.replace(_as_kafka_says(self.target_port), _as_kafka_says(self.port))


@contextlib.asynccontextmanager
async def a_relay(broker: str) -> AsyncIterator[Relay]:
    carrying = Relay(broker)
    await carrying.open()
    try:
        yield carrying
    finally:
        await carrying.close()


def _as_kafka_says(port: int) -> bytes:
    """Return the end of an address as Kafka's protocol has it: the host's characters, the port in four bytes."""
    return HOST.encode() + struct.pack(">i", port)
