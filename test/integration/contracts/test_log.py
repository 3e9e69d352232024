"""What the log promises, to everybody: the simulated one and the real one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from aiokafka.errors import MessageSizeTooLargeError
from integration.contracts.log_worlds import LogWorld, log_contract
from simulation.log import CLOCKS_DIFFER_MS

from common.fold import DeadLetter, Record
from common.log import LogFailed, Sender, inbox
from common.messages import Genesis
from common.processor import Tail
from common.snapshot import SnapshotLog

CLOCK_SLACK_MS = 1_000
OVERSIZED_BYTES = 1_048_588 + 1
A_WHILE_S = 0.2


async def fill(sender: Sender, partition: str, *values: bytes) -> list[int]:
    """Append one record after the other; return their offsets."""
    return [await sender.send(inbox(partition), value) for value in values]


async def follow(tail: Tail, start: int, end: int) -> list[Record]:
    """Return the records from `start` to `end`, as they come."""
    tail.seek(start)
    records: list[Record] = []
    while len(records) < end - start:
        records += await tail.poll(1.0, 500)
    assert [record.offset for record in records] == list(range(start, end))
    return records


async def values_from(tail: Tail, start: int, end: int) -> list[bytes]:
    return [record.value for record in await follow(tail, start, end)]


def numbered(count: int) -> list[bytes]:
    return [f"value {number}".encode() for number in range(count)]


# --- appending -------------------------------------------------------------------------------------------------------


@log_contract
async def test_offsets_are_consecutive_from_the_genesis_on_in_each_partition(world: LogWorld) -> None:
    sender, another = await world.sender(), await world.sender()

    assert await fill(sender, world.first, b"a", b"b") == [1, 2]
    assert await fill(another, world.first, b"c") == [3]
    assert await fill(sender, world.second, b"d") == [1]
    assert await fill(sender, world.first, b"e") == [4]

    genesis = (await follow(await world.tail(world.first), 0, 5))[0]
    assert msgspec.msgpack.decode(genesis.value, type=Genesis).log_id


@log_contract
async def test_what_is_sent_at_once_gets_offsets_of_its_own(world: LogWorld) -> None:
    sender = await world.sender()

    values = numbered(20)
    offsets = await asyncio.gather(*[sender.send(inbox(world.first), value) for value in values])

    records = await follow(await world.tail(world.first), 1, 21)
    assert {record.offset: record.value for record in records} == dict(zip(offsets, values, strict=True))


@log_contract
async def test_an_oversized_record_is_refused_at_once_and_stops_nothing(world: LogWorld) -> None:
    sender = await world.sender()

    with pytest.raises(MessageSizeTooLargeError):  # not LogFailed: it would be repeated for ever
        await sender.send(inbox(world.first), b"x" * OVERSIZED_BYTES)

    assert await fill(sender, world.first, b"next") == [1]


@log_contract
async def test_time_is_the_brokers(world: LogWorld) -> None:
    before_ms = world.now_ms()
    await fill(await world.sender(), world.first, *numbered(10))

    records = await follow(await world.tail(world.first), 0, 11)

    times_ms = [record.timestamp_ms for record in records[1:]]
    assert before_ms - CLOCK_SLACK_MS <= min(times_ms) <= max(times_ms) <= world.now_ms() + CLOCK_SLACK_MS
    assert all(later >= earlier - 2 * CLOCKS_DIFFER_MS for earlier, later in pairwise(times_ms))


@log_contract
async def test_a_record_has_one_time_for_all_who_read_it(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, *numbered(3))

    once, again = await world.tail(world.first), await world.tail(world.first)

    assert await follow(once, 0, 4) == await follow(again, 0, 4) == await follow(once, 0, 4)


# --- appends of which nobody knows -----------------------------------------------------------------------------------


@log_contract
async def test_a_send_that_failed_may_append_late_even_after_later_sends(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)

    async with world.slow_sender() as slow:
        with pytest.raises(LogFailed):
            await slow.send(inbox(world.first), b"late")
        assert await fill(sender, world.first, b"late", b"later") == [1, 2]

    assert await values_from(tail, 1, 4) == [b"late", b"later", b"late"]
    assert await fill(sender, world.first, b"last") == [4]


@log_contract
async def test_a_send_that_failed_may_have_appended_and_a_repeat_is_a_record_of_its_own(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)

    async with world.deaf_sender() as deaf:
        with pytest.raises(LogFailed):
            await deaf.send(inbox(world.first), b"same")
        assert await values_from(tail, 1, 2) == [b"same"]
        assert await fill(sender, world.first, b"same") == [2]

    assert await values_from(tail, 1, 3) == [b"same", b"same"]


# --- reading ---------------------------------------------------------------------------------------------------------


@log_contract
async def test_every_tail_sees_every_acknowledged_record_once_and_in_order(world: LogWorld) -> None:
    values = numbered(30)
    before = await world.tail(world.first)
    following = asyncio.ensure_future(values_from(before, 1, 31))
    await fill(await world.sender(), world.first, *values)

    assert await following == values
    assert await values_from(await world.tail(world.first), 1, 31) == values


@log_contract
async def test_a_tail_sees_nothing_of_another_partition(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)
    await fill(sender, world.second, *numbered(5))
    await fill(sender, world.first, b"mine")

    assert await values_from(tail, 1, 2) == [b"mine"]
    assert await tail.bounds() == (0, 2)


@log_contract
async def test_a_poll_returns_so_many_records_at_most(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, *numbered(10))
    tail = await world.tail(world.first)
    tail.seek(1)

    offsets: list[int] = []
    while len(offsets) < 10:
        records = await tail.poll(1.0, 3)
        assert len(records) <= 3
        offsets += [record.offset for record in records]

    assert offsets == list(range(1, 11))


@log_contract
async def test_a_poll_waits_as_long_as_it_may_and_returns_nothing(world: LogWorld) -> None:
    tail = await world.tail(world.first)
    tail.seek(1)
    loop = asyncio.get_running_loop()

    started_s = loop.time()
    assert await tail.poll(A_WHILE_S, 500) == []
    assert loop.time() - started_s >= 0.9 * A_WHILE_S
    assert await tail.poll(0, 500) == []


@log_contract
async def test_a_poll_wakes_when_a_record_is_appended(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)
    tail.seek(1)

    waiting = asyncio.ensure_future(tail.poll(20.0, 500))
    await asyncio.sleep(A_WHILE_S)
    assert not waiting.done()
    await fill(sender, world.first, b"awaited")

    assert [(record.offset, record.value) for record in await waiting] == [(1, b"awaited")]


@log_contract
async def test_a_read_returns_exactly_that_record_and_polls_go_on_behind_it(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, *numbered(5))
    tail = await world.tail(world.first)

    for offset in (3, 1, 5, 2):
        record = await tail.read(offset)
        assert record is not None
        assert (record.offset, record.value) == (offset, b"value %d" % (offset - 1))
    assert (await tail.poll(1.0, 1))[0].offset == 3


@log_contract
async def test_a_read_waits_for_a_record_that_comes_in_time_and_no_longer(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)

    reading = asyncio.ensure_future(tail.read(1))
    await asyncio.sleep(A_WHILE_S)
    await fill(sender, world.first, b"in time")
    record = await reading

    assert record is not None
    assert record.value == b"in time"
    assert await tail.read(2) is None
    await fill(sender, world.first, b"too late")
    assert [record.value for record in await tail.poll(20.0, 500)] == [b"too late"]


@log_contract
async def test_a_position_beyond_the_end_fails(world: LogWorld) -> None:
    tail = await world.tail(world.first)

    for beyond in (2, 1_000):
        tail.seek(beyond)
        with pytest.raises(LogFailed):
            await tail.poll(20.0, 500)
        with pytest.raises(LogFailed):
            await tail.read(beyond)
    assert [record.offset for record in await follow(tail, 0, 1)] == [0]


@log_contract
async def test_what_is_known_to_be_behind_is_there(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, *numbered(5))
    tail = await world.tail(world.first)

    assert 0 <= tail.behind(1) <= 5
    await follow(tail, 1, 6)
    assert [tail.behind(position) for position in (1, 4, 6, 7)] == [5, 2, 0, 0]


@log_contract
async def test_bounds_and_ends_count_all_that_was_acknowledged_to_anybody(world: LogWorld) -> None:
    ends, tail = await world.ends(), await world.tail(world.first)
    senders = [await world.sender(), await world.sender()]

    assert (await ends.end(world.first), await tail.bounds()) == (1, (0, 1))
    for number in range(10):
        offset = await senders[number % 2].send(inbox(world.first), b"value")
        assert await ends.end(world.first) == offset + 1
        assert await tail.bounds() == (0, offset + 1)
    assert await ends.end(world.second) == 1


# --- losing ----------------------------------------------------------------------------------------------------------


@log_contract
async def test_a_log_that_lost_its_tail_ends_earlier_and_gives_the_offsets_anew(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, b"kept", b"lost", b"lost too")
    await world.lose_tail(2, [])

    tail = await world.tail(world.first)
    assert await tail.bounds() == (0, 2)
    assert await fill(await world.sender(), world.first, b"other") == [2]
    assert await values_from(tail, 1, 3) == [b"kept", b"other"]


@log_contract
async def test_a_reader_beyond_the_end_of_a_log_that_lost_its_tail_fails(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, b"kept", b"lost", b"lost too")
    tail = await world.tail(world.first)
    await follow(tail, 0, 4)
    await world.lose_tail(2, [])

    with pytest.raises(LogFailed):
        await next_of(tail)


@log_contract
async def test_a_reader_whose_place_was_filled_again_may_notice_nothing(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, b"kept", b"lost", b"lost too")
    tail = await world.tail(world.first)
    await follow(tail, 0, 4)
    await world.lose_tail(2, [b"other", b"other too", b"new"])

    assert await next_of(tail) == (4, b"new")


async def next_of(tail: Tail) -> tuple[int, bytes]:
    while not (records := await tail.poll(1.0, 1)):
        pass
    return records[0].offset, records[0].value


# --- failing ---------------------------------------------------------------------------------------------------------


@log_contract
async def test_a_log_that_cannot_be_reached_fails_as_such_and_in_no_other_way(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)
    ends, box = await world.ends(), await world.dead_letters()
    await fill(sender, world.first, b"before")
    assert await ends.end(world.first) == 2

    async with world.outage():
        for call in (
            sender.send(inbox(world.first), b"meanwhile"),
            tail.bounds(),
            ends.end(world.first),
            box.put(DeadLetter(world.first, 1, 0, "", b"")),
            box.of(world.first),
        ):
            with pytest.raises(LogFailed):
                await call

    assert (await fill(await world.sender(), world.first, b"after"))[0] >= 2
    assert await ends.end(world.first) >= 3
    assert (await values_from(await world.tail(world.first), 1, 3))[0] == b"before"


@log_contract
async def test_a_tail_whose_connection_was_cut_fails_or_goes_on(world: LogWorld) -> None:
    sender, tail = await world.sender(), await world.tail(world.first)
    tail.seek(1)
    async with world.outage():
        with suppress(LogFailed):
            assert await tail.poll(A_WHILE_S, 500) == []
    await fill(await world.sender(), world.first, b"after")

    try:
        assert await next_of(tail) == (1, b"after")
    except LogFailed:
        assert await values_from(await world.tail(world.first), 1, 2) == [b"after"]
    assert (await fill(sender, world.first, b"more"))[0] == 2


# --- dead letters ----------------------------------------------------------------------------------------------------


@log_contract
async def test_dead_letters_are_numbered_from_0_and_found_by_partition_and_number(world: LogWorld) -> None:
    box = await world.dead_letters()
    places = [(world.first, 7, 0), (world.second, 7, 0), (world.first, 7, 1), (world.first, 9, 0)]

    assert await box.of(world.first) == {}
    assert [await box.put(DeadLetter(*place, "why", b"")) for place in places] == [0, 1, 2, 3]

    assert await box.of(world.first) == {(7, 0): 0, (7, 1): 2, (9, 0): 3}
    assert await box.of(world.second) == {(7, 0): 1}
    assert await box.of(world.first, since=2) == {(7, 1): 2, (9, 0): 3}
    assert await box.of(world.first, since=4) == {}


@log_contract
async def test_of_two_dead_letters_for_one_message_the_first_counts(world: LogWorld) -> None:
    box, another = await world.dead_letters(), await world.dead_letters()

    assert await box.put(DeadLetter(world.first, 3, 1, "one owner's", b"")) == 0
    assert await another.put(DeadLetter(world.first, 3, 1, "another owner's", b"")) == 1

    assert await box.of(world.first) == await another.of(world.first) == {(3, 1): 0}
    assert await box.of(world.first, since=1) == {(3, 1): 1}


# --- snapshots, and what is deleted ----------------------------------------------------------------------------------


async def chunks_at(snapshots: SnapshotLog, partition: str, *offsets: int) -> list[bytes | None]:
    """Return the chunks, None where there is none."""
    found = snapshots.chunks(partition, list(offsets))
    return [None if chunk is None else chunk.value async for chunk in found]


async def manifests_of(snapshots: SnapshotLog, partition: str) -> list[tuple[int, bytes]]:
    return [(record.offset, record.value) for record in await snapshots.manifests(partition)]


@log_contract
async def test_chunks_and_manifests_are_read_back_and_partitions_do_not_mix(world: LogWorld) -> None:
    snapshots, another = await world.snapshots(), await world.snapshots()
    assert await manifests_of(snapshots, world.first) == []
    assert await chunks_at(snapshots, world.first, 0) == [None]

    offsets = [await snapshots.put_chunk(world.first, chunk) for chunk in (b"a", b"b", b"c")]
    await snapshots.put_manifest(world.first, b"m0")
    await another.put_manifest(world.first, b"m1")
    await another.put_chunk(world.second, b"other")

    assert offsets == [0, 1, 2]
    assert await chunks_at(another, world.first, 2, 0, 3, 1) == [b"c", b"a", None, b"b"]
    assert await manifests_of(another, world.first) == [(0, b"m0"), (1, b"m1")]
    assert await manifests_of(another, world.second) == []
    assert await (await world.tail(world.first)).bounds() == (0, 1)


@log_contract
async def test_what_is_deleted_is_gone_for_everybody_and_nothing_else_is(world: LogWorld) -> None:
    sender, snapshots = await world.sender(), await world.snapshots()
    await fill(sender, world.first, *numbered(9))
    for name in (b"a", b"b", b"c"):
        await snapshots.put_chunk(world.first, name)
        await snapshots.put_manifest(world.first, name)
    connected = await world.tail(world.first)
    assert await values_from(connected, 1, 10) == numbered(9)

    await snapshots.trim(world.first, 4, 2, 1)
    await snapshots.trim(world.first, 3, 0, 0)  # a late one brings nothing back

    for tail in (connected, await world.tail(world.first)):
        assert await tail.bounds() == (4, 10)
        assert await values_from(tail, 4, 10) == numbered(9)[3:]
    assert await chunks_at(snapshots, world.first, 0, 1, 2) == [None, None, b"c"]
    assert await manifests_of(snapshots, world.first) == [(1, b"b"), (2, b"c")]
    assert await (await world.tail(world.second)).bounds() == (0, 1)
    assert await fill(sender, world.first, b"next") == [10]


@log_contract
async def test_a_tail_that_stands_where_records_were_deleted_fails(world: LogWorld) -> None:
    await fill(await world.sender(), world.first, *numbered(9))
    tail = await world.tail(world.first)
    await (await world.snapshots()).trim(world.first, 4, 0, 0)

    for position in (0, 3):
        tail.seek(position)
        with pytest.raises(LogFailed):
            await follow(tail, position, 5)
    assert await values_from(tail, 4, 10) == numbered(9)[3:]


@log_contract
async def test_everything_can_be_deleted_but_nothing_that_is_yet_to_come(world: LogWorld) -> None:
    snapshots, tail = await world.snapshots(), await world.tail(world.first)
    await fill(await world.sender(), world.first, *numbered(2))

    with pytest.raises(LogFailed):
        await snapshots.trim(world.first, 4, 0, 0)
    assert await tail.bounds() == (0, 3)
    await snapshots.trim(world.first, 3, 0, 0)

    assert await tail.bounds() == (3, 3)
    assert await fill(await world.sender(), world.first, b"next") == [3]
    assert await values_from(tail, 3, 4) == [b"next"]


@log_contract
async def test_snapshots_of_a_log_out_of_reach_fail_and_are_not_said_to_be_missing(world: LogWorld) -> None:
    snapshots = await world.snapshots()
    await snapshots.put_chunk(world.first, b"a")

    async with world.outage():
        for call in (
            snapshots.put_chunk(world.first, b"b"),
            snapshots.put_manifest(world.first, b"m"),
            snapshots.manifests(world.first),
            chunks_at(snapshots, world.first, 0),
            snapshots.trim(world.first, 0, 0, 0),
        ):
            with pytest.raises(LogFailed):
                await call

    assert await chunks_at(snapshots, world.first, 0) == [b"a"]
