"""Relays: what is held up arrives afterwards, in order; what is cut hears nothing, not even of an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from relay import Connection, Relay, Translate, relaying

from local.profiles import HOST

A_MOMENT_S = 0.1
FOREVER_S = 10.0
T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pair:
    """A caller and a callee, connected through a relay."""

    def __init__(self, relay: Relay, caller: Stream, callee: Stream) -> None:
        self.relay = relay
        self.hears, self.says = caller
        self.callee_hears, self.callee_says = callee


@asynccontextmanager
async def a_callee() -> AsyncIterator[tuple[int, asyncio.Queue[Stream]]]:
    """Yield a port and who has called there."""
    called: asyncio.Queue[Stream] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: called.put_nowait((reader, writer)), HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], called
    finally:
        server.close()


@asynccontextmanager
async def a_pair(make: Callable[[int], Relay] = Relay) -> AsyncIterator[Pair]:
    async with a_callee() as (port, called), relaying(make(port)) as relay:
        caller = await asyncio.open_connection(HOST, relay.port)
        callee = await soon(called.get())
        try:
            yield Pair(relay, caller, callee)
        finally:
            caller[1].close()
            callee[1].close()


async def soon(what: Awaitable[T]) -> T:
    return await asyncio.wait_for(what, FOREVER_S)


async def is_silent(reader: asyncio.StreamReader) -> bool:
    """Tell whether neither data nor an end comes for a moment."""
    reading = asyncio.ensure_future(reader.read(1))
    done, _ = await asyncio.wait({reading}, timeout=A_MOMENT_S)
    reading.cancel()
    return not done


async def test_what_is_said_is_heard_both_ways() -> None:
    async with a_pair() as pair:
        pair.says.write(b"how much?")
        assert await soon(pair.callee_hears.readexactly(9)) == b"how much?"
        pair.callee_says.write(b"five")
        assert await soon(pair.hears.readexactly(4)) == b"five"


async def test_megabytes_pass_whole_and_in_order() -> None:
    data = bytes(range(256)) * 40_000
    async with a_pair() as pair:
        pair.says.write(data)
        assert await soon(pair.callee_hears.readexactly(len(data))) == data


async def test_an_end_is_heard_and_the_other_way_stays_open_until_its_own() -> None:
    async with a_pair() as pair:
        pair.says.write_eof()
        assert await soon(pair.callee_hears.read()) == b""
        pair.callee_says.write(b"last words")
        pair.callee_says.close()
        assert await soon(pair.hears.read()) == b"last words"


async def test_a_relay_to_nobody_breaks_what_calls_it() -> None:
    async with a_callee() as (port, _):
        pass
    async with relaying(Relay(port)) as relay:
        reader, writer = await asyncio.open_connection(HOST, relay.port)
        assert await soon(ended(reader))
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_held_requests_arrive_afterwards_and_answers_pass_meanwhile() -> None:
    async with a_pair() as pair:
        pair.relay.hold(requests=True, answers=False)
        pair.says.write(b"held")
        pair.callee_says.write(b"heard")

        assert await soon(pair.hears.readexactly(5)) == b"heard"
        assert await is_silent(pair.callee_hears)
        pair.relay.hold(requests=False, answers=False)
        assert await soon(pair.callee_hears.readexactly(4)) == b"held"


async def test_held_answers_arrive_afterwards_and_requests_pass_meanwhile() -> None:
    async with a_pair() as pair:
        pair.relay.hold(requests=False, answers=True)
        pair.says.write(b"heard")
        pair.callee_says.write(b"held")

        assert await soon(pair.callee_hears.readexactly(5)) == b"heard"
        assert await is_silent(pair.hears)
        pair.relay.hold(requests=False, answers=False)
        assert await soon(pair.hears.readexactly(4)) == b"held"


async def test_an_end_is_held_up_like_everything_else() -> None:
    async with a_pair() as pair:
        pair.relay.hold(requests=True, answers=True)
        pair.says.write(b"goodbye")
        pair.says.close()

        assert await is_silent(pair.callee_hears)
        pair.relay.hold(requests=False, answers=False)
        assert await soon(pair.callee_hears.read()) == b"goodbye"


async def test_who_speaks_to_somebody_gone_does_not_learn_it_while_the_way_back_is_held() -> None:
    async with a_pair() as pair:
        pair.relay.hold(requests=True, answers=False)
        pair.says.transport.abort()
        for _ in range(5):
            pair.callee_says.write(b"are you there?")
            assert await is_silent(pair.callee_hears)
        pair.relay.hold(requests=False, answers=False)
        assert await soon(ended(pair.callee_hears))


async def test_a_connection_that_is_made_while_all_are_held_is_held() -> None:
    async with a_callee() as (port, called), relaying(Relay(port)) as relay:
        relay.hold(requests=True, answers=True)
        _, writer = await asyncio.open_connection(HOST, relay.port)
        writer.write(b"held")
        reader, _ = await soon(called.get())

        assert await is_silent(reader)
        relay.hold(requests=False, answers=False)
        assert await soon(reader.readexactly(4)) == b"held"
        writer.close()


async def test_who_says_too_much_while_it_is_held_has_to_wait() -> None:
    async with a_pair() as pair:
        pair.relay.hold(requests=True, answers=True)
        pair.says.write(bytes(20_000_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair.says.drain(), A_MOMENT_S)
        pair.relay.hold(requests=False, answers=False)
        assert len(await soon(pair.callee_hears.readexactly(20_000_000))) == 20_000_000


async def test_delayed_requests_come_later_in_order_also_when_the_delay_ends_meanwhile() -> None:
    async with a_pair() as pair:
        (connection,) = pair.relay.connections
        connection.requests.delay_s = 0.2
        began = time.monotonic()
        pair.says.write(b"one ")
        await asyncio.sleep(0.05)
        connection.requests.delay_s = 0.0
        pair.says.write(b"two ")
        pair.says.close()

        assert await soon(pair.callee_hears.read()) == b"one two "
        assert time.monotonic() - began >= 0.2


async def test_what_is_broken_is_heard_of_at_both_sides_and_forgotten() -> None:
    async with a_pair() as pair:
        pair.relay.abort()
        assert await soon(ended(pair.hears))
        assert await soon(ended(pair.callee_hears))
        assert pair.relay.connections == set()


class Refusing(Relay):
    async def admit(self, connection: Connection) -> bool:
        del connection
        return False


async def test_who_is_not_admitted_is_broken_off_and_nobody_is_called() -> None:
    async with a_callee() as (port, called), relaying(Refusing(port)) as relay:
        reader, writer = await asyncio.open_connection(HOST, relay.port)
        assert await soon(ended(reader))
        assert called.empty()
        writer.close()


class Loud(Relay):
    def requests_filter(self) -> Translate:
        return bytes.upper


async def test_a_filter_changes_what_is_heard() -> None:
    async with a_pair(Loud) as pair:
        pair.says.write(b"quiet")
        assert await soon(pair.callee_hears.readexactly(5)) == b"QUIET"
