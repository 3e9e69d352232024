"""Watchdogs fire when something stands still, and only then; they repair first, and end the process last."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, NotEnoughReplicasError
from prometheus_client import REGISTRY

from common import log, watchdog
from common.config import Settings
from common.log import Ends, LogFailed, LogSilent, Membership, Producer, Tail
from common.tasks import CRASHED
from common.watchdog import REPAIRS_MAX, STILL_ROUNDS_MAX, LoopWatch, Stuck, beat, nurse, rest
from local.profiles import REPOSITORY

SETTINGS = Settings(kafka="127.0.0.1:1", redis="127.0.0.1:1")
PLACE = TopicPartition("stock-inbox", 0)
IDLE_S = 0.25
LOOK_POLLS = round(log.SILENCE_S / IDLE_S)


async def no_time(_seconds: float) -> None:
    """Let a round be over at once."""
    await asyncio.sleep(0)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def repairs(what: str) -> float:
    return REGISTRY.get_sample_value("checkout_repairs_total", {"what": what}) or 0.0


async def standing_still() -> None:
    await asyncio.Event().wait()


# --- work that stands still ------------------------------------------------------------------------------------------


async def test_work_that_moves_is_left_alone() -> None:
    begun = []

    async def work() -> None:
        begun.append(None)
        for _ in range(20 * STILL_ROUNDS_MAX):
            beat()
            await asyncio.sleep(0)

    await nurse("work", work, no_time)

    assert len(begun) == 1


async def test_work_that_stands_still_is_begun_anew_and_goes_on() -> None:
    begun: list[str] = []
    before = repairs("some work")

    async def work() -> None:
        begun.append("again")
        if len(begun) == 1:
            await standing_still()

    await nurse("some work", work, no_time)

    assert len(begun) == 2
    assert repairs("some work") == before + 1


async def test_work_that_stands_still_again_and_again_ends_the_process() -> None:
    begun = []

    async def work() -> None:
        begun.append(None)
        beat()
        await standing_still()

    with pytest.raises(Stuck, match="work stands still"):
        await nurse("work", work, no_time)

    assert len(begun) == 1 + REPAIRS_MAX


async def test_what_went_on_for_long_is_not_counted_against_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "HEALTHY_ROUNDS", 2 * STILL_ROUNDS_MAX)
    begun = []

    async def work() -> None:
        begun.append(None)
        if len(begun) <= 3 * REPAIRS_MAX:
            for _ in range(10 * STILL_ROUNDS_MAX):
                beat()
                await asyncio.sleep(0)
            await standing_still()

    await nurse("work", work, no_time)

    assert len(begun) == 3 * REPAIRS_MAX + 1


async def test_work_that_ignores_its_end_does_not_keep_its_successor_from_beginning() -> None:
    begun: list[str] = []
    released = asyncio.Event()

    async def deaf() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                begun.append("deaf")

    async def work() -> None:
        begun.append("begun")
        if begun == ["begun"]:
            await deaf()

    await nurse("work", work, no_time)
    released.set()
    await turns(3)

    assert sorted(begun) == ["begun", "begun", "deaf"]


async def test_who_rests_may_stand_still_until_the_next_beat() -> None:
    acknowledged = asyncio.Event()

    async def work() -> None:
        rest()
        await acknowledged.wait()
        beat()
        await standing_still()

    nursing = asyncio.ensure_future(nurse("work", work, no_time))
    await turns(20 * STILL_ROUNDS_MAX * (1 + REPAIRS_MAX))
    assert not nursing.done()

    acknowledged.set()
    with pytest.raises(Stuck):
        await nursing


async def test_a_process_that_was_frozen_for_long_has_missed_one_round() -> None:
    thawed = asyncio.Event()
    frozen = asyncio.Event()
    begun = []

    async def oversleep(_seconds: float) -> None:
        await asyncio.sleep(0)
        if len(begun) == 1 and not thawed.is_set():
            frozen.set()
            await thawed.wait()

    async def work() -> None:
        begun.append(None)
        await thawed.wait()

    nursing = asyncio.ensure_future(nurse("work", work, oversleep))
    await frozen.wait()
    await turns(100 * STILL_ROUNDS_MAX)
    thawed.set()
    await nursing

    assert len(begun) == 1


async def test_what_work_raises_is_raised_and_nothing_is_begun_anew() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await nurse("work", work, no_time)


async def test_work_tidies_up_before_a_cancelled_nurse_ends() -> None:
    tidied = []

    async def work() -> None:
        try:
            await standing_still()
        finally:
            await turns(5)
            tidied.append(None)

    nursing = asyncio.ensure_future(nurse("work", work))
    await turns(5)
    nursing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await nursing

    assert len(tidied) == 1


async def test_a_beat_is_heard_by_the_nurse_of_its_own_work_only() -> None:
    async def moving() -> None:
        while True:
            beat()
            await asyncio.sleep(0)

    lively = asyncio.ensure_future(nurse("lively", moving, no_time))
    with pytest.raises(Stuck, match=r"^quiet"):
        await nurse("quiet", standing_still, no_time)

    assert not lively.done()
    lively.cancel()


def test_a_beat_of_work_that_nobody_nurses_is_nothing() -> None:
    beat()
    rest()


# --- the event loop --------------------------------------------------------------------------------------------------

PROCESS = """
import asyncio, os, sys, time
from common import watchdog
watchdog.ROUND_S = 0.05

async def block_the_loop():
    {block}

async def main():
    watch = watchdog.LoopWatch(asyncio.get_running_loop())
    watch.start()
    await asyncio.sleep(0.2)
    print("running", flush=True)
    await block_the_loop()
    while True:
        await asyncio.sleep(0.01)
        if watch.is_answering and sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
            os._exit(0)

asyncio.run(main())
"""


def a_process(block: str) -> subprocess.Popen[str]:
    """Return a process that runs, after it has said so, `block` in its event loop; a byte on stdin ends it well."""
    command = [sys.executable, "-c", PROCESS.format(block=block)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize(
    "block", ["time.sleep(600)", "while True: pass", "while True: os.write(1, b'unread log' * 1000)"]
)
def test_a_process_whose_loop_is_blocked_shows_where_and_ends_to_be_started_again(block: str) -> None:
    process = a_process(block)
    assert process.stderr is not None
    said = process.stderr.read()  # not communicate(): nobody reads stdout

    assert process.wait(60) == CRASHED
    assert "in block_the_loop" in said
    assert msgspec.json.decode(said.splitlines()[-1])["event"] == "crash"


def test_a_process_that_was_stopped_and_continued_goes_on() -> None:
    process = a_process("pass")
    process.send_signal(signal.SIGSTOP)
    time.sleep(3 * watchdog.LOOP_ROUNDS_MAX * 0.05)  # what is tested is that this time does not count
    process.send_signal(signal.SIGCONT)

    process.communicate("end", timeout=60)
    assert process.returncode == 0


def test_a_loop_that_lags_is_not_answering_and_one_that_turns_again_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "ROUND_S", 0.01)
    monkeypatch.setattr(watchdog, "LOOP_ROUNDS_MAX", 1_000_000)

    async def lag() -> None:
        watch = LoopWatch(asyncio.get_running_loop())
        watch.start()
        await asyncio.sleep(0.05)
        while watch.is_answering:
            time.sleep(0.01)  # noqa: ASYNC251 - that is the lag
        while not watch.is_answering:  # noqa: ASYNC110 - a thread notices it, in its own time
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(lag(), 60))


# --- a consumer that goes silent -------------------------------------------------------------------------------------


class FakeKafka:
    """What consumers and producers see of Kafka; `made` says which clients there have been."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.end = 0
        self.asked = 0
        self.is_down = False
        self.delivered: list[FakeRecord] = []
        self.send_error: Exception | None = None
        self.fails_at: TopicPartition | None = None

    def consumer(self, _settings: Settings, **options: object) -> FakeConsumer:
        self.made.append("tail" if "fetch_max_wait_ms" in options else "ends")
        return FakeConsumer(self)

    def producer(self, **options: object) -> FakeProducer:
        self.made.append("producer")
        self.options = options
        return FakeProducer(self)


class FakeRecord(msgspec.Struct):
    offset: int
    timestamp: int = 0
    value: bytes = b""


class FakeConsumer:
    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    async def start(self) -> None:
        if self._kafka.is_down:
            raise KafkaConnectionError

    async def stop(self) -> None:
        pass

    def assign(self, _places: object) -> None:
        pass

    def seek(self, _place: object, _offset: int) -> None:
        pass

    async def getmany(self, place: TopicPartition, **_options: object) -> dict[TopicPartition, list[FakeRecord]]:
        records, self._kafka.delivered = self._kafka.delivered, []
        return {place: records} if records else {}

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        self._kafka.asked += 1
        if self._kafka.is_down:
            raise KafkaConnectionError
        return dict.fromkeys(places, self._kafka.end)


class FakeProducer:
    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def send(self, topic: str, _value: bytes, *, partition: int) -> asyncio.Future[FakeRecord]:
        delivered: asyncio.Future[FakeRecord] = asyncio.get_running_loop().create_future()
        if self._kafka.send_error is None or self._kafka.fails_at not in (None, TopicPartition(topic, partition)):
            delivered.set_result(FakeRecord(7))
        else:
            delivered.set_exception(self._kafka.send_error)
        return delivered


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    monkeypatch.setattr(log, "_consumer", kafka.consumer)
    monkeypatch.setattr(log, "AIOKafkaProducer", kafka.producer)
    return kafka


async def a_tail_at(offset: int) -> Tail:
    tail = Tail(SETTINGS, PLACE, Ends(SETTINGS))
    await tail.open()
    tail.seek(offset)
    return tail


async def polls(tail: Tail, count: int) -> None:
    for _ in range(count):
        await tail.poll(IDLE_S, 500)


async def test_a_consumer_that_brings_nothing_although_there_is_more_is_found_out(kafka: FakeKafka) -> None:
    kafka.end = 6
    tail = await a_tail_at(5)
    await polls(tail, LOOK_POLLS)  # the record may just have come

    with pytest.raises(LogSilent, match=r"no record 5 .* the log ends at 6"):
        await polls(tail, LOOK_POLLS)


async def test_silence_about_a_log_that_has_no_more_is_well_and_is_asked_about_rarely(kafka: FakeKafka) -> None:
    kafka.end = 5
    tail = await a_tail_at(5)

    await polls(tail, 10 * LOOK_POLLS)

    assert kafka.asked == 10


async def test_a_consumer_that_brings_records_is_never_asked_about(kafka: FakeKafka) -> None:
    tail = await a_tail_at(0)

    for offset in range(5 * LOOK_POLLS):
        kafka.end = offset + 100
        kafka.delivered = [FakeRecord(offset)]
        await tail.poll(IDLE_S, 500)

    assert kafka.asked == 0


async def test_a_record_that_comes_after_the_first_doubt_ends_it(kafka: FakeKafka) -> None:
    kafka.end = 6
    tail = await a_tail_at(5)

    for offset in range(5, 10):
        await polls(tail, LOOK_POLLS)
        kafka.delivered, kafka.end = [FakeRecord(offset)], offset + 2
        await polls(tail, 1)


async def test_a_log_that_is_down_is_out_of_reach_and_nobody_is_silent(kafka: FakeKafka) -> None:
    kafka.end = 6
    tail = await a_tail_at(5)
    kafka.is_down = True
    await polls(tail, LOOK_POLLS)  # a failover takes as long

    with pytest.raises(LogFailed) as why:
        await polls(tail, LOOK_POLLS)
    assert not isinstance(why.value, LogSilent)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long takes no time, and failures alone count."""
    monkeypatch.setattr(log, "REPLACE_S", 0.0)
    monkeypatch.setattr(log, "DEAD_S", 0.0)


@pytest.mark.usefixtures("_soon")
async def test_the_consumer_that_asks_for_ends_is_replaced_when_it_only_fails(kafka: FakeKafka) -> None:
    ends = Ends(SETTINGS)
    kafka.end = 3
    assert await ends.end("stock-0") == 3
    kafka.is_down = True

    for _ in range(log.FAILURES_MAX):
        with pytest.raises(LogFailed):
            await ends.end("stock-0")
    kafka.is_down = False

    assert await ends.end("stock-0") == 3
    assert kafka.made == ["ends", "ends"]


async def test_a_failover_replaces_neither_the_consumer_that_asks_for_ends_nor_the_producer(kafka: FakeKafka) -> None:
    """A new one knows no more, and may begin with the broker that is frozen."""
    ends, producer = Ends(SETTINGS), Producer(SETTINGS)
    await ends.end("stock-0")
    kafka.is_down, kafka.send_error = True, KafkaConnectionError()

    for _ in range(5 * log.FAILURES_MAX):
        with pytest.raises(LogFailed):
            await ends.end("stock-0")
    await failures(producer, 5 * log.FAILURES_MAX)

    assert kafka.made == ["ends", "producer"]


# --- a producer that only fails --------------------------------------------------------------------------------------


async def test_no_producer_is_idempotent_and_each_waits_for_all_replicas(kafka: FakeKafka) -> None:
    """An idempotent one may lose count in an outage and fail for good: aiokafka's issue 1017."""
    await Producer(SETTINGS).send(PLACE, b"")

    assert (kafka.options["enable_idempotence"], kafka.options["acks"]) == (False, "all")


async def failures(producer: Producer, count: int) -> None:
    for _ in range(count):
        with pytest.raises(LogFailed):
            await producer.send(PLACE, b"")


@pytest.mark.usefixtures("_soon")
async def test_a_producer_that_only_fails_is_replaced_and_then_ends_the_process(kafka: FakeKafka) -> None:
    kafka.send_error = KafkaConnectionError()
    producer = Producer(SETTINGS)

    await failures(producer, log.DEAD_FAILURES - 1)
    with pytest.raises(Stuck, match="it can be read"):
        await producer.send(PLACE, b"")

    assert kafka.made.count("producer") == log.DEAD_FAILURES // log.FAILURES_MAX


@pytest.mark.usefixtures("_soon")
async def test_a_producer_that_fails_at_one_partition_only_is_replaced_as_well(kafka: FakeKafka) -> None:
    kafka.send_error, kafka.fails_at = KafkaConnectionError(), PLACE
    producer = Producer(SETTINGS)

    for _ in range(log.FAILURES_MAX):
        await producer.send(TopicPartition("stock-inbox", 7), b"")
        await failures(producer, 1)
    await producer.send(TopicPartition("stock-inbox", 7), b"")

    assert kafka.made.count("producer") == 2


@pytest.mark.usefixtures("_soon")
async def test_a_log_that_is_down_for_everybody_ends_nobody(kafka: FakeKafka) -> None:
    kafka.send_error = KafkaConnectionError()
    kafka.is_down = True

    await failures(Producer(SETTINGS), 5 * log.DEAD_FAILURES)


@pytest.mark.usefixtures("_soon")
async def test_brokers_that_say_that_they_lack_replicas_end_nobody(kafka: FakeKafka) -> None:
    kafka.send_error = NotEnoughReplicasError()

    await failures(Producer(SETTINGS), 5 * log.DEAD_FAILURES)


async def test_many_failures_within_a_failover_end_nobody(kafka: FakeKafka) -> None:
    kafka.send_error = KafkaConnectionError()

    await failures(Producer(SETTINGS), 5 * log.DEAD_FAILURES)


@pytest.mark.usefixtures("_soon")
async def test_a_send_that_succeeds_ends_the_doubt(kafka: FakeKafka) -> None:
    producer = Producer(SETTINGS)

    for _ in range(5):
        kafka.send_error = KafkaConnectionError()
        await failures(producer, log.DEAD_FAILURES - 1)
        kafka.send_error = None
        assert await producer.send(PLACE, b"") == 7


# --- a member that its group does not know ---------------------------------------------------------------------------


class FakeGroup:
    """A group that says what the test lets it say; None: it says nothing."""

    def __init__(self) -> None:
        self.partitions: set[str] | None = {"stock-0"}
        self.client_ids: list[str] = []

    async def members(self) -> dict[str, set[str]] | None:
        await asyncio.sleep(0)
        if self.partitions is None:
            return None
        return dict.fromkeys(self.client_ids[-1:], self.partitions)

    async def close(self) -> None:
        pass


class FakeMember(FakeConsumer):
    """A member that is told its partition as soon as it joins, and never anything again."""

    def subscribe(self, _topics: list[str], listener: Membership) -> None:
        self._listener = listener

    async def start(self) -> None:
        await self._listener.on_partitions_assigned([PLACE])

    def pause(self, *_places: object) -> None:
        pass

    async def getmany(self, *_places: object, **_options: object) -> dict[TopicPartition, list[FakeRecord]]:
        await standing_still()
        raise AssertionError


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> FakeGroup:
    group = FakeGroup()

    def member(_settings: Settings, **options: object) -> FakeMember:
        group.client_ids.append(str(options["client_id"]))
        return FakeMember(FakeKafka())

    monkeypatch.setattr(log, "_Group", lambda _settings, _service: group)
    monkeypatch.setattr(log, "_consumer", member)
    monkeypatch.setattr(log, "LOOK_S", 0.0)
    return group


async def with_membership(test: Callable[[Membership, asyncio.Future[None]], Awaitable[None]]) -> None:
    membership = Membership(SETTINGS, "stock", lambda _names: None)
    running = asyncio.ensure_future(membership.run())
    try:
        await test(membership, running)
    finally:
        running.cancel()
        await asyncio.wait({running})


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if happened():
            return
        await asyncio.sleep(0)
    pytest.fail("it never happened")


async def test_a_member_that_its_group_knows_stays_and_is_ready(group: FakeGroup) -> None:
    async def test(membership: Membership, running: asyncio.Future[None]) -> None:
        assert not membership.is_member
        await until(lambda: membership.is_member)
        await turns(1_000)
        assert not running.done()

    await with_membership(test)
    assert len(group.client_ids) == 1


@pytest.mark.parametrize("partitions", [set(), {"stock-1"}, {"stock-0", "stock-1"}])
async def test_a_member_whose_group_says_something_else_joins_anew(group: FakeGroup, partitions: set[str]) -> None:
    async def test(membership: Membership, running: asyncio.Future[None]) -> None:
        await until(lambda: membership.is_member)
        group.partitions = partitions
        await until(lambda: len(group.client_ids) == 2)
        group.partitions = {"stock-0"}
        await turns(1_000)
        assert not running.done()

    await with_membership(test)
    assert len(group.client_ids) == 2


async def test_a_member_that_joining_anew_does_not_help_ends_the_process(group: FakeGroup) -> None:
    group.partitions = {"stock-1"}
    membership = Membership(SETTINGS, "stock", lambda _names: None)

    with pytest.raises(Stuck, match="does not take this member"):
        await membership.run()

    assert not membership.is_member
    assert len(group.client_ids) == 1 + log.REJOINS_MAX


async def test_a_group_that_cannot_be_seen_changes_nothing(group: FakeGroup) -> None:
    async def test(_membership: Membership, running: asyncio.Future[None]) -> None:
        group.partitions = None
        await turns(1_000)
        assert not running.done()

    await with_membership(test)
    assert len(group.client_ids) == 1


async def test_a_member_of_a_group_that_was_not_seen_for_long_is_not_ready(
    group: FakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(membership: Membership, _running: asyncio.Future[None]) -> None:
        await until(lambda: membership.is_member)
        group.partitions = None
        await turns(10)
        monkeypatch.setattr(log, "GROUP_GAP_S", 0.0)
        assert not membership.is_member

    await with_membership(test)
