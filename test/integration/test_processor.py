"""common.processor's Partition on a real log and a real store.

The state has to be what the pure fold makes of the log, byte for byte (I6), whatever happened in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from e2e import faults
from integration.probe import (
    Gate,
    ProbeSettings,
    a_log,
    a_producer,
    a_publisher,
    a_redis,
    a_request,
    a_tail,
    a_world,
    ask,
    caught_up,
    hash_of,
    records_of,
    refolded,
    running,
    stored,
    the_replies,
    told,
    until,
)
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from common import processor, snapshot, snapshotter
from common.decision import Arrival, Decision, Machine
from common.decision import State as Entities
from common.fold import OTHER_CALL, Codec, DeadLetters, Result, result_key
from common.log import DeadLetterBox, LogFailed, Publisher, SnapshotTopics, inbox, set_up
from common.messages import (
    Done,
    Letter,
    Message,
    Reason,
    Refused,
    ReleaseStock,
    ReserveStock,
    StockRefused,
    StockReleased,
    StockReserved,
    encode,
    encode_batch,
)
from common.new_rules import announce
from common.redelivery import CannotRedeliver, redeliver
from common.snapshot import Snapshots
from common.snapshotter import Snapshotter
from local.system import System
from stock.domain import SHORTAGE, AddStock, CreateItem, Item, SubtractStock

SHORT_HALT_S = 0.3
LONG_ENOUGH_S = 0.3
"""A partition that does not wait for an acknowledgement would have applied by then."""
FRUIT = ("apple", "pear", "plum")


# --- commands --------------------------------------------------------------------------------------------------------


async def test_commands_in_the_log_are_applied_and_answered(system: System) -> None:
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher, the_replies(probe) as replies, a_redis(probe) as redis:
        commands = [CreateItem("apple", 5), AddStock("apple", 7), SubtractStock("apple", 8), SubtractStock("apple", 3)]
        asked = await ask(publisher, probe.first, *commands)
        outcomes = await told(replies, probe.first, asked)

        assert [outcomes[request_id] for request_id in asked] == [
            [Done("apple")],
            [Done("7")],
            [SHORTAGE],
            [Done("4")],
        ]
        assert (await stored(redis, probe.first))["Item:apple"] == encode(Item(5, 4))


async def test_a_request_that_is_repeated_is_answered_alike_and_acts_once(system: System) -> None:
    probe = await a_log(system)
    request = a_request(AddStock("apple", 7), "apple/key")
    another_call = a_request(SubtractStock("apple", 7), "apple/key")

    async with running(probe), a_publisher(probe) as publisher, the_replies(probe) as replies, a_redis(probe) as redis:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        for repeat in (request, request, another_call):
            await publisher.publish(probe.first, [encode(repeat)])
        await caught_up(probe)

        assert (await told(replies, probe.first, ["apple/key"]))["apple/key"] == [Done("7"), Done("7"), OTHER_CALL]
        assert (await stored(redis, probe.first))["Item:apple"] == encode(Item(5, 7))


async def test_the_state_is_the_fold_of_the_log_byte_for_byte(system: System) -> None:
    probe = await a_log(system, partitions=3)

    async with running(probe), running(probe, partition=probe.second), a_publisher(probe) as publisher:
        await trade(publisher, probe, 300)
        await caught_up(probe)
        await caught_up(probe, probe.second)

    await assert_exact(probe)
    await assert_exact(probe, partition=probe.second)


# --- replays ---------------------------------------------------------------------------------------------------------


async def test_an_emptied_store_is_rebuilt_from_the_log_without_any_traffic(system: System) -> None:
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher:
        await trade(publisher, probe, 200)
        await caught_up(probe)

        await asyncio.to_thread(faults.redis(system, faults.primary_of(system, probe.first)).flushall)
        await caught_up(probe)

        await assert_exact(probe)
        assert rewinds(probe, "Fenced") >= 1


async def test_an_emptied_store_is_restored_from_a_snapshot_once_its_log_was_trimmed(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "LOOK_S", 0.05)
    monkeypatch.setattr(snapshotter, "PAUSE_S", 0.0)
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 5_000)
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher, a_redis(probe) as redis:
        async with snapshotting(probe):
            for _ in range(3):
                await trade(publisher, probe, 100)
                await caught_up(probe)
                await until(lambda: is_newest_snapshot_at_end(probe), "there is a snapshot of all that is stored")
        before = await stored(redis, probe.first)
        async with a_tail(probe, probe.first) as tail:
            first, end = await tail.bounds()
        assert 0 < first < end
        with capture_logs() as logs:
            await asyncio.to_thread(faults.redis(system, faults.primary_of(system, probe.first)).flushall)
            await caught_up(probe)

        assert await stored(redis, probe.first) == before
        assert end in [entry["position"] for entry in logs if entry["event"] == "restored"]
        await trade(publisher, probe, 10)
        await caught_up(probe)
    assert REGISTRY.get_sample_value("checkout_states_compared_total", {"partition": probe.first})


@asynccontextmanager
async def snapshotting(probe: ProbeSettings) -> AsyncIterator[None]:
    """Have a snapshotter, with connections of its own, that takes a snapshot whenever it may."""
    async with a_world(probe) as world:
        work = asyncio.ensure_future(Snapshotter(probe.machine, probe.topology, world, records_min=1).run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.wait({work})


async def is_newest_snapshot_at_end(probe: ProbeSettings) -> bool:
    """Tell it of a snapshotter at work, which may delete a manifest between the two questions that a reading is."""
    async with a_producer(probe) as producer, a_tail(probe, probe.first) as tail:
        try:
            manifests = await Snapshots(SnapshotTopics(probe, producer)).newest_first(probe.first)
        except LogFailed:
            return False  # a processor begins anew
        return bool(manifests) and manifests[0].position == (await tail.bounds())[1]


async def test_a_failover_that_forgets_is_noticed_and_replayed(system: System) -> None:
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher, a_redis(probe) as redis:
        await trade(publisher, probe, 100)
        await caught_up(probe)
        old = await redis.dump(hash_of(probe.first))
        await trade(publisher, probe, 100)
        await caught_up(probe)

        await redis.restore(hash_of(probe.first), 0, old, replace=True)
        await caught_up(probe)
        await assert_exact(probe)

        await redis.restore(hash_of(probe.first), 0, old, replace=True)
        await trade(publisher, probe, 100)
        await caught_up(probe)
        await assert_exact(probe)


async def test_a_killed_primary_costs_no_command_and_no_answer(system: System) -> None:
    probe = await a_log(system)

    async with running(probe), a_publisher(probe) as publisher, a_redis(probe) as redis:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        killing = asyncio.create_task(asyncio.to_thread(faults.kill, system, faults.primary_of(system, probe.first)))
        asked = []
        while not killing.done():
            asked += await ask(publisher, probe.first, AddStock("apple", 1))
        await caught_up(probe)
        await asyncio.to_thread(faults.wait_for_redis, system)
        await caught_up(probe)

        state = await stored(redis, probe.first)
        results = [Codec(probe.machine).entity(state[result_key(request_id)]) for request_id in asked]
        assert state["Item:apple"] == encode(Item(5, len(asked)))
        assert [result.outcome for result in results if isinstance(result, Result)] == [
            Done(str(number + 1)) for number in range(len(asked))
        ]
    await assert_exact(probe)


async def test_letters_that_a_replay_sends_again_are_dropped_by_their_target(system: System) -> None:
    probe = await a_log(system, partitions=2)
    reservations = [a_reservation(probe, sequence) for sequence in (1, 2, 3)]

    async with running(probe), a_publisher(probe) as publisher, a_redis(probe) as redis:
        await ask(publisher, probe.first, CreateItem("apple", 5), AddStock("apple", 2))
        await publisher.publish(probe.first, [encode(letter) for letter in reservations])
        await caught_up(probe)
        await redis.delete(hash_of(probe.first))
        await caught_up(probe)

    answers = [letter for letter in await letters_in(probe, probe.second) if letter[1] == probe.first]
    assert [answer[2] for answer in answers] == [1, 2, 3, 1, 2, 3]
    assert answers[:3] == answers[3:]
    await assert_exact(probe)


async def test_two_owners_at_once_act_once_and_answer_once(system: System) -> None:
    probe = await a_log(system)

    async with running(probe), running(probe), a_publisher(probe) as publisher, the_replies(probe) as replies:
        asked = await ask(publisher, probe.first, *[CreateItem(fruit, 5) for fruit in FRUIT])
        for number in range(30):
            asked += await ask(publisher, probe.first, *[AddStock(FRUIT[number % 3], 1)] * 10)
        outcomes = await told(replies, probe.first, asked)
        await caught_up(probe)
        await assert_exact(probe)

    assert {request_id: len(answers) for request_id, answers in outcomes.items()} == dict.fromkeys(asked, 1)
    amounts = sorted(int(answers[0].value) for request_id, answers in outcomes.items() if request_id in asked[3:])
    assert amounts == sorted([*range(1, 101)] * 3)


async def test_nothing_is_applied_before_its_letters_are_acknowledged(system: System) -> None:
    probe = await a_log(system, partitions=2)
    gate = Gate()

    async with running(probe, hold=gate.before_publishing), a_redis(probe) as redis, a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5), AddStock("apple", 1))
        await caught_up(probe)
        before = await stored(redis, probe.first)
        await publisher.publish(probe.first, [encode(a_reservation(probe, 1))])
        await gate.reached.wait()
        await asyncio.sleep(LONG_ENOUGH_S)
        assert await stored(redis, probe.first) == before

        gate.open()
        await caught_up(probe)

    assert [letter[2] for letter in await letters_in(probe, probe.second)] == [1]
    await assert_exact(probe)


async def test_an_owner_that_was_overtaken_while_it_read_does_not_answer_from_the_future(system: System) -> None:
    probe = await a_log(system, partitions=2)
    async with running(probe), a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5), AddStock("apple", 1))
        await caught_up(probe)
    gate = Gate()

    async with running(probe, hold=gate.before_reading), a_publisher(probe) as publisher:
        await publisher.publish(probe.first, [encode(a_reservation(probe, 1))])
        await gate.reached.wait()
        await publisher.publish(probe.first, [encode(a_reservation(probe, 2))])
        async with running(probe):
            await caught_up(probe)
        gate.open()
        await publisher.publish(probe.first, [encode(a_reservation(probe, 3))])
        await caught_up(probe)

    answers = {(letter[2], letter[3][0]) for letter in await letters_in(probe, probe.second)}
    assert answers == {(1, StockReserved.__name__), (2, StockRefused.__name__), (3, StockRefused.__name__)}
    await assert_exact(probe)


async def test_an_owner_takes_over_in_the_middle_of_the_log(system: System) -> None:
    probe = await a_log(system)

    async with a_publisher(probe) as publisher:
        for _ in range(3):
            async with running(probe):
                await trade(publisher, probe, 60)
        async with running(probe):
            await caught_up(probe)

    await assert_exact(probe)


# --- halting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "why"), [(0, "records were lost"), (20, "its state was made from")])
async def test_a_log_that_was_replaced_halts_the_partition(
    system: System, monkeypatch: pytest.MonkeyPatch, records: int, why: str
) -> None:
    monkeypatch.setattr(processor, "HALT_S", SHORT_HALT_S)
    probe = await a_log(system)
    async with running(probe), a_publisher(probe) as publisher:
        for amount in range(1, 6):
            await ask(publisher, probe.first, AddStock("apple", amount))
        await caught_up(probe)
    await replace_log(probe, records)

    async with a_redis(probe) as redis:
        before = await stored(redis, probe.first)
        with capture_logs() as lines:
            async with running(probe) as partition:
                await until(halted(probe), "the partition is halted")
                assert not partition.following

        assert any(why in line["why"] for line in lines if line["event"] == "halted"), lines
        assert await stored(redis, probe.first) == before


async def test_a_log_that_is_replaced_under_a_running_partition_halts_it(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "HALT_S", SHORT_HALT_S)
    probe = await a_log(system)

    async with a_publisher(probe) as publisher, running(probe):
        await trade(publisher, probe, 20)
        await caught_up(probe)
        await replace_log(probe, 0)
        await until(halted(probe), "the partition is halted")


async def test_changed_partition_counts_halt_the_partition(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "HALT_S", SHORT_HALT_S)
    probe = await a_log(system)
    async with running(probe):
        await caught_up(probe)

    with capture_logs() as lines:
        async with running(msgspec.structs.replace(probe, partitions=2)):
            await until(halted(probe), "the partition is halted")

    assert any("partition counts" in line["why"] for line in lines if line["event"] == "halted"), lines


async def test_an_undecodable_record_halts_and_nothing_behind_it_is_folded(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "HALT_S", SHORT_HALT_S)
    probe = await a_log(system)
    async with a_publisher(probe) as publisher, a_producer(probe) as producer:
        await ask(publisher, probe.first, CreateItem("apple", 5))
        unknown = await producer.send(inbox(probe.first), encode_batch([msgspec.Raw(encode(["telegram", 1]))]))
        await ask(publisher, probe.first, AddStock("apple", 7))

    async with running(probe), a_redis(probe) as redis:
        await until(halted(probe), "the partition is halted")
        state = await stored(redis, probe.first)

    records = await records_of(probe, probe.first)
    assert state["position"] == str(unknown).encode()
    assert state == refolded(probe.machine, probe.first, probe.topology, records[:unknown])


async def test_new_rules_hold_from_the_record_that_the_command_writes_and_old_code_halts_there(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "HALT_S", SHORT_HALT_S)
    probe = await a_log(system)
    next_code = msgspec.structs.replace(probe.machine, rules=probe.machine.rules + 1)

    async with running(probe, next_code):
        assert await announce(probe.machine, probe) == [f"{probe.first}: rules 1 are in force, nothing to do"]
        assert await announce(next_code, probe) == [f"{probe.first}: rules 2 hold from record 1 on"]
        await caught_up(probe)
        assert await announce(next_code, probe) == [f"{probe.first}: rules 2 are in force, nothing to do"]
    async with running(probe):
        await until(halted(probe), "the partition is halted")

    await assert_exact(probe, next_code)


# --- dead letters ----------------------------------------------------------------------------------------------------


async def test_a_decision_that_raises_becomes_a_dead_letter_and_stays_one_for_corrected_code(system: System) -> None:
    probe = await a_log(system)
    broken = broken_for(probe.machine, SubtractStock)

    async with a_publisher(probe) as publisher, the_replies(probe) as replies:
        async with running(probe, broken):
            commands = [CreateItem("apple", 5), AddStock("apple", 7), SubtractStock("apple", 2), AddStock("apple", 1)]
            asked = await ask(publisher, probe.first, *commands)
            outcomes = await told(replies, probe.first, asked)
            await caught_up(probe)
        (answer,) = outcomes[asked[2]]
        assert isinstance(answer, Refused)
        assert answer.reason is Reason.INTERNAL
        assert "dead letter 0" in answer.detail
        assert outcomes[asked[3]] == [Done("8")]

    dead = await dead_letters(probe)
    assert list(dead.values()) == [0]
    await assert_exact(probe, broken, dead)
    await rebuild(probe, probe.machine)
    await assert_exact(probe, probe.machine, dead)
    assert await dead_letters(probe) == dead


async def test_a_dead_letter_that_is_delivered_again_acts_once(system: System) -> None:
    probe = await a_log(system, partitions=2)
    number = await bury_a_release(probe)

    async with running(probe), a_redis(probe) as redis:
        for _ in range(2):
            said = await redeliver(probe.machine, probe, number)
            await caught_up(probe)

            assert said.startswith(f"dead letter {number} is record ")
            assert (await stored(redis, probe.first))["Item:apple"] == encode(Item(5, 7))

    answers = [letter[3] for letter in await letters_in(probe, probe.second)]
    assert [answer[0] for answer in answers] == [StockReserved.__name__, StockReleased.__name__]
    await assert_exact(probe, dead=await dead_letters(probe))


async def test_what_would_repair_nothing_is_not_delivered_again(system: System) -> None:
    probe = await a_log(system, partitions=2)
    broken = broken_for(probe.machine, AddStock, ReserveStock)

    async with running(probe, broken), a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5), AddStock("apple", 2))
        await publisher.publish(probe.first, [encode(a_reservation(probe, 1))])
        await caught_up(probe)
        before = await records_of(probe, probe.first)

        for number, why in ((0, "a client's request"), (1, "undone itself"), (2, "no dead letter 2")):
            with pytest.raises(CannotRedeliver, match=why):
                await redeliver(probe.machine, probe, number)

    assert await records_of(probe, probe.first) == before


async def bury_a_release(probe: ProbeSettings) -> int:
    """Let code that cannot decide a ReleaseStock meet one; return the number of the dead letter."""
    lines = (("apple", 3),)
    letters = [Letter(probe.second, 1, ReserveStock("order-0-1-0", lines))]
    letters += [Letter(probe.second, 2, ReleaseStock("order-0-1-0", lines))]
    async with running(probe, broken_for(probe.machine, ReleaseStock)), a_publisher(probe) as publisher:
        await ask(publisher, probe.first, CreateItem("apple", 5), AddStock("apple", 7))
        await publisher.publish(probe.first, [encode(letter) for letter in letters])
        await caught_up(probe)
    async with a_redis(probe) as redis:
        assert (await stored(redis, probe.first))["Item:apple"] == encode(Item(5, 4, 3))
    (number,) = (await dead_letters(probe)).values()
    return number


# --- what the tests above say ----------------------------------------------------------------------------------------


def a_reservation(probe: ProbeSettings, sequence: int) -> Letter[ReserveStock]:
    """Return partition 1's letters: each wants one apple."""
    return Letter(probe.second, sequence, ReserveStock(f"{probe.second}-{sequence}-0", (("apple", 1),)))


async def trade(publisher: Publisher, probe: ProbeSettings, count: int) -> None:
    """Put commands of all kinds into partition 0's log; of three partitions, into the first two, and letters too.

    The letters come from the third partition, which nobody runs: so it gets the answers.
    """
    partitions = [probe.first, probe.second] if probe.partitions == 3 else [probe.first]
    await asyncio.gather(*[ask(publisher, name, *[CreateItem(fruit, 5) for fruit in FRUIT]) for name in partitions])
    for number in range(0, count, 10):
        amounts = range(number, number + 10)
        commands: list[Message] = [AddStock(FRUIT[amount % 3], amount + 1) for amount in amounts]
        commands += [SubtractStock(FRUIT[amount % 3], amount // 2) for amount in amounts if amount % 4 == 0]
        commands += [AddStock("no such fruit", 1)]
        await asyncio.gather(*[ask(publisher, partition, *commands) for partition in partitions])
    if probe.partitions == 3:
        source = f"{probe.service}-2"
        letters = [Letter(source, n, ReserveStock(f"{source}-{n}-0", ((FRUIT[n % 3], 1),))) for n in range(1, 51)]
        sent = [publisher.publish(name, [encode(letter)]) for letter in letters for name in partitions]
        await asyncio.gather(*sent)


async def assert_exact(
    probe: ProbeSettings, machine: Machine | None = None, dead: DeadLetters | None = None, partition: str = ""
) -> None:
    """Assert that the store has what the pure fold makes of the log, byte for byte."""
    name = partition or probe.first
    async with a_redis(probe) as redis:
        state = await stored(redis, name)
    records = await records_of(probe, name)
    expected = refolded(machine or probe.machine, name, probe.topology, records[: int(state["position"])], dead)
    assert int(state["position"]) == len(records)
    assert state == expected


async def rebuild(probe: ProbeSettings, machine: Machine) -> None:
    """Empty the store and let a new owner replay the log."""
    async with a_redis(probe) as redis:
        await redis.delete(hash_of(probe.first))
        async with running(probe, machine):
            await caught_up(probe)


async def replace_log(probe: ProbeSettings, records: int) -> None:
    """Delete the inbox and make it anew, with another genesis and as many records."""
    async with an_admin(probe) as admin:
        topic = f"{probe.service}-inbox"
        await admin.delete_topics([topic])

        async def is_gone() -> bool:
            return topic not in await admin.list_topics()

        await until(is_gone, f"{topic} is deleted")
    await set_up(probe, probe.service)
    async with a_producer(probe) as producer:
        for _ in range(records):
            await producer.send(inbox(probe.first), encode_batch([]))


@asynccontextmanager
async def an_admin(probe: ProbeSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=probe.kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def halted(probe: ProbeSettings) -> Any:
    async def is_halted() -> bool:
        return REGISTRY.get_sample_value("checkout_partition_halted", {"partition": probe.first}) == 1

    return is_halted


def rewinds(probe: ProbeSettings, cause: str) -> float:
    labels = {"partition": probe.first, "cause": cause}
    return REGISTRY.get_sample_value("checkout_rewinds_total", labels) or 0


def broken_for(machine: Machine, *kinds: type[Message]) -> Machine:
    """Return a state machine with a bug: it raises for these messages."""

    def decide(state: Entities, message: Message, arrival: Arrival) -> Decision:
        if isinstance(message, kinds):
            raise ZeroDivisionError
        return machine.decide(state, message, arrival)

    return msgspec.structs.replace(machine, decide=decide)


async def dead_letters(probe: ProbeSettings) -> DeadLetters:
    async with a_producer(probe) as producer:
        return await DeadLetterBox(probe, probe.service, producer).of(probe.first)


async def letters_in(probe: ProbeSettings, partition: str) -> list[Any]:
    """Return the letters in a partition's log, as plain lists: tag, source, sequence, message, on behalf of."""
    records = await records_of(probe, partition)
    messages = [message for record in records[1:] for message in msgspec.msgpack.decode(record.value)[1]]
    return [message for message in messages if message[0] == "letter"]
