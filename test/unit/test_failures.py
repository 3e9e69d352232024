"""Clients that only fail are replaced: soon enough, not because of a failover, and to nobody else's harm."""

from __future__ import annotations

import asyncio

import pytest

from common import store
from common.config import Settings
from common.failures import Failures
from common.store import FAILURES_MAX, REPLACE_S, Store, StoreFailed

SETTINGS = Settings(kafka="127.0.0.1:1", redis="127.0.0.1:1")
FAILOVER_S = 4.0


class Clock:
    """A clock that stands still until it is put forward."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# --- counting --------------------------------------------------------------------------------------------------------


def test_many_failures_are_enough_once_they_have_lasted() -> None:
    clock = Clock()
    failures = Failures(3, 8.0, clock)

    assert [failures.add("stock-0") for _ in range(5)] == [False] * 5
    clock.now_s += 8.0
    assert failures.add("stock-0")


def test_failures_that_have_lasted_are_enough_once_they_are_many() -> None:
    clock = Clock()
    failures = Failures(3, 8.0, clock)

    assert not failures.add("stock-0")
    clock.now_s += 100.0
    assert [failures.add("stock-0") for _ in range(3)] == [False, True, True]


def test_a_success_ends_the_row_of_its_own_place_only() -> None:
    failures = Failures(3, 0.0)
    for place in ("stock-0", "stock-1"):
        failures.add(place)
        failures.add(place)

    failures.end("stock-0")

    assert not failures.add("stock-0")
    assert failures.add("stock-1")


def test_nothing_is_counted_against_the_next_client() -> None:
    clock = Clock()
    failures = Failures(2, 8.0, clock)
    failures.add("stock-0")
    clock.now_s += 8.0

    failures.clear()

    assert [failures.add("stock-0") for _ in range(3)] == [False] * 3


# --- the store's client ----------------------------------------------------------------------------------------------


class FakeRedis:
    """A cluster as redis-py has it: partitions that hang, and calls that are under way."""

    def __init__(self, hanging: set[str]) -> None:
        self._hanging = hanging
        self.answered = asyncio.Event()
        self.answered.set()
        self.closed: list[str] = []
        self.nodes_manager = FakeNodes(self.closed)

    async def execute_command(self, _command: str, key: str, *_fields: str) -> list[bytes]:
        if key.strip("{}") in self._hanging:
            raise TimeoutError
        await self.answered.wait()
        if self.closed:
            raise ConnectionError("closed under a call")
        return [b"7"]

    async def aclose(self) -> None:
        """Do nothing, as redis-py does where the last call has failed."""


class FakeNodes:
    """What has the connections."""

    def __init__(self, closed: list[str]) -> None:
        self._closed = closed

    async def aclose(self, nodes: str) -> None:
        self._closed.append(nodes)


class Made:
    """The clients that were made."""

    def __init__(self) -> None:
        self.clients: list[FakeRedis] = []
        self.hanging = {"stock-0"}
        self.clock = Clock()

    def connect(self, _settings: Settings, _timeout_s: float) -> FakeRedis:
        self.clients.append(FakeRedis(self.hanging))
        return self.clients[-1]

    def failures(self, count: int, seconds: float) -> Failures:
        return Failures(count, seconds, self.clock)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(store, "_connect", made.connect)
    monkeypatch.setattr(store, "Failures", made.failures)
    return made


async def fails(tested: Store) -> None:
    with pytest.raises(StoreFailed, match="read stock-0: TimeoutError"):
        await tested.read("stock-0", [])


async def fail_for(tested: Store, made: Made, seconds: float) -> None:
    """Let many calls for the partition fail, over so long."""
    for _ in range(4 * FAILURES_MAX):
        await fails(tested)
        assert await tested.read("stock-1", []) == (7, [])
        made.clock.now_s += seconds / (4 * FAILURES_MAX)


async def test_a_client_that_fails_at_one_partition_only_is_replaced_as_well(made: Made) -> None:
    tested = Store(SETTINGS)

    await fail_for(tested, made, REPLACE_S + 1)
    made.hanging.clear()

    assert await tested.read("stock-0", []) == (7, [])
    assert len(made.clients) == 2


async def test_a_failover_replaces_no_client_of_the_store(made: Made) -> None:
    tested = Store(SETTINGS)

    await fail_for(tested, made, FAILOVER_S)
    made.hanging.clear()
    await tested.read("stock-0", [])
    made.hanging.add("stock-0")
    await fail_for(tested, made, FAILOVER_S)

    assert len(made.clients) == 1


async def test_an_outage_replaces_a_client_no_oftener_than_every_8_s(made: Made) -> None:
    tested = Store(SETTINGS)

    for _ in range(10):
        await fail_for(tested, made, REPLACE_S)

    assert 5 < len(made.clients) <= 11


async def test_calls_under_way_end_in_the_client_that_is_replaced_and_then_it_is_closed(made: Made) -> None:
    tested = Store(SETTINGS)
    (first,) = made.clients
    first.answered.clear()
    reads = [asyncio.ensure_future(tested.read(name, [])) for name in ("stock-1", "stock-2")]
    await asyncio.sleep(0)

    for _ in range(FAILURES_MAX):
        await fails(tested)
        made.clock.now_s += REPLACE_S
    await asyncio.sleep(0)

    assert len(made.clients) == 2
    assert first.closed == []
    first.answered.set()
    assert await asyncio.gather(*reads) == [(7, []), (7, [])]
    await asyncio.sleep(0.01)
    assert sorted(first.closed) == ["nodes_cache", "startup_nodes"]
    assert made.clients[1].closed == []
