"""Set-up while the log answers badly: every partition begins with a genesis record all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiokafka import TopicPartition

from common import log
from common.config import Settings
from common.log import LogFailed, set_up
from common.messages import Genesis

SETTINGS = Settings(kafka="localhost:1", redis="localhost:1", stock_partitions=2)


class FakeLog:
    """Partitions, and what is to happen to the calls to come: nothing in particular when there is nothing left."""

    def __init__(self) -> None:
        self.records: dict[TopicPartition, list[bytes]] = {}
        self.sends: list[str] = []
        self.looks: list[str] = []
        self.late: list[tuple[TopicPartition, bytes]] = []

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        if self.looks:
            raise LogFailed(self.looks.pop(0))
        return 0, len(self.records.get(place, []))

    async def send(self, place: TopicPartition, value: bytes) -> int:
        fate = self.sends.pop(0) if self.sends else "appended"
        if fate == "late":
            self.late.append((place, value))
        if fate in ("appended", "unknown"):
            self.records.setdefault(place, []).append(value)
        if fate != "appended":
            raise LogFailed(fate)
        return len(self.records[place]) - 1

    async def arrive(self) -> None:
        """Append what is late."""
        for place, value in self.late:
            self.records[place].append(value)

    def geneses(self) -> list[int]:
        """Return how many genesis records each partition has."""
        contents = [
            [msgspec.msgpack.decode(value, type=Genesis) for value in values] for values in self.records.values()
        ]
        return [len(content) for content in contents]


class FakeTail:
    def __init__(self, fake: FakeLog, place: TopicPartition) -> None:
        self._fake, self._place = fake, place

    async def bounds(self) -> tuple[int, int]:
        return await self._fake.bounds(self._place)


class FakeProducer:
    def __init__(self, fake: FakeLog) -> None:
        self.send = fake.send

    async def close(self) -> None:
        pass


class NoAnswer:
    topic_errors: tuple[()] = ()


class FakeAdmin:
    def __init__(self, **_options: object) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def create_topics(self, _topics: object, **_options: object) -> NoAnswer:
        return NoAnswer()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLog:
    fake = FakeLog()

    @asynccontextmanager
    async def a_tail(_settings: Settings, place: TopicPartition) -> AsyncIterator[FakeTail]:
        yield FakeTail(fake, place)

    monkeypatch.setattr(log, "AIOKafkaAdminClient", FakeAdmin)
    monkeypatch.setattr(log, "Producer", lambda _settings: FakeProducer(fake))
    monkeypatch.setattr(log, "a_tail", a_tail)
    monkeypatch.setattr(log, "START_RETRY_S", 0.0)
    return fake


async def test_every_partition_begins_with_one_genesis_record(fake: FakeLog) -> None:
    await set_up(SETTINGS, "stock")
    await set_up(SETTINGS, "stock")

    assert fake.geneses() == [1, 1]


async def test_a_genesis_that_was_lost_is_sent_again(fake: FakeLog) -> None:
    fake.sends = ["lost", "lost"]

    await set_up(SETTINGS, "stock")

    assert fake.geneses() == [1, 1]


async def test_a_genesis_that_was_appended_all_the_same_is_not_sent_again(fake: FakeLog) -> None:
    fake.sends = ["unknown", "unknown"]

    await set_up(SETTINGS, "stock")

    assert fake.geneses() == [1, 1]


async def test_a_genesis_that_comes_late_is_a_second_one(fake: FakeLog) -> None:
    """Harmless: test_fold.py says what the fold makes of it."""
    fake.sends = ["late"]

    await set_up(SETTINGS, "stock")
    await fake.arrive()

    assert fake.geneses() == [2, 1]


async def test_a_log_that_does_not_say_where_it_ends_is_asked_again(fake: FakeLog) -> None:
    fake.looks = ["no leader", "time-out"]

    await set_up(SETTINGS, "stock")

    assert fake.geneses() == [1, 1]
