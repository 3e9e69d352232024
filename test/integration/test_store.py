"""common.store and apply.lua against a real Redis Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from e2e import faults
from integration.probe import (
    APPLY,
    POLL_S,
    STUCK_S,
    WEB,
    ProbeSettings,
    a_probe,
    a_redis,
    a_store,
    hash_of,
    stored,
    the_replies,
)
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from common.fold import Folded
from common.log import LogFailed
from common.messages import Done, Told
from common.snapshot import Manifest
from common.store import FILL_FIELDS, FILL_LIFE_MS, REPLY_LIFE_MS, Fenced, Store, StoreFailed
from local.system import System


def a_fold(start: int, end: int, changes: dict[str, bytes | None] | None = None, *told: Told, to: str = WEB) -> Folded:
    return Folded(start, end, 0, changes or {}, replies={to: list(told)} if told else {})


def some_told(count: int) -> list[Told]:
    return [Told(f"request {number}", number, Done(str(number))) for number in range(count)]


async def apply(store: Store, probe: ProbeSettings, folded: Folded) -> None:
    await store.apply(probe.first, folded, with_replies=True)


def primary_of(system: System, probe: ProbeSettings) -> Redis:
    """Return a client of the node that has the state of the probe's partition."""
    return faults.redis(system, faults.primary_of(system, probe.first))


# --- applying --------------------------------------------------------------------------------------------------------


async def test_a_partition_without_state_stands_at_position_0(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store:
        assert await store.read(probe.first, []) == (0, [])
        assert await store.read(probe.first, ["header", "Item:apple"]) == (0, [None, None])


async def test_an_apply_moves_state_and_position_together(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store:
        await apply(store, probe, a_fold(0, 3, {"header": b"h1", "Item:apple": b"a1", "Item:pear": b"p1"}))
        assert await store.read(probe.first, ["Item:apple", "Item:pear"]) == (3, [b"a1", b"p1"])

        await apply(store, probe, a_fold(3, 4, {"header": b"\x00\xff", "Item:apple": None}))
        assert await store.read(probe.first, ["header", "Item:apple", "Item:pear"]) == (4, [b"\x00\xff", None, b"p1"])


async def test_a_dump_has_the_position_and_every_field_of_the_same_moment(system: System) -> None:
    probe = a_probe(system)
    fields: dict[str, bytes | None] = {f"Item:{number}": b"\x00\xff" for number in range(3_000)}

    async with a_store(probe) as store:
        assert await store.dump(probe.first) == (0, {})

        await apply(store, probe, a_fold(0, 7, {"header": b"h", **fields}, *some_told(1)))
        await apply(store, probe, a_fold(7, 9, {"Item:0": None}))

        position, stored = await store.dump(probe.first)
        assert position == 9
        assert stored == {"header": b"h"} | {field: b"\x00\xff" for field in fields if field != "Item:0"}


@pytest.mark.parametrize(("start", "end"), [(0, 8), (4, 8), (6, 8), (5_000, 8_000)])
async def test_an_apply_from_elsewhere_is_fenced_and_writes_nothing(system: System, start: int, end: int) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, a_redis(probe) as redis, the_replies(probe) as replies:
        await apply(store, probe, a_fold(0, 5, {"Item:apple": b"mine"}))

        with pytest.raises(Fenced, match=f"{probe.first} stands at 5, expected {start}") as fenced:
            await apply(store, probe, a_fold(start, end, {"Item:apple": b"zombie's", "Item:new": b"n"}, *some_told(1)))

        assert fenced.value.stored == 5
        assert await stored(redis, probe.first) == {"position": b"5", "Item:apple": b"mine"}
        assert await replies.take(probe.first) == []


async def test_an_apply_to_an_emptied_store_is_fenced(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, a_redis(probe) as redis:
        with pytest.raises(Fenced) as fenced:
            await apply(store, probe, a_fold(7, 8, {"Item:apple": b"a"}))

        assert fenced.value.stored == 0
        assert await redis.exists(hash_of(probe.first)) == 0


async def test_an_apply_that_is_repeated_succeeds_and_acts_once(system: System) -> None:
    probe = a_probe(system)
    folded = a_fold(0, 5, {"Item:apple": b"a", "Item:gone": None}, *some_told(1))

    async with a_store(probe) as store, a_redis(probe) as redis, the_replies(probe) as replies:
        for _ in range(3):
            await apply(store, probe, folded)

        assert await stored(redis, probe.first) == {"position": b"5", "Item:apple": b"a"}
        assert await replies.take(probe.first) == some_told(1)
        assert await replies.take(probe.first) == []


@pytest.mark.parametrize("count", [999, 1_000, 1_001, 2_000, 7_500])
async def test_thousands_of_fields_are_set_and_deleted_at_once(system: System, count: int) -> None:
    probe = a_probe(system)
    fields = {f"Item:{number}": str(number).encode() for number in range(count)}
    renewed = {f"Item:new-{number}": b"n" for number in range(count)}

    async with a_store(probe) as store, a_redis(probe) as redis:
        await apply(store, probe, a_fold(0, 1, dict(fields)))
        assert await stored(redis, probe.first) == fields | {"position": b"1"}

        await apply(store, probe, a_fold(1, 2, {**dict.fromkeys(fields), **renewed}, *some_told(2)))
        assert await stored(redis, probe.first) == renewed | {"position": b"2"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["0", "5", "1000", "1", "0"],
        ["0", "5", "1000", "1", "0", "Item:apple"],
        ["0", "5", "1000", "1", "0", "Item:apple", "a", "one too many"],
        ["0", "5", "1000", "2", "0", "Item:apple", "a"],
        ["0", "5", "1000", "1", "1", "Item:apple", "a"],
        ["0", "5", "1000", "x", "0", "Item:apple", "a"],
        ["0", "5", "1000"],
        [],
    ],
)
async def test_arguments_that_do_not_agree_write_nothing(system: System, arguments: list[str]) -> None:
    probe = a_probe(system)

    async with a_redis(probe) as redis:
        with pytest.raises(ResponseError):
            await redis.eval(APPLY, 1, hash_of(probe.first), *arguments)

        assert await redis.exists(hash_of(probe.first)) == 0


async def test_a_reply_that_is_missing_for_a_list_writes_nothing(system: System) -> None:
    probe = a_probe(system)
    arguments = ["0", "5", "1000", "1", "0", "Item:apple", "a", "a reply for one list"]
    lists = [f"{hash_of(probe.first)}:replies:{web}" for web in ("one", "two")]

    async with a_redis(probe) as redis:
        with pytest.raises(ResponseError, match="do not agree"):
            await redis.eval(APPLY, 3, hash_of(probe.first), *lists, *arguments)

        assert [await redis.exists(key) for key in (hash_of(probe.first), *lists)] == [0, 0, 0]


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_replies_are_taken_in_their_order_by_whom_they_are_for(system: System) -> None:
    probe = a_probe(system)
    told = some_told(4)

    async with a_store(probe) as store, the_replies(probe) as replies:
        folded = Folded(0, 1, 0, replies={WEB: told[:2], "another web process": told[3:]})
        await apply(store, probe, folded)
        await apply(store, probe, a_fold(1, 2, {}, told[2]))

        assert await replies.take(probe.first) == told[:2]
        assert await replies.take(probe.first) == told[2:3]
        assert await replies.take(probe.first) == []


async def test_replies_are_waited_for(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, the_replies(probe) as replies:
        taking = asyncio.ensure_future(replies.take(probe.first))
        await asyncio.sleep(POLL_S)
        await apply(store, probe, a_fold(0, 1, {}, *some_told(1)))
        taken = await taking or await replies.take(probe.first)

        assert taken == some_told(1)


async def test_an_old_records_replies_are_not_pushed(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, a_redis(probe) as redis:
        await store.apply(probe.first, a_fold(0, 1, {}, *some_told(1)), with_replies=False)

        assert await store.read(probe.first, []) == (1, [])
        assert await redis.exists(reply_list(probe)) == 0


async def test_replies_that_nobody_takes_expire(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, a_redis(probe) as redis:
        await apply(store, probe, a_fold(0, 1, {"Item:apple": b"a"}, *some_told(1)))

        assert 0 < await redis.pttl(reply_list(probe)) <= REPLY_LIFE_MS
        assert await redis.pttl(hash_of(probe.first)) == -1


def reply_list(probe: ProbeSettings) -> str:
    return f"{hash_of(probe.first)}:replies:{WEB}"


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_a_full_memory_still_takes_what_the_log_has_taken(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store, a_redis(probe) as redis:
        await store.read(probe.first, [])
        with memory_full(primary_of(system, probe)):
            with pytest.raises(OutOfMemoryError):
                await redis.set(f"{hash_of(probe.first)}:other", "x")
            assert await store.memory_share(probe.first) > 1

            await apply(store, probe, a_fold(0, 1, {"Item:apple": b"a"}, *some_told(1)))
            await apply(store, probe, a_fold(1, 2, {"Item:apple": None, "Item:pear": b"p"}))

            assert await store.read(probe.first, ["Item:apple", "Item:pear"]) == (2, [None, b"p"])
        assert await store.memory_share(probe.first) < 1


@contextmanager
def memory_full(node: Redis) -> Iterator[None]:
    """Give a node less memory than it uses."""
    limit = node.config_get("maxmemory")["maxmemory"]
    node.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        node.config_set("maxmemory", limit)


async def test_a_node_that_forgot_the_script_is_given_it_again(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store:
        for position in range(3):
            primary_of(system, probe).script_flush()
            await apply(store, probe, a_fold(position, position + 1, {f"Item:{position}": b"i"}))

        assert await store.read(probe.first, ["Item:0", "Item:1", "Item:2"]) == (3, [b"i", b"i", b"i"])


async def test_an_emptied_primary_stands_at_position_0(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store:
        await apply(store, probe, a_fold(0, 5, {"Item:apple": b"a"}))
        primary_of(system, probe).flushall()

        assert await store.read(probe.first, ["Item:apple"]) == (0, [None])


async def test_reads_and_applies_go_on_after_a_failover(system: System) -> None:
    probe = a_probe(system)
    before = faults.primary_of(system, probe.first)

    async with a_store(probe) as store, a_redis(probe) as redis:
        await go_on(store, probe, 0, 100)
        replica = faults.redis(system, faults.replica_of(system, probe.first))
        replica.execute_command("CLUSTER FAILOVER")
        await go_on(store, probe, 100, 200)
        await asyncio.to_thread(
            faults.wait_until, lambda: faults.primary_of(system, probe.first) != before, "a replica was promoted"
        )
        await go_on(store, probe, 200, 300)

        assert await stored(redis, probe.first) == all_until(300)
    await asyncio.to_thread(faults.wait_for_redis, system)


async def test_reads_and_applies_go_on_after_the_primary_was_killed(system: System) -> None:
    probe = a_probe(system)

    async with a_store(probe) as store:
        await go_on(store, probe, 0, 100)
        killing = asyncio.create_task(asyncio.to_thread(faults.kill, system, faults.primary_of(system, probe.first)))
        await go_on(store, probe, 100, 400)
        await killing
        await asyncio.to_thread(faults.wait_for_redis, system)
        await go_on(store, probe, 400, 500)

    async with a_redis(probe) as redis:
        assert await stored(redis, probe.first) == all_until(500)


async def go_on(store: Store, probe: ProbeSettings, position: int, end: int) -> None:
    """Apply one record after the other as a processor does: where the store fails again, where it forgot earlier."""
    deadline = time.monotonic() + STUCK_S
    while position < end:
        assert time.monotonic() < deadline, f"still at {position} after {STUCK_S:.0f} s"
        try:
            await apply(store, probe, a_fold(position, position + 1, {f"Item:{position}": str(position).encode()}))
            stands_at, (value,) = await store.read(probe.first, [f"Item:{position}"])
            assert (value is not None) == (stands_at > position), "state and position are of the same moment"
            position = stands_at
        except Fenced as fenced:
            position = fenced.stored
        except StoreFailed:
            await asyncio.sleep(POLL_S)


def all_until(end: int) -> dict[str, bytes]:
    return {f"Item:{number}": str(number).encode() for number in range(end)} | {"position": str(end).encode()}


# --- restoring -------------------------------------------------------------------------------------------------------


async def test_a_large_snapshot_is_put_in_place_also_where_a_node_forgot_the_scripts(system: System) -> None:
    probe = a_probe(system)
    fields = {f"Item:{number}": b"\x00\xff" for number in range(2 * FILL_FIELDS + 1)}

    async def chunks() -> AsyncIterator[dict[str, bytes]]:
        yield fields
        await asyncio.to_thread(primary_of(system, probe).script_flush)

    async with a_store(probe) as store, a_redis(probe) as redis:
        primary_of(system, probe).script_flush()
        await store.restore(probe.first, 0, Manifest(7, b"h", len(fields), ()), chunks())

        assert await store.dump(probe.first) == (7, {"header": b"h", **fields})
        assert await redis.pttl(hash_of(probe.first)) == NEVER_EXPIRES
        assert temporaries(system, probe) == []


async def test_a_snapshot_that_nobody_puts_in_place_expires(system: System) -> None:
    probe = a_probe(system)

    async def chunks() -> AsyncIterator[dict[str, bytes]]:
        yield {"Item:apple": b"a"}
        raise LogFailed

    async with a_store(probe) as store, a_redis(probe) as redis:
        with pytest.raises(LogFailed):
            await store.restore(probe.first, 0, Manifest(7, b"h", 2, ()), chunks())

        (temporary,) = temporaries(system, probe)
        assert 0 < await redis.pttl(temporary) <= FILL_LIFE_MS
        assert await redis.hlen(temporary) == 3


NEVER_EXPIRES = -1


def temporaries(system: System, probe: ProbeSettings) -> list[bytes]:
    """Return the keys under which snapshots of the probe's partition are being restored."""
    return list(primary_of(system, probe).scan_iter(f"{hash_of(probe.first)}:restore:*", count=10_000))
