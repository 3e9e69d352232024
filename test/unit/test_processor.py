"""The processor's step, its one recovery, and when it halts: on fakes that crash when the test says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import structlog
from builders import NOW_MS, ONE_EACH
from test_fold import faulty
from world import STOCK, MemoryLog, MemorySnapshotLog, MemoryStore, state_of
from world import World as WholeWorld

from common import processor
from common.decision import Arrival, Decision, Ended, Machine, State
from common.fold import Codec, DeadLetter, DeadLetters, Folded, Record, Result, result_key
from common.log import LogFailed, LogSilent
from common.messages import (
    Asker,
    AskPrice,
    Done,
    Genesis,
    Letter,
    Message,
    NewRules,
    PriceTold,
    Request,
    ReserveStock,
    StockReserved,
    Topology,
    encode,
    partitions_of,
)
from common.processor import BUSY_MESSAGES, OUT_OF_REACH_S, RETRY_S, SILENCES_MAX, Partition, Processor, World
from common.snapshot import Manifest, Snapshots
from common.store import Fenced, StoreFailed
from common.watchdog import STILL_ROUNDS_MAX, Stuck
from stock.domain import AddStock, CreateItem, Item, SubtractStock

PARTITION = "stock-0"


class FakeTail:
    """Follows the memory log.  `first` is where the log begins, as after trimming."""

    def __init__(self, bench: Bench, partition: str) -> None:
        self._bench = bench
        self._partition = partition
        self._position = 0
        self._thaw = bench.thaw
        self.is_open = False

    async def open(self) -> None:
        self._bench.raise_next("open")
        self.is_open = True
        self._bench.open_tails += 1

    async def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._bench.open_tails -= 1

    async def bounds(self) -> tuple[int, int]:
        return self._bench.log.first(self._partition), self._bench.log.end(self._partition)

    async def read(self, offset: int) -> Record | None:
        records = [record for record in self._bench.log.records[self._partition] if record.offset == offset]
        return records[0] if records and offset not in self._bench.unreadable else None

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        del wait_s  # nothing here takes time
        await asyncio.sleep(0)
        if self._thaw is not None:
            await self._thaw.wait()
        self._bench.raise_next("poll")
        records = self._bench.log.after(self._partition, self._position, min(records_max, self._bench.records_max))
        if records:
            self._position = records[-1].offset + 1
            self._bench.note(f"poll {records[0].offset}..{records[-1].offset}")
        return records

    def seek(self, offset: int) -> None:
        self._position = offset

    def behind(self, position: int) -> int:
        return max(self._bench.log.end(self._partition) - position, 0)


class FakeStore:
    """The memory store, behind calls that can fail."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.memory = MemoryStore()
        self.with_replies: list[bool] = []
        self.lose_answers = 0

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        await asyncio.sleep(0)
        self._bench.raise_next("read")
        self._bench.note(f"read {','.join(fields) or 'position'}")
        return self.memory.read(partition, fields)

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        await asyncio.sleep(0)
        self._bench.raise_next("apply")
        self.memory.apply(partition, folded, with_replies=with_replies)
        self._bench.note(f"apply {folded.start}..{folded.end}")
        self.with_replies.append(with_replies)
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreFailed("the answer was lost")

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        self._bench.raise_next("restore")
        fields = {"header": manifest.header}
        async for chunk in chunks:
            fields |= chunk
        self.memory.restore(partition, expected, manifest.position, fields)
        self._bench.note(f"restore {manifest.position}")


class FakePublisher:
    """Puts letters into the memory log; while `holds` it keeps the acknowledgements back."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.holds = False
        self.held: list[asyncio.Future[int]] = []
        self.published: list[tuple[str, list[bytes]]] = []

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        self._bench.note(f"publish {partition}")
        self.published.append((partition, messages))
        acknowledged: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.holds:
            self.held.append(acknowledged)
        else:
            acknowledged.set_result(self._bench.log.append(partition, messages))
        return acknowledged

    def acknowledge(self) -> None:
        self.holds = False
        for acknowledged in self.held:
            acknowledged.set_result(1)


class FakeDeadLetterBox:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.letters: list[DeadLetter] = []

    async def put(self, letter: DeadLetter) -> int:
        self._bench.raise_next("put")
        self.letters.append(letter)
        self._bench.note(f"bury {letter.offset}")
        return len(self.letters) - 1

    async def of(self, partition: str, since: int = 0) -> DeadLetters:
        self._bench.note(f"dead letters from {since}")
        letters: DeadLetters = {}
        for number, letter in enumerate(self.letters):
            if number >= since and letter.partition == partition:
                letters.setdefault((letter.offset, letter.index), number)
        return letters


class Bench:
    """One stock partition between fakes, on a clock that only sleeping moves.  `journal` has what happened."""

    def __init__(self, machine: Machine = STOCK, topology: Topology = ONE_EACH) -> None:
        self.now_s = NOW_MS / 1000
        self.log = MemoryLog(topology)
        self.journal: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        self.records_max = 500
        self.unreadable: set[int] = set()
        self.thaw: asyncio.Event | None = None  # tails that are made while it is set are frozen until then
        self.open_tails = 0
        self.slept_s: list[float] = []
        self.store = FakeStore(self)
        self.publisher = FakePublisher(self)
        self.box = FakeDeadLetterBox(self)
        self.snapshot_log = MemorySnapshotLog()
        self._machine = machine
        self._topology = topology

    def world(self) -> World:
        return World(
            tail=lambda partition: FakeTail(self, partition),
            publisher=self.publisher,
            store=self.store,
            dead_letters=self.box,
            snapshots=Snapshots(self.snapshot_log),
            now_s=lambda: self.now_s,
            sleep=self._sleep,
        )

    def partition(self, topology: Topology | None = None, machine: Machine | None = None) -> Partition:
        return Partition(PARTITION, machine or self._machine, topology or self._topology, self.world())

    def note(self, what: str) -> None:
        self.journal.append(what)

    def fail(self, call: str, *why: Exception) -> None:
        """Let the next calls fail."""
        self.failures.setdefault(call, []).extend(why)

    def raise_next(self, call: str) -> None:
        if self.failures.get(call):
            raise self.failures[call].pop(0)

    async def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def ask(self, command: Message, request_id: str = "") -> Asker:
        """Put a command into the log."""
        asker = Asker(request_id or f"apple/{self.log.end(PARTITION)}", 7, "web-1")
        self.log.append(PARTITION, [Request(asker, self.log.now_ms, command)])
        return asker

    def write(self, sequence: int, message: Message, source: str = "order-0") -> None:
        """Put a letter into the log."""
        self.log.append(PARTITION, [Letter(source, sequence, message)])

    def told(self) -> list[object]:
        return [told.outcome for told in self.store.memory.replies.get("web-1", [])]

    @property
    def position(self) -> int:
        return self.store.memory.positions.get(PARTITION, 0)

    def entity(self) -> bytes | None:
        return self.store.memory.read(PARTITION, ["Item:apple"])[1][0]

    def is_caught_up(self) -> bool:
        return self.position == self.log.end(PARTITION)

    async def until(self, partition: Partition, happened: Callable[[], bool]) -> None:
        """Run the partition until something has happened, then stop it."""
        run = asyncio.ensure_future(partition.run())
        await eventually(happened, run)
        partition.stopping = True
        await run

    async def catch_up(self, partition: Partition | None = None) -> None:
        await self.until(partition or self.partition(), self.is_caught_up)


async def eventually(happened: Callable[[], bool], run: asyncio.Future[None] | None = None) -> None:
    for _ in range(2_000):
        if happened():
            return
        if run is not None and run.done():
            run.result()
        await asyncio.sleep(0)
    pytest.fail("it never happened")


def run(test: Callable[[Bench], Awaitable[None]], bench: Bench | None = None) -> None:
    async def on_bench() -> None:
        tested = bench or Bench()
        await test(tested)
        assert tested.open_tails == 0, "a tail was left open"

    asyncio.run(on_bench())


def a_bench(machine: Machine = STOCK) -> Bench:
    """Return a bench whose log has ten apples."""
    bench = Bench(machine)
    bench.ask(CreateItem("apple", 5))
    bench.ask(AddStock("apple", 10))
    return bench


def in_order(journal: list[str], *expected: str) -> bool:
    """Say whether these happened in this order, whatever else did."""
    rest = iter(journal)
    return all(any(what.startswith(start) for what in rest) for start in expected)


# --- the step


def test_a_step_polls_reads_folds_publishes_applies() -> None:
    async def test(bench: Bench) -> None:
        bench.write(1, AskPrice("a1", "apple"))

        await bench.catch_up()

        assert in_order(bench.journal, "read header", "poll 0..3", "read ", "publish order-0", "apply 0..4")
        assert bench.publisher.published == [("order-0", [encode(Letter(PARTITION, 1, PriceTold("a1", 5)))])]
        assert bench.entity() == encode(Item(5, 10))

    run(test, a_bench())


def test_nothing_is_applied_before_everything_is_acknowledged() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.holds = True
        bench.write(1, AskPrice("a1", "apple"), "order-0")
        bench.write(1, AskPrice("a1", "apple"), "payment-0")
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: len(bench.publisher.held) == 2)
        bench.publisher.held.pop().set_result(1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.position == 0
        assert bench.told() == []

        bench.publisher.acknowledge()
        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert len(bench.told()) == 2

    run(test, a_bench())


def test_replies_go_with_the_apply_that_they_follow_from() -> None:
    async def test(bench: Bench) -> None:
        bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        assert bench.told() == [Done("apple"), Done("10"), Done("9")]

    run(test, a_bench())


def test_an_apply_that_is_fenced_tells_nobody() -> None:
    async def test(bench: Bench) -> None:
        bench.fail("apply", Fenced(PARTITION, 0, 2))
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: not bench.failures["apply"])
        assert bench.told() == []

        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert bench.told() == [Done("apple"), Done("10")]

    run(test, a_bench())


async def meanwhile(bench: Bench, *commands: Message) -> None:
    """Let these commands come while the first batch is published and not acknowledged yet."""
    bench.publisher.holds = True
    bench.write(1, AskPrice("a1", "apple"))
    partition = bench.partition()
    running = asyncio.ensure_future(partition.run())
    await eventually(lambda: bench.publisher.held != [])
    for command in commands:
        bench.ask(command)
        for _ in range(50):
            await asyncio.sleep(0)
    assert bench.position == 0
    bench.publisher.acknowledge()
    await eventually(bench.is_caught_up)
    partition.stopping = True
    await running


def test_what_comes_while_a_batch_is_being_committed_is_applied_after_it() -> None:
    """Whether it is folded meanwhile is the processor's business."""

    async def test(bench: Bench) -> None:
        await meanwhile(bench, CreateItem("pear", 7), AddStock("pear", 1))

        applied = [what.removeprefix("apply ").split("..") for what in bench.journal if what.startswith("apply")]
        assert [start for start, _ in applied] == ["0", *(end for _, end in applied[:-1])]
        assert bench.told()[2:] == [Done("pear"), Done("1")]

    run(test, a_bench())


@pytest.mark.parametrize("entities_max", [1, 2, 30_000])
def test_what_comes_while_a_batch_is_being_committed_sees_what_the_batch_changed(
    monkeypatch: pytest.MonkeyPatch, entities_max: int
) -> None:
    """However little fits memory: what is not applied yet stands nowhere else."""

    async def test(bench: Bench) -> None:
        await meanwhile(bench, SubtractStock("apple", 10), SubtractStock("apple", 1), AddStock("apple", 3))

        assert bench.told()[2] == Done("0")
        assert bench.told()[4] == Done("3")
        assert bench.entity() == encode(Item(5, 3))

    monkeypatch.setattr(processor, "MEMORY_ENTITIES_MAX", entities_max)
    run(test, a_bench())


@pytest.mark.parametrize("records_max", [1, 2, 500])
def test_the_processor_comes_to_the_same_bytes_as_the_fold_alone(records_max: int) -> None:
    async def test(bench: Bench) -> None:
        bench.records_max = records_max
        for number in range(20):
            bench.ask(SubtractStock("apple", 1), f"apple/{number % 15}")
            bench.write(number + 1, AskPrice(f"a{number}", "apple"))
        whole = WholeWorld(ONE_EACH, [STOCK])
        whole.log.records[PARTITION] = list(bench.log.records[PARTITION])

        await bench.catch_up()
        whole.run()

        assert state_of(bench.store.memory) == state_of(whole.store)

    run(test, a_bench())


def test_entities_that_do_not_fit_memory_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.records_max = 1
        bench.ask(CreateItem("pear", 7))
        for _ in range(3):
            bench.ask(SubtractStock("apple", 1))
            bench.ask(AddStock("pear", 1))

        await bench.catch_up()

        assert bench.entity() == encode(Item(5, 7))
        assert bench.told()[-2:] == [Done("7"), Done("3")]

    monkeypatch.setattr(processor, "MEMORY_ENTITIES_MAX", 1)
    run(test, a_bench())


# --- watchdogs


def test_a_consumer_gone_silent_is_replaced_and_nothing_is_lost() -> None:
    async def test(bench: Bench) -> None:
        bench.ask(SubtractStock("apple", 1))
        for _ in range(3):
            bench.fail("poll", *[LogSilent("nothing comes")] * SILENCES_MAX)
            await bench.catch_up()
            bench.ask(SubtractStock("apple", 1))

        assert bench.entity() == encode(Item(5, 7))
        assert bench.told() == [Done("apple"), Done("10"), Done("9"), Done("8"), Done("7")]

    run(test, a_bench())


def test_silent_consumers_between_which_records_come_are_not_added_up() -> None:
    async def test(bench: Bench) -> None:
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        for _ in range(3 * SILENCES_MAX):
            await eventually(bench.is_caught_up, running)
            bench.fail("poll", LogSilent("nothing comes"))
            bench.ask(SubtractStock("apple", 1))

        await eventually(bench.is_caught_up, running)
        partition.stopping = True
        await running

    run(test, a_bench())


def test_consumers_that_are_silent_one_after_the_other_end_the_process() -> None:
    async def test(bench: Bench) -> None:
        bench.fail("poll", *[LogSilent("nothing comes")] * (SILENCES_MAX + 1))

        with pytest.raises(Stuck, match="stock-0: 4 consumers were silent"):
            await bench.partition().run()

    run(test, a_bench())


def test_a_log_that_is_down_ends_nobody_however_long() -> None:
    async def test(bench: Bench) -> None:
        bench.fail("open", *[LogFailed("no broker")] * 200)

        await bench.catch_up()

        assert bench.entity() == encode(Item(5, 10))

    run(test, a_bench())


class HungTail(FakeTail):
    """A tail whose polls never return, while the bench has some of these left."""

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        await asyncio.Event().wait()
        return await super().poll(wait_s, records_max)


def with_hung_tails(bench: Bench, count: int) -> World:
    tails = iter([HungTail] * count)
    return msgspec.structs.replace(bench.world(), tail=lambda partition: next(tails, FakeTail)(bench, partition))


def test_a_partition_that_stands_still_is_begun_anew_and_is_still_ours() -> None:
    async def test(bench: Bench) -> None:
        processor = Processor(STOCK, ONE_EACH, with_hung_tails(bench, 2))
        processor.assign({PARTITION})

        await eventually(bench.is_caught_up)
        bench.ask(SubtractStock("apple", 1))
        await eventually(bench.is_caught_up)

        assert processor.is_ready
        await processor.stop()
        assert bench.entity() == encode(Item(5, 9))

    run(test, a_bench())


def test_a_partition_that_stood_still_and_was_lost_meanwhile_is_not_owned_again() -> None:
    async def test(bench: Bench) -> None:
        processor = Processor(STOCK, ONE_EACH, with_hung_tails(bench, 1))
        processor.assign({PARTITION})
        await eventually(lambda: bench.open_tails == 1)

        processor.assign(set())
        await processor.stop()

        assert bench.position == 0

    run(test, a_bench())


def test_a_partition_that_waits_for_an_acknowledgement_is_left_alone() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.holds = True
        bench.write(1, AskPrice("a1", "apple"))
        processor = Processor(STOCK, ONE_EACH, bench.world())
        processor.assign({PARTITION})
        await eventually(lambda: bench.publisher.held != [])

        await turns(20 * STILL_ROUNDS_MAX)

        assert len(bench.publisher.published) == 1
        bench.publisher.acknowledge()
        await eventually(bench.is_caught_up)
        await processor.stop()

    run(test, a_bench())


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- the one recovery


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("apply", StoreFailed("no primary")),
        ("apply", Fenced(PARTITION, 0, 7)),
        ("read", StoreFailed("no primary")),
        ("poll", LogFailed("no leader")),
        ("open", LogFailed("no broker")),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_whatever_fails_the_partition_is_loaded_again_and_nothing_happens_twice(
    call: str, why: Exception, times: int
) -> None:
    async def test(bench: Bench) -> None:
        bench.fail(call, *[why] * times)
        bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        assert bench.entity() == encode(Item(5, 9))
        assert bench.told() == [Done("apple"), Done("10"), Done("9")]

    run(test, a_bench())


def test_an_apply_whose_answer_was_lost_is_not_done_twice() -> None:
    async def test(bench: Bench) -> None:
        bench.store.lose_answers = 1
        bench.ask(SubtractStock("apple", 1))
        partition = bench.partition()

        await bench.until(partition, lambda: bench.is_caught_up() and bench.journal.count("read header") == 2)

        assert bench.entity() == encode(Item(5, 9))
        assert bench.told() == [Done("apple"), Done("10"), Done("9")]

    run(test, a_bench())


def test_after_a_crash_between_publish_and_apply_the_same_letters_go_out_again() -> None:
    async def test(bench: Bench) -> None:
        bench.fail("apply", StoreFailed("crash"))
        bench.write(1, AskPrice("a1", "apple"))

        await bench.catch_up()

        first, again = bench.publisher.published
        assert first == again

    run(test, a_bench())


def test_a_failover_that_takes_the_state_back_is_noticed_while_nothing_is_going_on() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        before = bench.store.memory.snapshot(PARTITION)
        bench.ask(SubtractStock("apple", 1))
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(bench.is_caught_up)

        bench.store.memory.roll_back(PARTITION, before)
        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert bench.entity() == encode(Item(5, 9))
        assert in_order(bench.journal, "read position", "read header")

    run(test, a_bench())


def test_an_emptied_store_is_filled_again_from_the_start_of_the_log() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        before = state_of(bench.store.memory)
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: partition.following)

        bench.store.memory.positions.clear()
        bench.store.memory.hashes.clear()
        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


def test_a_failover_is_noticed_by_the_read_of_an_entity_before_anything_is_folded_into_it() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        before = bench.store.memory.snapshot(PARTITION)
        bench.ask(SubtractStock("apple", 1))
        await bench.catch_up()
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: partition.following)

        bench.store.memory.roll_back(PARTITION, before)
        bench.ask(CreateItem("pear", 7))
        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert bench.entity() == encode(Item(5, 9))
        assert not any(what.startswith("apply 4..") for what in bench.journal)

    run(test, a_bench())


def test_a_zombie_that_wakes_up_folds_nothing_into_the_state_of_the_new_owner() -> None:
    async def test(bench: Bench) -> None:
        bench.records_max = 1
        await bench.catch_up()
        bench.publisher.holds = True
        bench.write(1, AskPrice("a1", "apple"))
        zombie = bench.partition()
        sleeping = asyncio.ensure_future(zombie.run())
        await eventually(lambda: bench.publisher.held != [])  # it freezes between publish and apply

        bench.publisher.holds = False
        bench.ask(SubtractStock("apple", 4))
        await bench.catch_up()
        bench.ask(CreateItem("pear", 7))
        bench.publisher.acknowledge()
        await eventually(bench.is_caught_up)

        zombie.stopping = True
        await sleeping
        whole = WholeWorld(ONE_EACH, [STOCK])
        whole.log.records[PARTITION] = list(bench.log.records[PARTITION])
        whole.run()
        assert state_of(bench.store.memory) == state_of(whole.store)
        assert bench.told() == [Done("apple"), Done("10"), Done("6"), Done("pear")]

    run(test, a_bench())


def test_a_zombie_sends_no_letter_that_the_owner_would_not_send() -> None:
    """It reads what the owner has applied: without the fence on reads it would take the first reservation twice."""

    async def test(bench: Bench) -> None:
        await bench.catch_up()
        bench.thaw = asyncio.Event()
        zombie = bench.partition()
        sleeping = asyncio.ensure_future(zombie.run())
        await eventually(lambda: zombie.following)
        thaw, bench.thaw = bench.thaw, None
        bench.write(1, ReserveStock("c1", (("apple", 4),)))
        await bench.catch_up()
        bench.write(2, ReserveStock("c2", (("apple", 6),)))

        thaw.set()
        await eventually(bench.is_caught_up)

        zombie.stopping = True
        await sleeping
        sent = [letter for _, letters in bench.publisher.published for letter in letters]
        answers = [StockReserved("c1"), StockReserved("c2")]
        assert sorted(set(sent)) == [encode(Letter(PARTITION, n, answer)) for n, answer in enumerate(answers, start=1)]
        assert bench.entity() == encode(Item(5, 0, 10))

    run(test, a_bench())


def test_two_owners_at_once_are_harmless() -> None:
    async def test(bench: Bench) -> None:
        bench.records_max = 2
        for number in range(30):
            bench.ask(SubtractStock("apple", 1), f"apple/{number % 12}")
            bench.write(number + 1, AskPrice(f"a{number}", "apple"))
        owners = [bench.partition(), bench.partition()]
        running = [asyncio.ensure_future(owner.run()) for owner in owners]

        await eventually(bench.is_caught_up)

        for owner in owners:
            owner.stopping = True
        await asyncio.gather(*running)
        whole = WholeWorld(ONE_EACH, [STOCK])
        whole.log.records[PARTITION] = list(bench.log.records[PARTITION])
        whole.run()
        assert state_of(bench.store.memory) == state_of(whole.store)

    run(test, a_bench())


def test_a_record_that_does_not_follow_the_last_one_is_never_folded() -> None:
    async def test(bench: Bench) -> None:
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(bench.is_caught_up)
        gone = bench.log.records[PARTITION]
        bench.log.records[PARTITION] = [*gone, Record(5, NOW_MS, encode(["batch", []]))]  # record 3 is skipped
        await eventually(lambda: bench.journal.count("read header") > 1)

        partition.stopping = True
        await running
        assert bench.position == 3

    run(test, a_bench())


@pytest.mark.parametrize(
    ("offsets", "records_max", "consecutive"),
    [((0, 2), 1, 1), ((0, 2), 500, 0), ((0, 0), 500, 0), ((0, 1, 3), 500, 0)],
    ids=["a gap between two polls", "a gap in one poll", "a repeat", "a gap behind two"],
)
def test_a_batch_that_is_not_consecutive_is_never_folded_before_it_is(
    offsets: tuple[int, ...], records_max: int, consecutive: int
) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(BUSY_MESSAGES):
            bench.ask(AddStock("apple", 1))
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(bench.is_caught_up)  # and busy: it polls twice from now on
        begin = bench.position
        for _ in range(4):
            bench.ask(AddStock("apple", 1))
        whole = bench.log.records[PARTITION]
        bench.log.records[PARTITION] = [*whole[:begin], *(whole[begin + offset] for offset in offsets)]
        bench.records_max = records_max
        with structlog.testing.capture_logs() as logs:
            await eventually(lambda: [entry["event"] for entry in logs].count("rewind") == 1)
            assert bench.position == begin
            await eventually(lambda: [entry["event"] for entry in logs].count("rewind") == 2)
        assert {entry["cause"] for entry in logs if entry["event"] == "rewind"} == {"LogFailed"}
        assert bench.position == begin + consecutive  # not busy after a rewind: what one poll brings is a batch

        bench.log.records[PARTITION] = whole
        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert bench.entity() == encode(Item(5, 10 + BUSY_MESSAGES + 4))

    run(test, a_bench())


# --- what people see


def ends_a_saga(state: State, message: Message, arrival: Arrival) -> Decision:
    decision = STOCK.decide(state, message, arrival)
    ended = Ended("checkout", "c1", "o1", "paid", 8)
    is_end = isinstance(message, SubtractStock)
    return msgspec.structs.replace(decision, messages=(*decision.messages, ended)) if is_end else decision


@pytest.mark.parametrize(("age_ms", "lines"), [(0, 1), (61_000, 0)])
def test_the_end_of_a_saga_is_one_line_and_none_in_a_replay(age_ms: int, lines: int) -> None:
    async def test(bench: Bench) -> None:
        bench.now_s += age_ms / 1000
        bench.ask(SubtractStock("apple", 1))

        with structlog.testing.capture_logs() as logs:
            await bench.catch_up()

        ends = [entry for entry in logs if entry["event"] == "ended"]
        assert [(entry["id"], entry["outcome"], entry["took_ms"]) for entry in ends] == [("c1", "paid", 8)] * lines

    run(test, a_bench(msgspec.structs.replace(STOCK, decide=ends_a_saga)))


def test_a_missing_letter_is_an_error_that_somebody_sees() -> None:
    async def test(bench: Bench) -> None:
        bench.write(2, AskPrice("a2", "apple"))

        with structlog.testing.capture_logs() as logs:
            await bench.catch_up()

        (alarm,) = [entry for entry in logs if entry["log_level"] == "error"]
        assert alarm["gaps"] == 1
        assert bench.publisher.published == []

    run(test, a_bench())


# --- replies of old records


@pytest.mark.parametrize(("age_ms", "told"), [(59_000, 2), (61_000, 0)])
def test_records_older_than_a_minute_are_folded_without_replies(age_ms: int, told: int) -> None:
    async def test(bench: Bench) -> None:
        bench.now_s += age_ms / 1000

        await bench.catch_up()

        assert len(bench.told()) == told
        assert bench.entity() == encode(Item(5, 10))

    run(test, a_bench())


# --- dead letters


def test_a_dead_letter_is_on_record_before_the_fold_goes_on() -> None:
    async def test(bench: Bench) -> None:
        bench.ask(SubtractStock("apple", 1))
        bench.write(1, AskPrice("a1", "apple"))

        await bench.catch_up()

        assert in_order(bench.journal, "bury 3", "publish order-0", "apply")
        assert bench.told()[-1].reason.value == "internal error"

    run(test, a_bench(faulty(STOCK, SubtractStock)))


def test_a_dead_letter_that_cannot_be_put_on_record_stops_the_fold_there() -> None:
    async def test(bench: Bench) -> None:
        bench.fail("put", LogFailed("no broker"))
        bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        assert bench.journal.count("read header") == 2
        assert len(bench.box.letters) == 1
        assert len(bench.told()) == 3

    run(test, a_bench(faulty(STOCK, SubtractStock)))


def test_a_replay_skips_what_is_among_the_dead_letters_also_with_corrected_code() -> None:
    async def test(bench: Bench) -> None:
        bench.ask(SubtractStock("apple", 1))
        await bench.catch_up()
        before = state_of(bench.store.memory)
        bench.store.memory = MemoryStore()

        await bench.catch_up(bench.partition(machine=STOCK))

        assert state_of(bench.store.memory) == before
        assert len(bench.box.letters) == 1

    run(test, a_bench(faulty(STOCK, SubtractStock)))


def test_when_two_owners_bury_the_same_message_the_state_is_what_a_replay_makes_of_it() -> None:
    """I6: a zombie has put the message on record after this owner read the dead letters, so the first of two counts."""

    async def test(bench: Bench) -> None:
        await bench.catch_up()
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: partition.following)
        bench.box.letters.append(DeadLetter(PARTITION, 3, 0, "the zombie's traceback", b""))
        bench.ask(SubtractStock("apple", 1))
        await eventually(bench.is_caught_up)
        partition.stopping = True
        await running
        before = state_of(bench.store.memory)
        bench.store.memory = MemoryStore()

        await bench.catch_up()

        assert state_of(bench.store.memory) == before

    run(test, a_bench(faulty(STOCK, SubtractStock)))


def test_of_the_dead_letters_only_those_are_read_that_are_not_known_yet() -> None:
    async def test(bench: Bench) -> None:
        bench.box.letters.append(DeadLetter("stock-1", 9, 0, "another partition's", b""))
        bench.ask(SubtractStock("apple", 1))
        bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        assert in_order(
            bench.journal,
            "dead letters from 0",
            *("bury 3", "dead letters from 0"),
            *("bury 4", "dead letters from 2"),
        )
        assert ["dead letter 1" in bench.told()[-2].detail, "dead letter 2" in bench.told()[-1].detail] == [True, True]

    run(test, a_bench(faulty(STOCK, SubtractStock)))


# --- halting


def halted(bench: Bench, logs: list[structlog.types.EventDict]) -> bool:
    del bench
    return any(entry["event"] == "halted" for entry in logs)


async def assert_halts(
    bench: Bench, why: str, topology: Topology | None = None, machine: Machine | None = None
) -> None:
    """Assert that the partition says why it cannot go on, only after 10 s, and moves nothing."""
    before = state_of(bench.store.memory)
    began_s = bench.now_s
    partition = bench.partition(topology, machine)
    with structlog.testing.capture_logs() as logs:
        await bench.until(partition, lambda: halted(bench, logs))
    (entry, *_) = [entry for entry in logs if entry["event"] == "halted"]
    assert why in entry["why"]
    assert PARTITION in entry["why"]
    assert bench.now_s - began_s >= 10
    assert state_of(bench.store.memory) == before


def test_a_log_that_is_shorter_than_the_state_halts() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        bench.log.records[PARTITION].pop()

        await assert_halts(bench, "records were lost")

    run(test, a_bench())


def test_a_log_that_begins_after_the_position_halts() -> None:
    async def test(bench: Bench) -> None:
        del bench.log.records[PARTITION][:2]

        await assert_halts(bench, "records are missing")

    run(test, a_bench())


def test_another_record_in_the_place_of_the_last_one_halts() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        last = bench.log.records[PARTITION].pop()
        bench.log.records[PARTITION].append(msgspec.structs.replace(last, value=encode(["batch", []])))

        await assert_halts(bench, "the log was replaced")

    run(test, a_bench())


def test_the_same_record_at_another_time_halts() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        last = bench.log.records[PARTITION].pop()
        bench.log.records[PARTITION].append(msgspec.structs.replace(last, timestamp_ms=NOW_MS + 1))

        await assert_halts(bench, "the log was replaced")

    run(test, a_bench())


def test_a_last_record_that_cannot_be_read_halts() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        bench.unreadable = {2}

        await assert_halts(bench, "record 2 of stock-0 cannot be read")

    run(test, a_bench())


def test_a_log_with_another_log_id_halts_even_when_its_last_record_looks_the_same() -> None:
    """Architecture, section 4: the log id is compared where record 0 still exists."""

    async def test(bench: Bench) -> None:
        await bench.catch_up()
        bench.log.records[PARTITION][0] = Record(0, NOW_MS, encode(Genesis("another log")))

        await assert_halts(bench, "log")

    run(test, a_bench())


def test_a_log_whose_first_record_cannot_be_read_is_loaded_again() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        bench.unreadable = {0}
        partition = bench.partition()

        with structlog.testing.capture_logs() as logs:
            await bench.until(partition, lambda: any("record 0 of stock-0" in str(log.get("why")) for log in logs))

        assert {log["cause"] for log in logs if log["event"] == "rewind"} == {"LogFailed"}

    run(test, a_bench())


def test_a_log_whose_beginning_was_trimmed_is_followed() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        del bench.log.records[PARTITION][0]
        bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        assert bench.entity() == encode(Item(5, 9))

    run(test, a_bench())


def test_a_log_that_began_without_genesis_is_followed_after_a_reload() -> None:
    async def test(bench: Bench) -> None:
        bench.log.records[PARTITION].clear()
        bench.ask(CreateItem("apple", 5))
        await bench.catch_up()
        bench.ask(AddStock("apple", 1))

        await bench.catch_up()

        assert bench.entity() == encode(Item(5, 1))

    run(test)


def test_another_topology_halts() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()

        await assert_halts(bench, "was made for partition counts", {**ONE_EACH, "order": 2})

    run(test, a_bench())


def with_rules(machine: Machine, version: int) -> Machine:
    return msgspec.structs.replace(machine, rules=version)


def test_code_that_does_not_know_the_rules_in_force_halts_when_it_takes_the_partition_over() -> None:
    async def test(bench: Bench) -> None:
        bench.log.append_value(PARTITION, encode(NewRules(2)))
        await bench.catch_up()

        await assert_halts(bench, "is folded by rules 2, this code knows 1", machine=with_rules(STOCK, 1))

    run(test, a_bench(with_rules(STOCK, 2)))


def test_code_that_meets_rules_that_it_does_not_know_halts_with_everything_before_them_applied() -> None:
    async def test(bench: Bench) -> None:
        bench.log.append_value(PARTITION, encode(NewRules(2)))
        bench.ask(SubtractStock("apple", 1))

        old = bench.partition(machine=with_rules(STOCK, 1))

        with structlog.testing.capture_logs() as logs:
            await bench.until(old, lambda: halted(bench, logs))

        assert [entry["why"] for entry in logs if entry["event"] == "halted"] == [
            "from here on rules 2 hold, this code knows 1"
        ]
        assert (bench.position, bench.entity()) == (3, encode(Item(5, 10)))
        await bench.catch_up()
        assert bench.entity() == encode(Item(5, 9))

    run(test, a_bench(with_rules(STOCK, 2)))


def test_a_stale_leader_that_looks_like_a_short_log_does_not_halt() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        last = bench.log.records[PARTITION].pop()
        partition = bench.partition()
        running = asyncio.ensure_future(partition.run())
        await eventually(lambda: bench.slept_s != [])
        bench.log.records[PARTITION].append(last)
        bench.ask(SubtractStock("apple", 1))

        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running
        assert bench.entity() == encode(Item(5, 9))

    run(test, a_bench())


def test_a_record_that_cannot_be_decoded_halts_after_everything_before_it_is_applied() -> None:
    async def test(bench: Bench) -> None:
        bench.log.append_value(PARTITION, encode(["batch", [["letter", "order-0", 1, ["FromTheFuture"]]]]))
        bench.ask(SubtractStock("apple", 1))
        partition = bench.partition()

        with structlog.testing.capture_logs() as logs:
            await bench.until(partition, lambda: halted(bench, logs))

        assert bench.position == 3
        assert bench.entity() == encode(Item(5, 10))

    run(test, a_bench())


def test_a_halted_partition_goes_on_when_its_log_is_back() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        last = bench.log.records[PARTITION].pop()
        partition = bench.partition()
        with structlog.testing.capture_logs() as logs:
            running = asyncio.ensure_future(partition.run())
            await eventually(lambda: halted(bench, logs))
        bench.log.records[PARTITION].append(last)
        bench.ask(SubtractStock("apple", 1))

        await eventually(bench.is_caught_up)

        partition.stopping = True
        await running

    run(test, a_bench())


# --- snapshots


async def take_snapshot(bench: Bench) -> None:
    """Take one of what is stored."""
    position, fields = bench.store.memory.snapshot(PARTITION)
    await Snapshots(bench.snapshot_log).take(PARTITION, position, fields.pop("header"), fields)


async def go_on_with_snapshots(bench: Bench, count: int) -> None:
    """Have the log go on, with a snapshot after each of the next records."""
    for _ in range(count):
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        await take_snapshot(bench)


def spoil_newest(bench: Bench) -> None:
    bench.snapshot_log.chunk_log[PARTITION][-1] = None


@pytest.mark.parametrize("trimmed", [0, 3])
def test_an_emptied_store_is_restored_from_the_newest_snapshot(trimmed: int) -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 2)
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        before = state_of(bench.store.memory)
        del bench.log.records[PARTITION][:trimmed]
        bench.store.memory = MemoryStore()
        bench.journal.clear()

        await bench.catch_up()

        assert in_order(bench.journal, "restore 5", "poll 5..5", "apply 5..6")
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


@pytest.mark.parametrize(("trimmed", "restores"), [(3, []), (4, ["restore 5"])])
def test_a_state_is_restored_that_is_older_than_its_log(trimmed: int, restores: list[str]) -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        behind = bench.store.memory.snapshot(PARTITION)
        await go_on_with_snapshots(bench, 2)
        before = state_of(bench.store.memory)
        bench.store.memory.roll_back(PARTITION, behind)
        del bench.log.records[PARTITION][:trimmed]
        bench.journal.clear()

        await bench.catch_up()

        assert [what for what in bench.journal if what.startswith("restore")] == restores
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


def test_a_snapshot_that_cannot_be_read_is_passed_over_for_the_one_before() -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 2)
        before = state_of(bench.store.memory)
        spoil_newest(bench)
        bench.store.memory = MemoryStore()
        bench.journal.clear()

        await bench.catch_up()

        assert in_order(bench.journal, "restore 4", "poll 4..4", "apply 4..5")
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


def test_without_a_snapshot_that_can_be_read_the_whole_log_is_folded() -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 1)
        before = state_of(bench.store.memory)
        spoil_newest(bench)
        bench.store.memory = MemoryStore()
        bench.journal.clear()

        await bench.catch_up()

        assert in_order(bench.journal, "poll 0..3", "apply 0..4")
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


def test_an_older_snapshot_never_replaces_a_state() -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 1)
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        bench.ask(AddStock("apple", 1))
        bench.ask(AddStock("apple", 1))
        del bench.log.records[PARTITION][:6]

        await assert_halts(bench, "records are missing")

    run(test, a_bench())


def test_who_is_overtaken_while_restoring_goes_on_from_what_the_other_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 1)
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        now = bench.store.memory
        bench.ask(AddStock("apple", 1))
        bench.store.memory = MemoryStore()
        restore = bench.store.restore

        async def restore_late(*arguments: Any) -> None:
            bench.store.memory = now
            await restore(*arguments)

        monkeypatch.setattr(bench.store, "restore", restore_late)
        bench.journal.clear()
        with structlog.testing.capture_logs() as logs:
            await bench.catch_up()

        assert [entry["cause"] for entry in logs if entry["event"] == "rewind"] == ["Fenced"]
        assert in_order(bench.journal, "poll 5..5", "apply 5..6")
        assert bench.entity() == encode(Item(5, 13))

    run(test, a_bench())


@pytest.mark.parametrize("why", [StoreFailed("down"), LogFailed("no broker")])
def test_a_restore_that_fails_is_begun_anew(why: Exception) -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 1)
        before = state_of(bench.store.memory)
        bench.store.memory = MemoryStore()
        bench.fail("restore", why)

        await bench.catch_up()

        assert bench.journal.count("restore 4") == 1
        assert state_of(bench.store.memory) == before

    run(test, a_bench())


def test_where_record_0_was_deleted_a_snapshot_says_which_log_it_was() -> None:
    async def test(bench: Bench) -> None:
        await go_on_with_snapshots(bench, 1)
        del bench.log.records[PARTITION][:2]
        stored = bench.store.memory.hashes[PARTITION]
        header = Codec(STOCK).header(stored["header"])
        header.log_id = "another log"
        stored["header"] = encode(header)

        await assert_halts(bench, "is 'the log of stock-0', its state was made from 'another log'")

    run(test, a_bench())


# --- all partitions of a process


def test_a_process_is_ready_when_it_follows_every_partition_that_it_owns() -> None:
    async def test(bench: Bench) -> None:
        whole = Processor(STOCK, {**ONE_EACH, "stock": 2}, bench.world())
        whole.assign({"stock-0", "stock-1"})
        assert not whole.is_ready

        await eventually(lambda: whole.is_ready)

        await whole.stop()

    run(test, Bench(topology={**ONE_EACH, "stock": 2}))


def test_what_is_kept_goes_on_undisturbed_and_what_is_lost_ends() -> None:
    async def test(bench: Bench) -> None:
        whole = Processor(STOCK, {**ONE_EACH, "stock": 2}, bench.world())
        whole.assign(set(partitions_of("stock", {"stock": 2})))
        await eventually(lambda: whole.is_ready)
        loads = bench.journal.count("read header")

        whole.assign({"stock-1"})
        await eventually(lambda: bench.open_tails == 1)
        assert bench.journal.count("read header") == loads

        whole.assign({"stock-0", "stock-1"})
        await eventually(lambda: whole.is_ready)
        assert bench.journal.count("read header") == loads + 1
        await whole.stop()

    run(test, Bench(topology={**ONE_EACH, "stock": 2}))


def test_a_store_that_only_fails_for_longer_than_a_failover_is_out_of_reach_until_it_answers() -> None:
    async def test(bench: Bench) -> None:
        down_s = OUT_OF_REACH_S + 5 * RETRY_S
        bench.fail("read", *int(down_s / RETRY_S) * [StoreFailed("nobody answers")])
        whole, began_s = Processor(STOCK, ONE_EACH, bench.world()), bench.now_s
        whole.assign({PARTITION})

        await eventually(lambda: whole.out_of_reach() == [PARTITION])
        assert bench.now_s - began_s > OUT_OF_REACH_S
        await eventually(lambda: whole.is_ready)
        assert whole.out_of_reach() == []

        await whole.stop()

    run(test, a_bench())


def test_a_store_that_never_says_anything_is_out_of_reach() -> None:
    async def test(bench: Bench) -> None:
        whole = Processor(STOCK, ONE_EACH, bench.world())
        whole.assign({PARTITION})
        await eventually(lambda: whole.is_ready)
        read, silence = bench.store.read, asyncio.Event()

        async def read_in_vain(partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
            await silence.wait()
            return await read(partition, fields)

        bench.store.read = read_in_vain  # type: ignore[method-assign]  # of one test alone
        await eventually(lambda: whole.out_of_reach() == [PARTITION])
        silence.set()
        await eventually(lambda: whole.out_of_reach() == [])

        await whole.stop()

    run(test, a_bench())


def test_a_store_that_fails_now_and_then_is_in_reach() -> None:
    async def test(bench: Bench) -> None:
        read, calls = bench.store.read, itertools.count()

        async def fail_every_other_time(partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
            if next(calls) % 2:
                raise StoreFailed("once")
            return await read(partition, fields)

        bench.store.read = fail_every_other_time  # type: ignore[method-assign]  # of one test alone
        whole, until_s = Processor(STOCK, ONE_EACH, bench.world()), bench.now_s + 3 * OUT_OF_REACH_S
        whole.assign({PARTITION})
        while bench.now_s < until_s:
            await asyncio.sleep(0)
            assert whole.out_of_reach() == []

        await whole.stop()

    run(test, a_bench())


def test_who_stops_owns_nothing_more_and_is_not_ready() -> None:
    async def test(bench: Bench) -> None:
        whole = Processor(STOCK, ONE_EACH, bench.world())
        whole.assign({PARTITION})
        await eventually(lambda: whole.is_ready)

        await whole.stop()
        whole.assign({PARTITION})

        assert not whole.is_ready
        assert bench.open_tails == 0

    run(test, a_bench())


def test_who_stops_ends_every_partition_after_its_step() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.holds = True
        bench.write(1, AskPrice("a1", "apple"))
        whole = Processor(STOCK, ONE_EACH, bench.world())
        whole.assign({PARTITION})
        await eventually(lambda: bench.publisher.held != [])

        stopping = asyncio.ensure_future(whole.stop())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        bench.publisher.acknowledge()
        await stopping

        assert bench.is_caught_up()

    run(test, a_bench())


def test_the_results_of_a_processor_are_what_the_fold_made() -> None:
    async def test(bench: Bench) -> None:
        asker = bench.ask(SubtractStock("apple", 1))

        await bench.catch_up()

        stored = bench.store.memory.hashes[PARTITION][result_key(asker.request_id)]
        assert stored == encode(Result(asker.fingerprint, Done("9")))

    run(test, a_bench())
