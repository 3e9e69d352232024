"""common.log against a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError
from integration.probe import (
    ProbeSettings,
    a_log,
    a_probe,
    a_producer,
    a_publisher,
    a_request,
    a_tail,
    records_of,
    refolded,
    settings_of,
    until,
)

from common.fold import Codec, DeadLetter, Fold, Header, Memory, Missing, Record, Rules
from common.log import (
    TOPIC_CONFIG,
    DeadLetterBox,
    Ends,
    LogFailed,
    Membership,
    check_topology,
    dead_letters_of,
    inbox,
    set_up,
)
from common.messages import RECORD_BYTES_MAX, Genesis, Letter, ReserveStock, encode, encode_batch
from common.tasks import spawn
from local.system import System
from stock.domain import AddStock, CreateItem, Item

BROKER_BYTES_MAX = 1_048_588
CLOCK_SLACK_MS = 1_000


def contents(records: list[Record]) -> list[object]:
    """Return the messages in the records, the genesis left out, in their order."""
    return [message for record in records[1:] for message in msgspec.msgpack.decode(record.value)[1]]


# --- writing and reading ---------------------------------------------------------------------------------------------


async def test_messages_arrive_in_the_order_in_which_they_were_published(system: System) -> None:
    probe = await a_log(system)
    messages = [encode(f"message {number}") for number in range(500)]

    async with a_publisher(probe) as publisher:
        for start in range(0, 500, 50):
            sent = [publisher.publish(probe.first, [message]) for message in messages[start : start + 50]]
            await asyncio.sleep(0.001)
        await sent[-1]

    assert contents(await records_of(probe, probe.first)) == [f"message {number}" for number in range(500)]


async def test_what_comes_while_a_send_is_in_flight_goes_out_together(system: System) -> None:
    probe = await a_log(system)

    async with a_publisher(probe) as publisher:
        first = publisher.publish(probe.first, [encode("first")])
        await asyncio.sleep(0)
        later = [publisher.publish(probe.first, [encode(number)]) for number in range(300)]
        offsets = await asyncio.gather(first, *later)

    assert offsets == [1, *([2] * 300)]
    assert [len(msgspec.msgpack.decode(record.value)[1]) for record in (await records_of(probe, probe.first))[1:]] == [
        1,
        300,
    ]


async def test_partitions_do_not_mix(system: System) -> None:
    probe = await a_log(system, partitions=2)

    async with a_publisher(probe) as publisher:
        sent = [publisher.publish(probe.first, [encode(number)]) for number in range(50)]
        sent += [publisher.publish(probe.second, [encode(-number)]) for number in range(50)]
        await asyncio.gather(*sent)

    assert contents(await records_of(probe, probe.first)) == list(range(50))
    assert contents(await records_of(probe, probe.second)) == [-number for number in range(50)]


async def test_many_messages_are_split_over_records_and_none_is_lost(system: System) -> None:
    probe = await a_log(system)
    messages = [bytes([number]) * 150_000 for number in range(30)]

    async with a_publisher(probe) as publisher:
        last = publisher.publish(probe.first, [encode(message) for message in messages])
        more = publisher.publish(probe.first, [encode("after")])
        offset, offset_after = await asyncio.gather(last, more)

    records = await records_of(probe, probe.first)
    assert contents(records) == [*messages, "after"]
    assert all(len(record.value) < RECORD_BYTES_MAX + 1_000 for record in records)
    assert messages[-1] in msgspec.msgpack.decode(records[offset].value)[1]
    assert offset_after == len(records) - 1


async def test_a_value_over_the_brokers_limit_fails_loudly(system: System) -> None:
    probe = await a_log(system)

    async with a_producer(probe) as producer:
        with pytest.raises(MessageSizeTooLargeError):  # not LogFailed: it would be repeated for ever
            await producer.send(inbox(probe.first), b"x" * (BROKER_BYTES_MAX + 1))

        assert await producer.send(inbox(probe.first), encode_batch([])) == 1


async def test_time_is_the_brokers_whatever_a_producer_says(system: System) -> None:
    probe = await a_log(system)
    before_ms = int(time.time() * 1000)
    producer = AIOKafkaProducer(bootstrap_servers=probe.kafka)
    await producer.start()
    try:
        await producer.send_and_wait(f"{probe.service}-inbox", encode_batch([]), partition=0, timestamp_ms=1)
    finally:
        await producer.stop()

    last = (await records_of(probe, probe.first))[-1]

    assert before_ms - CLOCK_SLACK_MS <= last.timestamp_ms <= int(time.time() * 1000) + CLOCK_SLACK_MS


async def test_a_tail_reads_single_records_and_goes_on_where_it_was_told(system: System) -> None:
    probe = await a_log(system)
    async with a_publisher(probe) as publisher:
        for number in range(1, 6):
            await publisher.publish(probe.first, [encode(number)])

    async with a_tail(probe, probe.first) as tail:
        assert await tail.bounds() == (0, 6)
        record = await tail.read(3)
        assert record is not None
        assert (record.offset, record.value) == (3, encode_batch([msgspec.Raw(encode(3))]))
        assert [later.offset for later in await tail.poll(1.0, 500)] == [4, 5]
        tail.seek(2)
        assert [later.offset for later in await tail.poll(1.0, 2)] == [2, 3]
        assert tail.behind(4) == 2
        assert await tail.read(6, wait_s=0.1) is None


async def test_a_record_that_comes_later_is_waited_for(system: System) -> None:
    probe = await a_log(system)

    async with a_tail(probe, probe.first) as tail, a_publisher(probe) as publisher:
        tail.seek(1)
        assert await tail.poll(0, 500) == []
        waiting = asyncio.ensure_future(tail.poll(20.0, 500))
        await publisher.publish(probe.first, [encode("late")])
        assert contents([Record(0, 0, b""), *await waiting]) == ["late"]


@pytest.mark.parametrize("beyond", [1, 1_000])
async def test_seeking_beyond_the_log_fails_loudly(system: System, beyond: int) -> None:
    probe = await a_log(system)

    async with a_tail(probe, probe.first) as tail:
        _, end = await tail.bounds()
        tail.seek(end + beyond)
        with pytest.raises(LogFailed, match="OffsetOutOfRange"):
            await tail.poll(20.0, 500)


async def test_an_end_counts_every_record_that_was_acknowledged(system: System) -> None:
    probe = await a_log(system)
    ends = Ends(probe)

    try:
        async with a_publisher(probe) as publisher:
            assert await ends.end(probe.first) == 1
            for number in range(20):
                offset = await publisher.publish(probe.first, [encode(number)])
                assert await ends.end(probe.first) == offset + 1
    finally:
        await ends.close()


# --- set-up ----------------------------------------------------------------------------------------------------------


async def test_a_set_up_run_twice_begins_each_partition_once(system: System) -> None:
    probe = await a_log(system, partitions=2)
    once = [await records_of(probe, partition) for partition in (probe.first, probe.second)]

    await set_up(probe, probe.service)

    again = [await records_of(probe, partition) for partition in (probe.first, probe.second)]
    assert again == once
    geneses = [msgspec.msgpack.decode(records[0].value, type=Genesis) for records in once]
    assert [len(records) for records in once] == [1, 1]
    assert geneses[0].log_id != geneses[1].log_id


async def test_set_ups_that_run_at_once_leave_one_log_id(system: System) -> None:
    probe = a_probe(system)

    await asyncio.gather(*[set_up(probe, probe.service) for _ in range(3)])

    records = await records_of(probe, probe.first)
    geneses = [msgspec.msgpack.decode(record.value, type=Genesis) for record in records]
    state = refolded(probe.machine, probe.first, probe.topology, records)
    assert Codec(probe.machine).header(state["header"]).log_id == geneses[0].log_id


async def test_topics_keep_everything_and_take_the_brokers_time(system: System) -> None:
    probe = await a_log(system)

    for topic in (f"{probe.service}-inbox", dead_letters_of(probe.service).topic):
        config = await config_of(probe, topic)
        assert config.items() >= TOPIC_CONFIG.items()
        assert config["min.insync.replicas"] == "1"


async def config_of(probe: ProbeSettings, topic: str) -> dict[str, str]:
    async with an_admin(probe) as admin:
        (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    _, _, _, _, entries = response.resources[0]
    return {entry[0]: entry[1] for entry in entries}


@asynccontextmanager
async def an_admin(probe: ProbeSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=probe.kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@pytest.mark.parametrize("service", ["order", "stock", "payment"])
async def test_a_changed_partition_count_ends_the_process_and_names_the_setting(system: System, service: str) -> None:
    settings = msgspec.structs.replace(settings_of(system), **{f"{service}_partitions": 3})

    with pytest.raises(SystemExit, match=f"CHECKOUT_{service.upper()}_PARTITIONS is 3, but {service}-inbox has 2"):
        await check_topology(settings)


async def test_the_right_partition_counts_are_accepted_and_so_are_topics_yet_to_be_created(system: System) -> None:
    await check_topology(settings_of(system))
    await check_topology(a_probe(system))


# --- ownership -------------------------------------------------------------------------------------------------------


async def test_two_members_share_the_partitions_and_who_stays_gets_them_all(system: System) -> None:
    probe = await a_log(system, partitions=4)
    everything = {f"{probe.service}-{number}" for number in range(4)}
    owned: dict[str, set[str]] = {"one": set(), "other": set()}

    def member(name: str) -> asyncio.Task[None]:
        return spawn(Membership(probe, probe.service, lambda names: owned.update({name: names})).run())

    async def are_shared() -> bool:
        return owned["one"] | owned["other"] == everything and len(owned["one"]) == len(owned["other"]) == 2

    async def has_all() -> bool:
        return owned["other"] == everything

    one, other = member("one"), member("other")
    try:
        await until(are_shared, "both own two partitions")
        one.cancel()
        await until(has_all, "the other one owns all")
    finally:
        one.cancel()
        other.cancel()
        await asyncio.gather(one, other, return_exceptions=True)


# --- late appends ----------------------------------------------------------------------------------------------------


async def test_a_late_append_is_dropped_as_a_repeat(system: System) -> None:
    probe = await a_log(system)
    reservations = [Letter("order-0", n, ReserveStock(f"order-0-{n}-0", (("apple", n),))) for n in (1, 2, 3)]

    async with a_publisher(probe) as publisher:
        requests = [a_request(CreateItem("apple", 5), "apple/1"), a_request(AddStock("apple", 100), "apple/2")]
        await publisher.publish(probe.first, [encode(request) for request in requests])
        await publisher.publish(probe.first, [encode(letter) for letter in reservations])
        before = await records_of(probe, probe.first)
        await publisher.publish(probe.first, [encode(reservations[0])])
        await publisher.publish(probe.first, [encode(letter) for letter in reservations[1:]])

    records = await records_of(probe, probe.first)
    state = refolded(probe.machine, probe.first, probe.topology, records)
    state_before = refolded(probe.machine, probe.first, probe.topology, before)
    assert len(records) == len(before) + 2
    assert state["Item:apple"] == encode(Item(5, 94, 6))
    assert without(state, "header", "position") == without(state_before, "header", "position")
    assert repeats(probe, records) == 3


def without(state: dict[str, bytes], *fields: str) -> dict[str, bytes]:
    return {field: value for field, value in state.items() if field not in fields}


def repeats(probe: ProbeSettings, records: list[Record]) -> int:
    """Return how many letters the fold of all records at once drops as repeats."""
    machine = probe.machine
    memory = Memory()
    fold = Fold(Rules(machine, Codec(machine), probe.first, probe.topology, {}), memory, Header(), records)
    for effect in fold.run():
        assert isinstance(effect, Missing)
        memory.update(dict.fromkeys(effect.keys))
    return fold.folded.repeats


# --- dead letters ----------------------------------------------------------------------------------------------------


async def test_dead_letters_are_found_by_partition_and_by_number(system: System) -> None:
    probe = await a_log(system, partitions=2)
    letters = [DeadLetter(probe.first, 7, 0, "one", b""), DeadLetter(probe.second, 7, 0, "two", b"")]
    letters += [DeadLetter(probe.first, 7, 1, "three", b""), DeadLetter(probe.first, 9, 0, "four", b"")]

    async with a_producer(probe) as producer:
        box = DeadLetterBox(probe, probe.service, producer)
        assert await box.of(probe.first) == {}
        assert await box.at(0) is None
        assert [await box.put(letter) for letter in letters] == [0, 1, 2, 3]

        assert await box.of(probe.first) == {(7, 0): 0, (7, 1): 2, (9, 0): 3}
        assert await box.of(probe.second) == {(7, 0): 1}
        assert [await box.at(number) for number in range(5)] == [*letters, None]


async def test_of_two_dead_letters_for_one_message_the_first_counts(system: System) -> None:
    probe = await a_log(system)

    async with a_producer(probe) as producer:
        box = DeadLetterBox(probe, probe.service, producer)
        for why in ("one owner's", "another owner's"):
            await box.put(DeadLetter(probe.first, 3, 1, why, b""))

        assert await box.of(probe.first) == {(3, 1): 0}
