"""The simulated log.  The contract tests hold it, and the real one, to the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from simulation.process import EPOCH_S, Lost, Process, Wire
from simulation.waiting import Waiting

from common.fold import DeadLetter, DeadLetters, Record
from common.log import MANIFESTS, SNAPSHOTS, LogFailed
from common.messages import Genesis, Topology, encode, partitions_of
from common.snapshot import Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What a snapshotter could see of a partition's snapshots, when it asked for them."""

    manifests: int
    first_chunk: int
    at_s: float


@dataclass(frozen=True)
class Trim:
    """What is to be deleted, below `position`, and what that is founded on."""

    partition: str
    position: int
    seen: Seen


CLOCKS_DIFFER_MS = 40
REQUEST_BYTES_MAX = 1 << 20
"""What aiokafka's producer takes at most."""
READ_WAIT_S = 3.0
SPOILT = b"another record, where a chunk was"


class SimulatedLog:
    """Brokers: the records of each partition, stamped by clocks that do not agree.

    `records` has the deleted ones too, for whoever judges; who reads gets none below `first`.
    """

    def __init__(self, topology: Topology, random: Random) -> None:
        self._random = random
        self.records: dict[str, list[Record]] = {}
        self.first: dict[str, int] = {}
        self.trims: list[Trim] = []
        self.is_down: set[str] = set()
        self.epoch: dict[str, int] = {}
        self._waiting = Waiting()
        for service in topology:
            for partition in (*partitions_of(service, topology), f"{service}-dead-letters"):
                self.records[partition] = []
            for partition in partitions_of(service, topology):
                self.records[beside(partition, SNAPSHOTS)] = []
                self.records[beside(partition, MANIFESTS)] = []
                self.append(partition, encode(Genesis(f"{partition}-{random.getrandbits(32):08x}")))

    def append(self, partition: str, value: bytes) -> int:
        """Append a record, stamp it, wake who waits for it; return its offset."""
        if partition in self.is_down:
            raise Lost
        records = self.records[partition]
        error_ms = self._random.randint(-CLOCKS_DIFFER_MS, CLOCKS_DIFFER_MS)
        now_ms = int((EPOCH_S + asyncio.get_running_loop().time()) * 1000)
        records.append(Record(len(records), now_ms + error_ms, value))
        self._waiting.wake(partition)
        return len(records) - 1

    def end(self, partition: str) -> int:
        """Return the offset of the next record to come."""
        return self.bounds(partition)[1]

    def bounds(self, partition: str) -> tuple[int, int]:
        """Return the offsets of the first record and of the next one to come."""
        if partition in self.is_down:
            raise Lost
        return self.first.get(partition, 0), len(self.records[partition])

    def after(self, partition: str, position: int, records_max: int) -> list[Record]:
        """Return the records from `position` on; outside the bounds there is no position to read from."""
        first, end = self.bounds(partition)
        if not first <= position <= end:
            raise Lost
        return self.records[partition][position : position + records_max]

    def offered(self, partition: str) -> list[Record]:
        """Return the records that are not deleted."""
        return self.records[partition][self.first.get(partition, 0) :]

    def trim(self, partition: str, below: int) -> None:
        """Delete the records below an offset, unless they are deleted already."""
        first, end = self.bounds(partition)
        if below > end:
            raise Lost
        self.first[partition] = max(first, below)

    def lose(self, partition: str, count: int) -> None:
        """Lose the last records, acknowledged ones too, as Kafka never should.  No connection breaks by it."""
        del self.records[partition][-count:]

    async def wait(self, partition: str, position: int, wait_s: float) -> None:
        """Return when there is a record at `position`, or after `wait_s`."""
        if len(self.records[partition]) <= position and wait_s > 0.0:
            await self._waiting.wait(partition, wait_s)


def beside(partition: str, kind: str) -> str:
    """Return what has a partition's chunks or manifests."""
    service, _, number = partition.rpartition("-")
    return f"{service}-{kind}-{number}"


def manifests_in(records: Iterable[Record]) -> list[Manifest]:
    """Return the manifests, the newest first."""
    manifests = [msgspec.msgpack.decode(record.value, type=Manifest) for record in records]
    return sorted(manifests, key=lambda manifest: manifest.position, reverse=True)


def dead_letters_in(records: Iterable[Record], partition: str) -> DeadLetters:
    """Return a partition's dead letters.  Of two for one message the first counts."""
    letters: DeadLetters = {}
    for record in records:
        letter = msgspec.msgpack.decode(record.value, type=DeadLetter)
        if letter.partition == partition:
            letters.setdefault((letter.offset, letter.index), record.offset)
    return letters


class SimulatedSender:
    """A process's producer."""

    def __init__(self, log: SimulatedLog, wire: Wire, process: Process) -> None:
        self._log = log
        self._wire = wire
        self._process = process

    async def send(self, place: TopicPartition, value: bytes) -> int:
        """Return the record's offset, or raise LogFailed: then it may be there, or come yet."""
        partition = f"{place.topic.removesuffix('-inbox')}-{place.partition}"
        return await self.append(partition, value)

    async def append(self, partition: str, value: bytes) -> int:
        """Send to a partition by its name."""
        if len(value) > REQUEST_BYTES_MAX:
            raise MessageSizeTooLargeError
        offset = await self.ask("send", partition, lambda: self._log.append(partition, value))
        self._wire.note(f"{self._process.name} appended {partition}/{offset}")
        return offset

    def count(self, what: str) -> None:
        """Count what has come about."""
        self._wire.injected[what] += 1

    async def ask(self, kind: str, partition: str, effect: Callable[[], T]) -> T:
        """Return what a partition's leader answers."""
        try:
            return await self._wire.call(self._process, kind, effect)
        except Lost as why:
            raise LogFailed(f"{kind}: {partition}") from why


class SimulatedTail:
    """A process's connection to one partition: it sees batches of any size."""

    def __init__(self, log: SimulatedLog, wire: Wire, process: Process, partition: str) -> None:
        self._log = log
        self._wire = wire
        self._process = process
        self._partition = partition
        self._position = 0
        self._epoch = -1

    async def open(self) -> None:
        """Connect."""
        await self._ask(lambda: None)
        self._epoch = self._log.epoch.get(self._partition, 0)

    async def close(self) -> None:
        """Disconnect."""

    async def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first record and of the next one to come."""
        return await self._ask(lambda: self._log.bounds(self._partition))

    def seek(self, offset: int) -> None:
        """Go on with the record at `offset`."""
        self._position = offset

    def behind(self, position: int) -> int:
        """Return how many records from `position` on are known to exist."""
        return max(len(self._log.records[self._partition]) - position, 0)

    async def read(self, offset: int) -> Record | None:
        """Return the record at `offset`, None if it does not come in time."""
        await self._process.gate()
        await self._log.wait(self._partition, offset, READ_WAIT_S)
        records = await self._ask(lambda: self._log.after(self._partition, offset, 1))
        self.seek(offset + len(records))
        return records[0] if records else None

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        """Return the next records; wait when there are none yet."""
        await self._process.gate()
        await self._log.wait(self._partition, self._position, wait_s)
        if self._position == len(self._log.records[self._partition]):
            return []
        most = min(records_max, self._wire.random.choice((1, 2, 5, 500)))
        records = await self._ask(lambda: self._log.after(self._partition, self._position, most))
        self._position += len(records)
        return records

    async def _ask(self, effect: Callable[[], T]) -> T:
        if self._epoch not in (-1, self._log.epoch.get(self._partition, 0)):
            raise LogFailed(f"the connection to {self._partition} broke")
        try:
            return await self._wire.call(self._process, "fetch", effect)
        except Lost as why:
            raise LogFailed(f"fetch from {self._partition}") from why


class SimulatedEnds:
    """Asks where partitions end."""

    def __init__(self, log: SimulatedLog, wire: Wire, process: Process) -> None:
        self._log = log
        self._wire = wire
        self._process = process

    async def end(self, partition: str) -> int:
        """Return the offset of the partition's next record to come."""
        try:
            return await self._wire.call(self._process, "end", lambda: self._log.end(partition))
        except Lost as why:
            raise LogFailed(f"end of {partition}") from why


class SimulatedDeadLetterBox:
    """One service's dead letters; a dead letter's number is its offset in a log of its own."""

    def __init__(self, sender: SimulatedSender, log: SimulatedLog, service: str) -> None:
        self._sender = sender
        self._log = log
        self._place = f"{service}-dead-letters"

    async def put(self, letter: DeadLetter) -> int:
        """Return the number of the dead letter, once it is acknowledged."""
        return await self._sender.append(self._place, encode(letter))

    async def of(self, partition: str, since: int = 0) -> DeadLetters:
        """Return a partition's dead letters from number `since` on.  Of two for one message the first counts."""
        records = await self._sender.ask("fetch", self._place, lambda: self._from(since))
        return dead_letters_in(records, partition)

    def _from(self, number: int) -> list[Record]:
        end = self._log.end(self._place)
        return self._log.after(self._place, min(number, end), end)


class SimulatedSnapshotLog:
    """One service's snapshots: chunks and manifests in logs of their own."""

    def __init__(self, sender: SimulatedSender, log: SimulatedLog) -> None:
        self._sender = sender
        self._log = log
        self._seen: dict[str, Seen] = {}

    async def put_chunk(self, partition: str, chunk: bytes) -> int:
        """Return the chunk's offset, once it is acknowledged."""
        return await self._sender.append(beside(partition, SNAPSHOTS), chunk)

    async def put_manifest(self, partition: str, manifest: bytes) -> None:
        """Return once it is acknowledged."""
        await self._sender.append(beside(partition, MANIFESTS), manifest)

    async def manifests(self, partition: str) -> list[Record]:
        """Return the manifests that there are, in the order of their offsets."""
        place = beside(partition, MANIFESTS)
        first, end = await self._sender.ask("fetch", place, lambda: self._log.bounds(place))
        self._seen[partition] = await self._sender.ask("fetch", place, lambda: self._see(partition, end))
        return await self._sender.ask("fetch", place, lambda: self._log.after(place, first, end - first))

    def _see(self, partition: str, manifests: int) -> Seen:
        first_chunk = self._log.first.get(beside(partition, SNAPSHOTS), 0)
        return Seen(manifests, first_chunk, asyncio.get_running_loop().time())

    async def chunks(self, partition: str, offsets: list[int]) -> AsyncGenerator[Record | None, None]:
        """Yield the chunk at each offset; None for one that is not there, deleted or not written."""
        place = beside(partition, SNAPSHOTS)
        first, end = await self._sender.ask("fetch", place, lambda: self._log.bounds(place))
        for offset in offsets:
            yield await self._chunk(place, offset) if first <= offset < end else None

    async def _chunk(self, place: str, offset: int) -> Record:
        (record,) = await self._sender.ask("fetch", place, lambda: self._log.after(place, offset, 1))
        return record

    async def trim(self, partition: str, position: int, chunk: int, manifest: int) -> None:
        """Delete what is below these offsets: records of the inbox, chunks, manifests.  In this order."""
        if partition in self._seen:
            self._log.trims.append(Trim(partition, position, self._seen[partition]))
        await self._delete(partition, position)
        self._sender.count("log trimmed")
        await self._delete(beside(partition, SNAPSHOTS), chunk)
        await self._delete(beside(partition, MANIFESTS), manifest)

    async def _delete(self, place: str, below: int) -> None:
        await self._sender.ask("trim", place, lambda: self._log.trim(place, below))
