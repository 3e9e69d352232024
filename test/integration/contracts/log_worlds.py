"""The simulated log and the real one, behind one interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from random import Random
from typing import Protocol, Self

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from integration.contracts.relay import Relay, a_relay
from integration.contracts.worlds import SEED, a_wire, contract
from integration.probe import ProbeSettings, a_log, a_producer, a_tail, records_of, until
from simulation.log import (
    SimulatedDeadLetterBox,
    SimulatedEnds,
    SimulatedLog,
    SimulatedSender,
    SimulatedSnapshotLog,
    SimulatedTail,
)
from simulation.process import EPOCH_S, Fate, Process

from common.log import TOPIC_CONFIG, DeadLetterBox, Ends, Producer, Sender, SnapshotTopics, Tail, inbox
from common.processor import DeadLetterBox as Box
from common.processor import Tail as Following
from common.request_reply import Ends as Asking
from common.snapshot import SnapshotLog
from local.system import System

LATE_MAX_S = 60.0
"""So long that a late append of the simulation comes after what is sent at once; virtual time costs nothing."""


class LogWorld(Protocol):
    """A new log of two partitions, whose only records are their geneses."""

    first: str
    second: str

    async def sender(self) -> Sender:
        """Return a producer of its own."""
        ...

    async def tail(self, partition: str) -> Following:
        """Return a connection of its own to a partition."""
        ...

    async def ends(self) -> Asking:
        """Return what asks where partitions end."""
        ...

    async def dead_letters(self) -> Box:
        """Return the service's dead letters."""
        ...

    async def snapshots(self) -> SnapshotLog:
        """Return the service's snapshots."""
        ...

    def slow_sender(self) -> AbstractAsyncContextManager[Sender]:
        """Yield a producer whose requests are still on their way when the block ends, and arrive then."""
        ...

    def deaf_sender(self) -> AbstractAsyncContextManager[Sender]:
        """Yield a producer whose requests arrive, and that gets no answer."""
        ...

    def outage(self) -> AbstractAsyncContextManager[None]:
        """Let nobody reach the log before the block ends."""
        ...

    async def lose_tail(self, count: int, new: list[bytes]) -> None:
        """Lose the last `count` records of the first partition, and append `new` ones before anybody is connected."""

    def now_ms(self) -> float:
        """Return what the brokers' clocks say, nearly."""
        ...


class SimulatedLogWorld:
    """On the double."""

    first, second = "probe-0", "probe-1"

    def __init__(self) -> None:
        self._wire = a_wire()
        self._process = Process("probe")

    async def __aenter__(self) -> Self:
        self._log = SimulatedLog({"probe": 2}, Random(SEED))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Virtual connections need not be closed."""

    async def sender(self) -> Sender:
        return SimulatedSender(self._log, self._wire, self._process)

    async def tail(self, partition: str) -> Following:
        tail = SimulatedTail(self._log, self._wire, self._process, partition)
        await tail.open()
        return tail

    async def ends(self) -> Asking:
        return SimulatedEnds(self._log, self._wire, self._process)

    async def dead_letters(self) -> Box:
        return SimulatedDeadLetterBox(SimulatedSender(self._log, self._wire, self._process), self._log, "probe")

    async def snapshots(self) -> SnapshotLog:
        return SimulatedSnapshotLog(SimulatedSender(self._log, self._wire, self._process), self._log)

    @asynccontextmanager
    async def slow_sender(self) -> AsyncIterator[Sender]:
        wire = a_wire(Fate.LATE)
        wire.late_max_s = LATE_MAX_S
        yield SimulatedSender(self._log, wire, self._process)

    @asynccontextmanager
    async def deaf_sender(self) -> AsyncIterator[Sender]:
        yield SimulatedSender(self._log, a_wire(Fate.UNANSWERED), self._process)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self._log.is_down.update(self._log.records)
        yield
        self._log.is_down.clear()

    async def lose_tail(self, count: int, new: list[bytes]) -> None:
        self._log.lose(self.first, count)
        for value in new:
            self._log.append(self.first, value)

    def now_ms(self) -> float:
        return (EPOCH_S + asyncio.get_running_loop().time()) * 1000


class RealLogWorld:
    """On a broker: topics of its own, behind a relay of its own."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._clients = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._direct = await a_log(self._system, partitions=2)
        self.first, self.second = self._direct.first, self._direct.second
        self._relay = await self._clients.enter_async_context(a_relay(self._direct.kafka))
        self._settings = _through(self._relay, self._direct)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._clients.aclose()

    async def sender(self) -> Producer:
        return await self._clients.enter_async_context(a_producer(self._settings))

    async def tail(self, partition: str) -> Tail:
        return await self._clients.enter_async_context(a_tail(self._settings, partition))

    async def ends(self) -> Asking:
        ends = Ends(self._settings)
        self._clients.push_async_callback(ends.close)
        return ends

    async def dead_letters(self) -> Box:
        return DeadLetterBox(self._settings, self._direct.service, await self.sender())

    async def snapshots(self) -> SnapshotLog:
        return SnapshotTopics(self._settings, await self.sender())

    @asynccontextmanager
    async def slow_sender(self) -> AsyncIterator[Sender]:
        async with self._relayed_sender() as (relay, sender):
            with relay.requests_held():
                yield sender
                end = await self._end()
            await until(lambda: self._has_grown(end), "what was held up is appended")

    @asynccontextmanager
    async def deaf_sender(self) -> AsyncIterator[Sender]:
        async with self._relayed_sender() as (relay, sender):
            with relay.answers_held():
                yield sender

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        with self._relay.cut():
            yield

    async def lose_tail(self, count: int, new: list[bytes]) -> None:
        """Delete the topic, and make it again with what is kept: the broker itself never loses a tail."""
        kept = (await records_of(self._direct, self.first))[:-count]
        with self._relay.cut():
            await self._make_again()
            async with a_producer(self._direct) as producer:
                for value in [*(record.value for record in kept), *new]:
                    await producer.send(inbox(self.first), value)

    def now_ms(self) -> float:
        return time.time() * 1000

    @asynccontextmanager
    async def _relayed_sender(self) -> AsyncIterator[tuple[Relay, Sender]]:
        """Yield a producer that is connected, through a relay of its own."""
        async with a_relay(self._direct.kafka) as relay, a_producer(_through(relay, self._direct)) as producer:
            await producer.send(inbox(self.second), b"")
            yield relay, producer

    async def _has_grown(self, end: int) -> bool:
        return await self._end() > end

    async def _end(self) -> int:
        async with a_tail(self._direct, self.first) as tail:
            return (await tail.bounds())[1]

    async def _make_again(self) -> None:
        topic = inbox(self.first).topic
        admin = AIOKafkaAdminClient(bootstrap_servers=self._direct.kafka)
        await admin.start()
        try:
            await admin.delete_topics([topic])
            await until(lambda: _is_gone(admin, topic), f"{topic} is deleted")
            await admin.create_topics([NewTopic(topic, self._direct.partitions, 1, topic_configs=TOPIC_CONFIG)])
        finally:
            await admin.close()


async def _is_gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


def _through(relay: Relay, settings: ProbeSettings) -> ProbeSettings:
    return msgspec.structs.replace(settings, kafka=relay.address)


log_contract = contract(SimulatedLogWorld, RealLogWorld)
