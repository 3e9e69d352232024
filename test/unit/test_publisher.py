"""The publisher: in order, each until it is acknowledged, whatever the broker does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from aiokafka import TopicPartition

from common import log
from common.log import LogFailed, Publisher
from common.messages import RECORD_BYTES_MAX, encode

Place = tuple[str, int]


class FakeSender:
    """A broker that answers when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[Place, bytes]] = []
        self.unanswered: dict[Place, asyncio.Future[int]] = {}

    async def send(self, place: TopicPartition, value: bytes) -> int:
        key = (place.topic, place.partition)
        assert key not in self.unanswered, f"a second send in flight to {key}"
        self.sent.append((key, value))
        self.unanswered[key] = asyncio.get_running_loop().create_future()
        try:
            return await self.unanswered[key]
        finally:
            del self.unanswered[key]

    async def acknowledge(self, offset: int, place: Place = ("stock-inbox", 0)) -> None:
        self.unanswered[place].set_result(offset)
        await settle()

    async def fail(self, place: Place = ("stock-inbox", 0)) -> None:
        self.unanswered[place].set_exception(LogFailed("the broker is away"))
        await settle()

    def records(self, place: Place = ("stock-inbox", 0)) -> list[list[str]]:
        """Return the messages of each send to a place."""
        return [msgspec.msgpack.decode(value)[1] for to, value in self.sent if to == place]


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def messages(*texts: str) -> list[bytes]:
    return [encode(text) for text in texts]


def run(test: Callable[[FakeSender, Publisher], Awaitable[None]]) -> None:
    """Run a test with a publisher of its own."""

    async def with_publisher() -> None:
        sender = FakeSender()
        publisher = Publisher(sender)
        await test(sender, publisher)
        publisher.close()
        await settle()

    asyncio.run(with_publisher())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BACKOFF_S", 0.0)
    monkeypatch.setattr(log, "LINGER_S", 0.0, raising=False)


def test_the_offset_of_the_record_is_told_once_it_is_acknowledged() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        acknowledged = publisher.publish("stock-0", messages("a", "b"))
        await settle()
        assert sender.records() == [["a", "b"]]
        assert not acknowledged.done()

        await sender.acknowledge(7)

        assert acknowledged.result() == 7

    run(test)


def test_a_partition_is_a_partition_of_its_service_s_inbox() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        publisher.publish("order-3", messages("a"))
        await settle()

        assert [place for place, _ in sender.sent] == [("order-inbox", 3)]

    run(test)


def test_one_send_is_in_flight_per_target_and_what_comes_meanwhile_goes_together() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        first = publisher.publish("stock-0", messages("a"))
        await settle()
        second = publisher.publish("stock-0", messages("b", "c"))
        third = publisher.publish("stock-0", messages("d"))
        await settle()
        assert sender.records() == [["a"]]

        await sender.acknowledge(7)
        assert (first.done(), second.done()) == (True, False)
        assert sender.records() == [["a"], ["b", "c", "d"]]

        await sender.acknowledge(8)
        assert (second.result(), third.result()) == (8, 8)

    run(test)


def test_targets_do_not_wait_for_each_other() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        publisher.publish("stock-0", messages("a"))
        other = publisher.publish("stock-1", messages("b"))
        await settle()

        await sender.acknowledge(3, ("stock-inbox", 1))

        assert other.result() == 3
        assert ("stock-inbox", 0) in sender.unanswered

    run(test)


def test_a_failed_send_is_repeated_with_the_same_bytes_before_anything_later() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        first = publisher.publish("stock-0", messages("a"))
        await settle()
        second = publisher.publish("stock-0", messages("b"))

        for _ in range(3):
            await sender.fail()
        assert sender.records() == [["a"]] * 4
        assert len({value for _, value in sender.sent}) == 1
        await sender.acknowledge(7)
        assert (first.result(), second.done()) == (7, False)
        await sender.acknowledge(8)

        assert sender.records() == [["a"]] * 4 + [["b"]]
        assert second.result() == 8

    run(test)


@pytest.mark.parametrize("late", [7, 6, 0])
def test_an_acknowledged_offset_that_does_not_rise_is_repeated(late: int) -> None:
    """An old producer's append: nobody knows whether ours is in the log."""

    async def test(sender: FakeSender, publisher: Publisher) -> None:
        publisher.publish("stock-0", messages("a"))
        await settle()
        await sender.acknowledge(7)
        second = publisher.publish("stock-0", messages("b"))
        await settle()

        await sender.acknowledge(late)
        assert not second.done()
        assert sender.records() == [["a"], ["b"], ["b"]]

        await sender.acknowledge(8)
        assert second.result() == 8

    run(test)


def test_offsets_rise_per_target() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        publisher.publish("stock-0", messages("a"))
        other = publisher.publish("stock-1", messages("b"))
        await settle()
        await sender.acknowledge(7)

        await sender.acknowledge(1, ("stock-inbox", 1))

        assert other.result() == 1

    run(test)


def test_the_first_record_of_a_log_may_be_record_zero() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        first = publisher.publish("stock-0", messages("a"))
        await settle()

        await sender.acknowledge(0)

        assert first.result() == 0

    run(test)


def test_what_does_not_fit_one_record_goes_into_the_next_in_order() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        third_of_a_record = RECORD_BYTES_MAX // 3
        texts = [letter * third_of_a_record for letter in "abcd"]
        acknowledged = publisher.publish("stock-0", messages(*texts))
        await settle()
        await sender.acknowledge(7)
        assert not acknowledged.done()

        await sender.acknowledge(8)

        assert acknowledged.result() == 8
        assert [[text[0] for text in record] for record in sender.records()] == [["a", "b"], ["c", "d"]]
        assert all(len(value) <= 1_000_000 for _, value in sender.sent)

    run(test)


def test_each_publish_is_told_the_record_that_its_last_message_is_in() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        large = "x" * (RECORD_BYTES_MAX - 5)
        first = publisher.publish("stock-0", messages("a"))
        second = publisher.publish("stock-0", messages(large))
        await settle()
        await sender.acknowledge(7)
        assert not second.done()
        await sender.acknowledge(8)

        assert (first.result(), second.result()) == (7, 8)

    run(test)


def test_a_message_that_is_larger_than_a_record_should_be_goes_alone() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        publisher.publish("stock-0", messages("a", "x" * (RECORD_BYTES_MAX + 1), "b"))
        await settle()
        for offset in (7, 8, 9):
            await sender.acknowledge(offset)

        assert [[text[0] for text in record] for record in sender.records()] == [["a"], ["x"], ["b"]]

    run(test)


def test_who_does_not_wait_any_more_is_no_obstacle() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        given_up = publisher.publish("stock-0", messages("a"))
        await settle()
        given_up.cancel()
        await sender.acknowledge(7)

        later = publisher.publish("stock-0", messages("b"))
        await settle()
        await sender.acknowledge(8)

        assert later.result() == 8

    run(test)


def test_after_a_pause_sending_goes_on() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        for offset, text in enumerate("abc"):
            acknowledged = publisher.publish("stock-0", messages(text))
            await settle()
            await sender.acknowledge(offset)
            assert acknowledged.result() == offset

    run(test)


def test_a_publisher_that_is_closed_does_not_send_any_more() -> None:
    async def test(sender: FakeSender, publisher: Publisher) -> None:
        acknowledged = publisher.publish("stock-0", messages("a"))
        await settle()
        publisher.publish("stock-0", messages("b"))

        publisher.close()
        await settle()

        assert sender.records() == [["a"]]
        assert not acknowledged.done()

    run(test)
