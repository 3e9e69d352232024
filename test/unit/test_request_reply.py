"""A web process's side of the log: nothing that is lost on the way loses an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from builders import NOW_MS, an_asker
from world import STOCK, MemoryStore

from common import watchdog
from common.decision import Entity
from common.fold import OTHER_CALL, Codec, Folded, Result, result_key
from common.log import LogFailed
from common.messages import Asker, Done, Outcome, Reason, Refused, Request, Told, encode
from common.request_reply import CROWDED, LAG_MAX, MEMORY_SHARE_MAX, UNSENT_MAX, WATCH_S, Network, RequestReply
from common.store import StoreFailed
from common.watchdog import REPAIRS_MAX, STILL_ROUNDS_MAX, Stuck, nurse
from stock.domain import AddStock, Item

PARTITION = "stock-0"
COMMAND = AddStock("apple", 1)


class FakePublisher:
    """A log that takes everything; `offset` is where, None while it does not answer."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.offset: int | None = 7
        self.unanswered: list[asyncio.Future[int]] = []

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        self.published += [(partition, message) for message in messages]
        acknowledged: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.offset is None:
            self.unanswered.append(acknowledged)
        else:
            acknowledged.set_result(self.offset)
        return acknowledged


class FakeEnds:
    """Log ends; `answer` is the test's to hold back."""

    def __init__(self) -> None:
        self.end_offset = 0
        self.asked = 0
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def end(self, partition: str) -> int:
        assert partition == PARTITION
        self.asked += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise LogFailed("no leader")
        return self.end_offset


class FakeStore:
    """The real thing's memory, and its moods."""

    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.failures = 0
        self.reads: list[list[str]] = []
        self.share = 0.0

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        self.reads.append(fields)
        if self.failures:
            self.failures -= 1
            raise StoreFailed("no primary")
        return self.memory.read(partition, fields)

    async def memory_share(self, partition: str) -> float:
        assert partition == PARTITION
        return self.share

    def apply(self, end: int, **entities: Entity) -> None:
        """Move the partition to `end` with these entities by key."""
        start = self.memory.positions.get(PARTITION, 0)
        changes: dict[str, bytes | None] = {key: encode(entity) for key, entity in entities.items()}
        self.memory.apply(PARTITION, Folded(start, end, NOW_MS, changes))


class FakeReplies:
    """A reply list."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Told]] = asyncio.Queue()
        self.failures = 0

    async def take(self, partition: str) -> list[Told]:
        assert partition == PARTITION
        if self.failures:
            self.failures -= 1
            raise StoreFailed("no primary")
        return await self.queue.get()


class Bench:
    """A RequestReply between fakes, its loops running, on a clock that sleeping moves."""

    def __init__(self) -> None:
        self.now_s = NOW_MS / 1000
        self.publisher = FakePublisher()
        self.ends = FakeEnds()
        self.store = FakeStore()
        self.replies = FakeReplies()
        network = Network(self.publisher, self.ends, self.store, self.replies, lambda: self.now_s, self.sleep)
        self.requests = RequestReply("web-1", Codec(STOCK), network)
        self.tasks = [
            asyncio.ensure_future(work) for work in (self.requests.take_replies(PARTITION), self.requests.sweep())
        ]

    async def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:  # noqa: ASYNC110 - the test moves the clock, in the same loop
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let everything happen that can, without time."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        for _ in range(round(seconds * 1000)):
            self.now_s += 0.001
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await self.settle()

    def ask(self, asker: Asker | None = None) -> list[Outcome]:
        """Ask; what is told appears in the list."""
        told: list[Outcome] = []
        self.requests.ask(PARTITION, asker or an_asker(), COMMAND, told.append)
        return told

    def read(self, key: str = "Item:apple") -> list[Entity | None]:
        """Read; what is given appears in the list."""
        given: list[Entity | None] = []
        self.requests.read(PARTITION, key, given.append)
        return given

    async def reply(self, outcome: Outcome, asker: Asker | None = None) -> None:
        asker = asker or an_asker()
        self.replies.queue.put_nowait([Told(asker.request_id, asker.fingerprint, outcome)])
        await self.settle()

    def sent(self) -> list[Any]:
        return [msgspec.msgpack.decode(message) for _, message in self.publisher.published]


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def on_bench() -> None:
        bench = Bench()
        await test(bench)
        for task in bench.tasks:
            assert not task.done(), "a loop that should go on for ever has ended"
            task.cancel()
        await bench.settle()

    asyncio.run(on_bench())


# --- requests


def test_a_command_goes_into_the_log_with_its_asker_and_its_time() -> None:
    async def test(bench: Bench) -> None:
        asker = an_asker()
        bench.ask(asker)

        assert bench.publisher.published == [(PARTITION, encode(Request(asker, NOW_MS, COMMAND)))]

    run(test)


def test_a_reply_wakes_the_request_it_is_for() -> None:
    async def test(bench: Bench) -> None:
        told, other = bench.ask(an_asker("a")), bench.ask(an_asker("b"))
        await bench.settle()

        await bench.reply(Done("9"), an_asker("a"))

        assert (told, other) == ([Done("9")], [])

    run(test)


def test_a_reply_that_overtakes_the_acknowledgement_of_its_command_is_good() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.offset = None
        told = bench.ask()
        await bench.reply(Done("9"))
        bench.publisher.unanswered[0].set_result(7)
        await bench.settle()

        assert told == [Done("9")]

    run(test)


def test_a_second_reply_and_one_that_nobody_waits_for_are_nothing() -> None:
    async def test(bench: Bench) -> None:
        told = bench.ask()
        await bench.reply(Done("9"))
        await bench.reply(Done("9"))
        await bench.reply(Done("9"), an_asker("nobody"))

        assert told == [Done("9")]

    run(test)


def test_a_lost_reply_is_found_in_the_state() -> None:
    async def test(bench: Bench) -> None:
        asker = an_asker()
        told = bench.ask(asker)
        bench.store.apply(8, **{result_key(asker.request_id): Result(asker.fingerprint, Done("9"))})
        await bench.settle()
        assert told == []

        await bench.wait(1)

        assert told == [Done("9")]

    run(test)


def test_a_reply_that_is_on_time_costs_no_poll() -> None:
    async def test(bench: Bench) -> None:
        bench.ask()
        await bench.wait(0.1)
        await bench.reply(Done("9"))
        await bench.wait(1)

        assert bench.store.reads == []

    run(test)


def test_a_request_that_is_pending_goes_on_waiting() -> None:
    async def test(bench: Bench) -> None:
        asker = an_asker()
        told = bench.ask(asker)
        bench.store.apply(8, **{result_key(asker.request_id): Result(asker.fingerprint, None)})
        await bench.wait(1)
        assert told == []

        bench.store.apply(9, **{result_key(asker.request_id): Result(asker.fingerprint, Done("9"))})
        await bench.wait(1)

        assert told == [Done("9")]

    run(test)


def test_a_request_that_has_no_result_yet_goes_on_waiting() -> None:
    async def test(bench: Bench) -> None:
        told = bench.ask()

        await bench.wait(1)

        assert told == []
        assert len(bench.store.reads) > 1

    run(test)


def test_overdue_requests_of_one_partition_look_together() -> None:
    async def test(bench: Bench) -> None:
        for number in range(3):
            bench.ask(an_asker(f"r{number}"))
        await bench.wait(0.5)

        assert bench.store.reads[0] == [result_key(f"r{number}") for number in range(3)]

    run(test)


def test_a_command_that_is_not_known_to_be_in_the_log_has_no_result_to_look_for() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.offset = None
        bench.ask()

        await bench.wait(1)

        assert bench.store.reads == []

    run(test)


def test_the_state_of_another_call_with_the_same_key_says_so() -> None:
    async def test(bench: Bench) -> None:
        told = bench.ask(an_asker("a", fingerprint=7))
        bench.store.apply(8, **{result_key("a"): Result(8, Done("9"))})

        await bench.wait(1)

        assert told == [OTHER_CALL]

    run(test)


def test_a_store_that_fails_is_asked_again() -> None:
    async def test(bench: Bench) -> None:
        asker = an_asker()
        told = bench.ask(asker)
        bench.store.apply(8, **{result_key(asker.request_id): Result(asker.fingerprint, Done("9"))})
        bench.store.failures = 3

        await bench.wait(2)

        assert told == [Done("9")]

    run(test)


def test_reply_lists_that_fail_are_taken_again() -> None:
    async def test(bench: Bench) -> None:
        bench.replies.failures = 3
        told = bench.ask()
        await bench.wait(1)

        await bench.reply(Done("9"))

        assert told == [Done("9")]

    run(test)


def test_the_same_request_of_two_callers_is_sent_once_and_both_are_told() -> None:
    async def test(bench: Bench) -> None:
        told, again = bench.ask(), bench.ask()
        await bench.settle()
        assert len(bench.sent()) == 1

        await bench.reply(Done("9"))

        assert (told, again) == ([Done("9")], [Done("9")])

    run(test)


def test_another_call_with_the_same_key_is_sent_as_well_for_the_fold_to_refuse() -> None:
    async def test(bench: Bench) -> None:
        first, other = an_asker("a", fingerprint=7), an_asker("a", fingerprint=8)
        told, told_other = bench.ask(first), bench.ask(other)
        assert len(bench.sent()) == 2

        await bench.reply(OTHER_CALL, other)
        assert (told, told_other) == ([], [OTHER_CALL])
        await bench.reply(Done("9"), first)

        assert (told, told_other) == ([Done("9")], [OTHER_CALL])

    run(test)


def test_a_request_that_was_answered_can_be_asked_again() -> None:
    async def test(bench: Bench) -> None:
        bench.ask()
        await bench.reply(Done("9"))
        again = bench.ask()
        assert len(bench.sent()) == 2

        await bench.reply(Done("9"))

        assert again == [Done("9")]

    run(test)


def test_who_is_forgotten_is_not_told() -> None:
    async def test(bench: Bench) -> None:
        forgotten: list[Outcome] = []
        tell = forgotten.append
        bench.requests.ask(PARTITION, an_asker(), COMMAND, tell)
        still_waiting = bench.ask()

        bench.requests.forget(an_asker(), tell)
        await bench.reply(Done("9"))

        assert (forgotten, still_waiting) == ([], [Done("9")])

    run(test)


def test_a_request_that_everybody_has_forgotten_is_not_looked_for() -> None:
    async def test(bench: Bench) -> None:
        tell: Callable[[Outcome], None] = [].append
        bench.requests.ask(PARTITION, an_asker(), COMMAND, tell)
        bench.requests.forget(an_asker(), tell)

        await bench.wait(1)
        assert bench.store.reads == []

        again = bench.ask()
        assert len(bench.sent()) == 2
        await bench.reply(Done("9"))
        assert again == [Done("9")]

    run(test)


def test_forgetting_what_has_been_answered_is_nothing() -> None:
    async def test(bench: Bench) -> None:
        told: list[Outcome] = []
        tell = told.append
        bench.requests.ask(PARTITION, an_asker(), COMMAND, tell)
        await bench.reply(Refused(Reason.CONFLICT, "no"))

        bench.requests.forget(an_asker(), tell)

        assert told == [Refused(Reason.CONFLICT, "no")]

    run(test)


def test_a_send_that_was_cancelled_is_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.offset = None
        told = bench.ask()
        bench.publisher.unanswered[0].cancel()
        await bench.settle()

        assert told == []

    run(test)


# --- backpressure


def watch(bench: Bench) -> None:
    bench.tasks.append(asyncio.ensure_future(bench.requests.watch(PARTITION)))


def test_a_partition_that_is_replayed_from_the_start_is_not_crowded() -> None:
    async def test(bench: Bench) -> None:
        bench.store.apply(LAG_MAX + 1)
        bench.ends.end_offset = LAG_MAX + 1
        watch(bench)
        await bench.settle()
        bench.store.memory.positions[PARTITION] = 0
        await bench.wait(2 * WATCH_S)

        told = bench.ask()

        await bench.settle()
        assert told == []

    run(test)


def test_new_commands_for_a_partition_that_is_far_behind_are_refused_at_once_and_not_sent() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = LAG_MAX + 1
        watch(bench)
        await bench.settle()

        assert bench.ask() == [CROWDED]
        assert bench.sent() == []
        assert CROWDED.reason == Reason.NOT_NOW  # 503: an earlier attempt may stand in the log

    run(test)


def test_new_commands_for_a_partition_whose_memory_is_nearly_full_are_refused() -> None:
    async def test(bench: Bench) -> None:
        bench.store.share = MEMORY_SHARE_MAX + 0.01
        watch(bench)
        await bench.settle()

        assert bench.ask() == [CROWDED]

    run(test)


def test_up_to_the_limits_commands_are_taken() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = LAG_MAX
        bench.store.share = MEMORY_SHARE_MAX
        watch(bench)
        await bench.settle()

        assert bench.ask() == []
        assert len(bench.sent()) == 1

    run(test)


def test_commands_are_taken_again_when_the_partition_has_caught_up() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = LAG_MAX + 1
        watch(bench)
        await bench.settle()
        bench.store.apply(LAG_MAX + 1)
        await bench.wait(1.1)

        assert bench.ask() == []

    run(test)


def test_who_waits_already_goes_on_waiting_while_the_partition_is_behind() -> None:
    async def test(bench: Bench) -> None:
        told = bench.ask()
        bench.ends.end_offset = LAG_MAX + 1
        watch(bench)
        await bench.settle()
        again = bench.ask()

        await bench.reply(Done("9"))

        assert (told, again) == ([Done("9")], [Done("9")])

    run(test)


def test_a_log_or_a_store_that_cannot_be_watched_changes_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = LAG_MAX + 1
        bench.ends.failures = 1
        watch(bench)
        await bench.settle()
        assert bench.ask(an_asker("a")) == []

        await bench.wait(1.1)

        assert bench.ask(an_asker("b")) == [CROWDED]

    run(test)


def test_while_the_log_takes_nothing_only_so_many_commands_wait_for_it_forgotten_ones_included() -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.offset = None
        for number in range(UNSENT_MAX):
            tell: Callable[[Outcome], None] = [].append
            bench.requests.ask(PARTITION, an_asker(f"r{number}"), COMMAND, tell)
            bench.requests.forget(an_asker(f"r{number}"), tell)
        assert bench.ask(an_asker("one more")) == [CROWDED]
        assert len(bench.publisher.published) == UNSENT_MAX

        bench.publisher.unanswered[0].set_result(7)
        await bench.settle()

        assert bench.ask(an_asker("one more")) == []
        assert len(bench.publisher.published) == UNSENT_MAX + 1

    run(test)


# --- reads


def test_an_entity_is_read_when_the_position_has_reached_the_end_of_the_log() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = 8
        bench.store.apply(7, **{"Item:apple": Item(5, 1)})
        given = bench.read()
        await bench.wait(0.1)
        assert given == []

        bench.store.apply(8, **{"Item:apple": Item(5, 2)})
        await bench.wait(0.1)

        assert given == [Item(5, 2)]

    run(test)


def test_a_position_beyond_the_end_is_as_good() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.end_offset = 8
        bench.store.apply(9, **{"Item:apple": Item(5, 1)})
        given = bench.read()
        await bench.settle()

        assert given == [Item(5, 1)]

    run(test)


def test_an_absent_entity_is_read_as_none() -> None:
    async def test(bench: Bench) -> None:
        given = bench.read()
        await bench.settle()

        assert given == [None]

    run(test)


def test_reads_that_come_during_a_round_share_the_next() -> None:
    async def test(bench: Bench) -> None:
        bench.store.apply(1, **{"Item:apple": Item(5, 1), "Item:pear": Item(7, 2)})
        bench.ends.gate.clear()
        first = bench.read()
        await bench.settle()
        second, third = bench.read("Item:pear"), bench.read()
        await bench.settle()
        assert bench.ends.asked == 1

        bench.ends.gate.set()
        await bench.settle()

        assert (first, second, third) == ([Item(5, 1)], [Item(7, 2)], [Item(5, 1)])
        assert bench.ends.asked == 2
        assert bench.store.reads == [["Item:apple"], ["Item:pear", "Item:apple"]]

    run(test)


def test_a_read_that_was_forgotten_is_not_kept() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.gate.clear()
        first = bench.read()
        await bench.settle()
        forgotten: list[Entity | None] = []
        give = forgotten.append
        bench.requests.read(PARTITION, "Item:apple", give)
        kept = bench.read("Item:pear")

        bench.requests.forget_read(PARTITION, give)
        bench.requests.forget_read("stock-1", give)
        bench.ends.gate.set()
        await bench.settle()

        assert (first, forgotten, kept) == ([None], [], [None])
        assert bench.store.reads == [["Item:apple"], ["Item:pear"]]

    run(test)


def test_a_read_never_uses_a_log_end_that_was_asked_for_before_it_came() -> None:
    async def test(bench: Bench) -> None:
        bench.store.apply(1, **{"Item:apple": Item(5, 1)})
        bench.ends.end_offset = 1
        bench.ends.gate.clear()
        bench.read()
        await bench.settle()
        late = bench.read()
        bench.ends.gate.set()
        bench.ends.end_offset = 2  # what somebody was told before the late read came
        await bench.wait(0.1)
        assert late == []

        bench.store.apply(2, **{"Item:apple": Item(5, 9)})
        await bench.wait(0.1)

        assert late == [Item(5, 9)]

    run(test)


def test_after_a_round_a_new_read_starts_another() -> None:
    async def test(bench: Bench) -> None:
        bench.read()
        await bench.settle()
        again = bench.read()
        await bench.settle()

        assert again == [None]
        assert bench.ends.asked == 2

    run(test)


def test_a_log_and_a_store_that_fail_are_asked_again() -> None:
    async def test(bench: Bench) -> None:
        bench.ends.failures = 2
        bench.store.failures = 2
        given = bench.read()

        await bench.wait(1)

        assert given == [None]

    run(test)


# --- is it alive?


# --- watchdogs


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STILL_ROUNDS_MAX", 5)


def nursed(bench: Bench, *work: Callable[[], Coroutine[Any, Any, None]]) -> list[asyncio.Future[None]]:
    """Let nurses do the work, on the bench's clock, instead of the bench's own loops."""
    for task in bench.tasks:
        task.cancel()
    bench.tasks = []
    return [asyncio.ensure_future(nurse("work", each, bench.sleep)) for each in work]


@pytest.mark.usefixtures("_soon")
def test_a_loop_that_takes_no_replies_although_the_store_answers_ends_the_process() -> None:
    async def test(bench: Bench) -> None:
        bench.replies.failures = 1_000_000
        taking, watching = nursed(
            bench, lambda: bench.requests.take_replies(PARTITION), lambda: bench.requests.watch(PARTITION)
        )

        await bench.wait(30)

        with pytest.raises(Stuck):
            taking.result()
        assert not watching.done()
        watching.cancel()

    run(test)


@pytest.mark.usefixtures("_soon")
def test_a_store_that_answers_nobody_ends_nobody() -> None:
    async def test(bench: Bench) -> None:
        bench.replies.failures = bench.store.failures = 1_000_000
        loops = nursed(bench, lambda: bench.requests.take_replies(PARTITION), lambda: bench.requests.watch(PARTITION))

        await bench.wait(30)

        assert not any(loop.done() for loop in loops)
        for loop in loops:
            loop.cancel()

    run(test)


@pytest.mark.usefixtures("_soon")
def test_a_loop_that_hangs_in_the_store_is_begun_anew_and_takes_replies_again() -> None:
    async def test(bench: Bench) -> None:
        told = bench.ask()
        (taking,) = nursed(bench, lambda: bench.requests.take_replies(PARTITION))
        await bench.wait(8)  # the fake waits for replies without end: for all that a nurse can tell, it hangs

        await bench.reply(Done("1"))

        assert told == [Done("1")]
        taking.cancel()

    run(test)


def test_reads_that_hang_are_begun_anew_and_those_that_come_later_are_answered() -> None:
    async def test(bench: Bench) -> None:
        watch(bench)
        bench.store.apply(5, **{"Item:apple": Item(5, 3)})
        await bench.wait(WATCH_S + 0.1)
        answering, bench.ends.gate = bench.ends.gate, asyncio.Event()
        lost = bench.read()
        await bench.settle()
        bench.ends.gate = answering  # only the call that is under way hangs
        later = bench.read()

        await bench.wait((STILL_ROUNDS_MAX + 2) * WATCH_S)

        assert lost == []
        assert later == [Item(5, 3)]

    run(test)


def test_reads_that_hang_however_often_they_are_begun_anew_end_the_process() -> None:
    async def test(bench: Bench) -> None:
        watching = asyncio.ensure_future(bench.requests.watch(PARTITION))
        await bench.wait(WATCH_S + 0.1)
        answering = bench.ends.gate
        for _ in range(REPAIRS_MAX + 1):
            bench.ends.gate = asyncio.Event()
            bench.read()
            await bench.settle()
            bench.ends.gate = answering
            await bench.wait((STILL_ROUNDS_MAX + 2) * WATCH_S)

        with pytest.raises(Stuck):
            watching.result()

    run(test)


def test_a_partition_was_heard_of_when_both_its_log_and_its_store_have_answered() -> None:
    async def test(bench: Bench) -> None:
        bench.ask()
        await bench.settle()
        assert bench.requests.heard_s(PARTITION) == 0.0

        await bench.reply(Done("9"))
        heard_s = bench.now_s
        assert bench.requests.heard_s(PARTITION) == pytest.approx(heard_s)
        await bench.wait(5)
        await bench.reply(Done("9"))
        assert bench.requests.heard_s(PARTITION) == pytest.approx(heard_s)

        bench.read()
        await bench.settle()
        assert bench.requests.heard_s(PARTITION) == pytest.approx(bench.now_s)
        assert bench.requests.heard_s("stock-7") == 0.0

    run(test)
