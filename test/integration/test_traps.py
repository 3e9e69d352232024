"""Known traps of aiokafka 0.14 and redis-py 8, each made to snap: our code comes through.

The numbers are those of the libraries' issues.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import psutil
import pytest
import requests
from e2e import faults
from integration.contracts.relay import Relay, a_relay
from integration.probe import (
    ProbeSettings,
    a_log,
    a_probe,
    a_producer,
    a_publisher,
    a_redis,
    a_store,
    ask,
    caught_up,
    hash_of,
    records_of,
    refolded,
    running,
    stored,
    the_ends,
    the_replies,
    told,
    until,
)
from prometheus_client import REGISTRY
from relay import Translate

from common import log, watchdog
from common.fold import Folded
from common.log import LogFailed, Membership, Producer, inbox
from common.messages import Done, Told, encode, encode_batch
from common.store import CALL_TIMEOUT_S, Replies, Store, StoreFailed
from common.tasks import CRASHED
from common.watchdog import Stuck
from local.profiles import HOST, REPOSITORY
from local.programs import service_environment
from local.system import System
from stock.domain import AddStock, CreateItem, Item

FOREVER_S = 60.0
"""Noise does not last so long."""


def rewinds(probe: ProbeSettings, cause: str) -> float:
    return REGISTRY.get_sample_value("checkout_rewinds_total", {"partition": probe.first, "cause": cause}) or 0.0


def tasks_of(routine: str) -> set[asyncio.Task[object]]:
    """Return the tasks that a library runs a routine of its own in."""
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == routine}


async def assert_exact(probe: ProbeSettings) -> None:
    """The state is what the pure fold makes of the log."""
    async with a_redis(probe) as redis:
        records = await records_of(probe, probe.first)
        assert await stored(redis, probe.first) == refolded(probe.machine, probe.first, probe.topology, records)


@asynccontextmanager
async def a_member(probe: ProbeSettings) -> AsyncIterator[tuple[Membership, set[str]]]:
    """Yield a member of the probe's group, and the partitions that it has been given last."""
    owned: set[str] = set()

    def assigned(names: set[str]) -> None:
        owned.clear()
        owned.update(names)

    membership = Membership(probe, probe.service, assigned)
    taking_part = asyncio.ensure_future(membership.run())
    try:
        yield membership, owned
    finally:
        taking_part.cancel()
        await asyncio.wait({taking_part})


async def is_member_again(membership: Membership) -> None:
    """Wait until the group is seen, and sees the member as it sees itself, from now on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "GROUP_GAP_S", 1.0)
        await asyncio.sleep(1.0)  # whatever was seen before now does not count

        async def is_member() -> bool:
            return membership.is_member

        await until(is_member, "the member is one again")


def block_the_loop(seconds: float) -> None:
    """Stand still as a process does that was stopped, or that computes: no heartbeat goes out, requests time out."""
    time.sleep(seconds)


# --- aiokafka: writing -----------------------------------------------------------------------------------------------


async def test_a_send_that_expired_does_not_spoil_those_after_it_1017(system: System) -> None:
    """An idempotent producer may lose count in an outage, and then fails for good; ours has nothing to count.

    Nor did one with idempotence fail here: losing count takes an outage that one broker cannot have.
    test/unit/test_watchdog.py holds that ours has none.
    """
    async with a_relay(system.kafka_bootstrap) as relay:
        probe = msgspec.structs.replace(await a_log(system), kafka=relay.address)
        async with a_publisher(probe) as publisher:
            for number in range(4):
                await publisher.publish(probe.first, [encode(f"before {number}")])
                with relay.answers_held():
                    expiring = publisher.publish(probe.first, [encode(f"expired {number}")])
                    await asyncio.sleep(2 * log.REQUEST_TIMEOUT_MS / 1000)
                await asyncio.wait_for(expiring, FOREVER_S)
            await publisher.publish(probe.first, [encode("after")])

        values = [record.value for record in (await records_of(probe, probe.first))[1:]]
        firsts = list(dict.fromkeys(msgspec.msgpack.decode(value)[1][0] for value in values))
        assert firsts == [f"{when} {number}" for number in range(4) for when in ("before", "expired")] + ["after"]


@pytest.mark.parametrize("how", ["cut", "requests_held", "answers_held"])
async def test_sends_and_the_end_of_a_producer_do_not_hang_while_kafka_is_down_1101(system: System, how: str) -> None:
    async with a_relay(system.kafka_bootstrap) as relay:
        probe = msgspec.structs.replace(await a_log(system), kafka=relay.address)
        async with a_producer(probe) as producer:
            await producer.send(inbox(probe.first), encode_batch([]))
            with getattr(relay, how)():
                with pytest.raises(LogFailed):
                    await asyncio.wait_for(producer.send(inbox(probe.first), encode_batch([])), FOREVER_S)
                await asyncio.wait_for(producer.close(), FOREVER_S)

            await until(lambda: can_send(producer, probe), "the next send succeeds")


async def can_send(producer: Producer, probe: ProbeSettings) -> bool:
    try:
        await producer.send(inbox(probe.first), encode_batch([]))
    except LogFailed:
        return False
    return True


class DeafRelay(Relay):
    """Loses what is produced, and carries everything else."""

    def requests_filter(self) -> Translate:
        return without_produce()


def without_produce() -> Translate:
    """Return what lets all but Kafka's Produce requests through: each has its length, then its API key, which is 0."""
    heard = bytearray()

    def others(data: bytes) -> bytes:
        heard.extend(data)
        passed = b""
        while len(heard) >= (size := 4 + int.from_bytes(heard[:4], "big")) > 4:
            passed += b"" if heard[4:6] == b"\0\0" else heard[:size]
            del heard[:size]
        return passed

    return others


async def test_a_producer_that_only_fails_although_the_log_can_be_read_ends_the_process(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "REPLACE_S", 0.0)
    monkeypatch.setattr(log, "DEAD_S", 0.0)
    monkeypatch.setattr(log, "DEAD_FAILURES", 2 * log.FAILURES_MAX)
    relay = DeafRelay(system.kafka_bootstrap)
    await relay.open()
    try:
        probe = msgspec.structs.replace(await a_log(system), kafka=relay.address)
        async with a_producer(probe) as producer:
            for _ in range(2 * log.FAILURES_MAX - 1):
                with pytest.raises(LogFailed):
                    await producer.send(inbox(probe.first), encode_batch([]))
            with pytest.raises(Stuck, match="it can be read"):
                await producer.send(inbox(probe.first), encode_batch([]))
    finally:
        await relay.close()


# --- aiokafka: reading -----------------------------------------------------------------------------------------------


async def test_a_consumer_that_was_blocked_beyond_its_time_outs_goes_on_1037(system: System) -> None:
    probe = await a_log(system)

    async with running(probe) as partition, a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        await caught_up(probe)
        for _ in range(5):
            block_the_loop(2.5 * log.REQUEST_TIMEOUT_MS / 1000)
            await ask(publisher, probe.first, AddStock("apple", 1))
            await caught_up(probe)

        assert partition.following
    await assert_exact(probe)


async def test_a_consumer_whose_fetching_has_ended_without_a_word_is_replaced_1037(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that 1037 and 983 come to: the routine that fetches is over, polls return nothing, nobody raises."""
    monkeypatch.setattr(log, "SILENCE_S", 0.5)
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        await caught_up(probe)
        fetching = tasks_of("Fetcher._fetch_requests_routine")
        for task in fetching:
            task.cancel()
        await asyncio.wait(fetching)

        for _ in range(2):  # the fetch that is under way may bring the first one
            await ask(publisher, probe.first, AddStock("apple", 1))
            await caught_up(probe)

    assert rewinds(probe, "LogSilent") >= 1
    await assert_exact(probe)


async def test_a_quiet_log_and_a_slow_one_rewind_nothing(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SILENCE_S", 0.5)
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        for _ in range(20):
            await ask(publisher, probe.first, AddStock("apple", 1))
            await asyncio.sleep(0.2)
        await caught_up(probe)

    assert rewinds(probe, "LogSilent") == rewinds(probe, "LogFailed") == 0
    await assert_exact(probe)


async def test_everything_goes_on_after_all_brokers_were_dead_703(system: System) -> None:
    probe = await a_log(system)

    async with (
        running(probe),
        a_publisher(probe) as publisher,
        the_ends(probe) as ends,
        a_member(probe) as (membership, owned),
    ):
        await ask(publisher, probe.first, CreateItem("apple", 5))
        await caught_up(probe)
        await is_member_again(membership)

        await asyncio.to_thread(faults.kill, system, "kafka-0")
        asked = asyncio.ensure_future(ask(publisher, probe.first, AddStock("apple", 1)))
        await until(lambda: answers(ends, probe), "the log's end can be had")
        await asyncio.wait_for(asked, FOREVER_S)
        await caught_up(probe)
        await is_member_again(membership)

        assert owned == {probe.first}
        async with a_redis(probe) as redis:
            assert (await stored(redis, probe.first))["Item:apple"] == encode(Item(5, 1))
    await assert_exact(probe)


async def answers(ends: log.Ends, probe: ProbeSettings) -> bool:
    try:
        await ends.end(probe.first)
    except LogFailed:
        return False
    return True


async def test_ends_asked_by_many_while_the_connection_breaks_fail_cleanly(system: System) -> None:
    async with a_relay(system.kafka_bootstrap) as relay:
        probe = msgspec.structs.replace(await a_log(system), kafka=relay.address)
        async with the_ends(probe) as ends:
            for _ in range(10):
                asking = [asyncio.ensure_future(answers(ends, probe)) for _ in range(20)]
                await asyncio.sleep(0.01)
                with relay.cut():
                    asking += [asyncio.ensure_future(answers(ends, probe)) for _ in range(20)]
                    await asyncio.gather(*asking)
                await until(lambda: answers(ends, probe), "the log's end can be had")


# --- aiokafka: the group ---------------------------------------------------------------------------------------------


async def test_a_member_that_was_blocked_beyond_its_session_rejoins_and_its_partition_goes_on_847(
    system: System,
) -> None:
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher, a_member(probe) as (membership, owned):
        await ask(publisher, probe.first, CreateItem("apple", 5))
        await is_member_again(membership)

        block_the_loop(2 * probe.session_timeout_ms / 1000)
        await ask(publisher, probe.first, AddStock("apple", 1))
        await caught_up(probe)

        await is_member_again(membership)
        assert owned == {probe.first}
    await assert_exact(probe)


@pytest.mark.parametrize("routine", ["GroupCoordinator._heartbeat_routine", "GroupCoordinator._coordination_routine"])
async def test_a_member_whose_routines_have_ended_without_a_word_joins_anew(
    system: System, monkeypatch: pytest.MonkeyPatch, routine: str
) -> None:
    monkeypatch.setattr(log, "LOOK_S", 0.5)
    probe = await a_log(system)

    async with a_member(probe) as (membership, owned):
        await is_member_again(membership)
        lost = tasks_of(routine)
        assert lost
        for task in lost:
            task.cancel()
        await asyncio.wait(lost)

        await asyncio.sleep(probe.session_timeout_ms / 1000)
        await is_member_again(membership)
        assert owned == {probe.first}


async def test_members_that_come_and_go_are_not_taken_for_strangers(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LOOK_S", 0.1)
    probe = await a_log(system, partitions=4)
    before = REGISTRY.get_sample_value("checkout_repairs_total", {"what": "membership"})

    async with a_member(probe) as (one, owned):
        await is_member_again(one)
        for _ in range(2):
            async with a_member(probe) as (another, _):
                await is_member_again(another)
                await is_member_again(one)
                assert len(owned) == 2
            await is_member_again(one)

    assert REGISTRY.get_sample_value("checkout_repairs_total", {"what": "membership"}) == before


# --- redis-py --------------------------------------------------------------------------------------------------------


async def test_an_apply_that_the_library_repeats_after_a_time_out_acts_once(system: System) -> None:
    probe = a_probe(system)
    node = faults.redis(system, faults.primary_of(system, probe.first))
    folded = Folded(0, 5, 0, {"Item:apple": b"a"}, replies={"web-probe": [Told("request", 1, Done("1"))]})

    async with a_store(probe) as store, a_redis(probe) as redis, the_replies(probe) as replies:
        assert await store.read(probe.first, []) == (0, [])
        calls = _script_calls(node.info("commandstats"))
        applying = asyncio.ensure_future(store.apply(probe.first, folded, with_replies=True))
        with faults.frozen(system, faults.primary_of(system, probe.first)):
            await asyncio.sleep(1.3 * CALL_TIMEOUT_S)  # shorter than a failover, longer than the time-out
        await applying

        assert _script_calls(node.info("commandstats")) >= calls + 2  # the trap has snapped
        assert await stored(redis, probe.first) == {"Item:apple": b"a", "position": b"5"}
        assert await told(replies, probe.first, ["request"]) == {"request": [Done("1")]}


def _script_calls(stats: dict[str, dict[str, int]]) -> int:
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def test_a_slot_map_that_is_stale_costs_no_call_and_no_connection_of_others(system: System) -> None:
    """Reinitialising at a MOVED closes the connections of all tasks (redis-py's pull request 4322)."""
    probe = a_probe(system)
    elsewhere = next(
        name for name in _names(probe) if faults.primary_of(system, name) != faults.primary_of(system, probe.first)
    )

    async with a_store(probe) as store:
        await store.apply(probe.first, Folded(0, 5, 0, {"Item:apple": b"a"}), with_replies=True)
        await store.read(elsewhere, [])
        connections = _connections(system, elsewhere)
        assert connections
        for _ in range(2):
            await asyncio.to_thread(_fail_over, system, probe.first)
            reads = [store.read(probe.first, ["Item:apple"]) for _ in range(50)]
            assert await asyncio.gather(*reads) == [(5, [b"a"])] * 50
            await asyncio.to_thread(faults.wait_for_redis, system)

        await store.read(elsewhere, [])
        assert _connections(system, elsewhere) >= connections


async def test_a_client_that_is_replaced_leaves_no_connection_behind(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to the node that hangs nor to others: after a failure, redis-py's `aclose` does nothing."""
    monkeypatch.setattr("common.store.REPLACE_S", 0.0)
    monkeypatch.setattr("common.store.FAILURES_MAX", 2)
    probe = a_probe(system)
    elsewhere = next(
        name for name in _names(probe) if faults.primary_of(system, name) != faults.primary_of(system, probe.first)
    )
    primary = faults.primary_of(system, probe.first)
    before = _connections(system, elsewhere)

    store = Store(probe, timeout_s=0.1)
    for name in (probe.first, elsewhere):
        await store.read(name, [])
    with faults.frozen(system, primary):  # for less than a failover takes
        for _ in range(2):
            with pytest.raises(StoreFailed):
                await store.read(probe.first, [])
    await asyncio.sleep(0.1)  # it is closed by a task of its own

    assert _connections(system, elsewhere) == before
    await until(partial(can_be_read, store, probe.first), "the new client reads")
    await store.close()
    assert _connections(system, elsewhere) == before


async def can_be_read(store: Store, partition: str) -> bool:
    try:
        await store.read(partition, [])
    except StoreFailed:
        return False
    return True


def _names(probe: ProbeSettings) -> list[str]:
    return [f"{probe.service}-{number}" for number in range(1, 100)]


def _connections(system: System, partition: str) -> set[int]:
    """Return our ends of the connections to the node that has a partition."""
    port = system.redis_nodes[int(faults.primary_of(system, partition).removeprefix("redis-"))][1]
    found = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in found if each.status == "ESTABLISHED" and each.raddr.port == port}


def _fail_over(system: System, partition: str) -> None:
    """Have a primary and its replica change places, without losing anything."""
    faults.wait_until(lambda: _pair(system, partition) != (), "the primary is known to be followed")
    old, new = _pair(system, partition)
    faults.redis(system, new).execute_command("CLUSTER", "FAILOVER")
    faults.wait_until(lambda: _pair(system, partition) == (new, old), f"{new} is primary, {old} its replica")
    faults.wait_until(lambda: faults.redis(system, old).role()[0] == b"slave", f"{old} knows it")


def _pair(system: System, partition: str) -> tuple[str, ...]:
    """Return primary and replica; nothing soon after a failover, when a node may not know whose replica another is."""
    with contextlib.suppress(LookupError):
        return faults.primary_of(system, partition), faults.replica_of(system, partition)
    return ()


async def test_calls_that_are_cancelled_leave_no_answer_for_the_next(system: System) -> None:
    probe = a_probe(system)
    fields = {f"field {number}": f"value {number}".encode() for number in range(40)}

    async with a_store(probe) as store:
        await store.apply(probe.first, Folded(0, 5, 0, {**fields}), with_replies=True)
        for number in range(400):
            cancelled = asyncio.ensure_future(store.read(probe.first, [f"field {number % 40}"]))
            await asyncio.sleep((number % 20) * 0.000_02)
            cancelled.cancel()
            expected = f"field {(number + 7) % 40}"
            assert await store.read(probe.first, [expected]) == (5, [fields[expected]])


async def test_a_taker_that_is_cancelled_leaves_no_answer_for_the_next(system: System) -> None:
    probe = a_probe(system)

    async with a_redis(probe) as redis, the_replies(probe) as replies:
        for number in range(20):
            taking = asyncio.ensure_future(replies.take(probe.first))
            await asyncio.sleep(0.01)
            taking.cancel()
            await asyncio.wait({taking})
            await redis.delete(f"{hash_of(probe.first)}:replies:web-probe")
            await redis.rpush(
                f"{hash_of(probe.first)}:replies:web-probe", encode([Told(f"request {number}", number, Done("1"))])
            )
            await until(partial(takes, replies, probe, number), "the reply is taken")


async def takes(replies: Replies, probe: ProbeSettings, number: int) -> bool:
    taken = await replies.take(probe.first)
    assert all(reply.request_id == f"request {number}" for reply in taken)
    return bool(taken)


# --- a whole process -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_processor_whose_loop_is_blocked_is_not_ready_and_ends_to_be_started_again(system: System) -> None:
    """Blocked by whoever should read its log lines, and does not: no hook in the code is needed."""
    port = system.profile.gateway_port + 333
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CHECKOUT_")},
        **service_environment(system.profile),
        "CHECKOUT_BIND": f"{HOST}:{port}",
        "CHECKOUT_LOG_LEVEL": "DEBUG",
    }
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "stock.app", "processor"],
        cwd=REPOSITORY,
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            faults.wait_until(lambda: readiness(port) == 200, "the processor is ready")
            fill(writing)
            process.terminate()  # it says so, and waits for somebody to read it
            faults.wait_until(lambda: readiness(port) == 503, "the processor is not ready")
            assert process.stderr is not None
            said = process.stderr.read()
            assert process.wait(watchdog.LOOP_ROUNDS_MAX + FOREVER_S) == CRASHED
            assert "the event loop stood still" in said
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


def fill(pipe: int) -> None:
    """Write until nothing more goes in."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(pipe, b"unread"):
            pass
    os.set_blocking(pipe, True)


def readiness(port: int) -> int:
    """Return the status of /health/ready, 0 while nobody listens."""
    try:
        return requests.get(f"http://{HOST}:{port}/health/ready", timeout=FOREVER_S).status_code
    except requests.ConnectionError:
        return 0
