"""The whole system in memory: a log, a store, and owners that fold, publish and apply at once.

Nothing here runs by itself, waits or looks at a clock, so every run is the same run.  What happens between two calls is
up to the test: that is where a simulation puts its crashes, zombies and rollbacks.

    world = World()
    world.ask("stock", "apple", CreateItem("apple", 5))
    world.run()
    assert world.entity(Item, "stock", "apple") == Item(price=5)
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TypeVar

import msgspec
from builders import NOW_MS, TWO_EACH

from common.decision import Entity, Machine
from common.fold import Codec, DeadLetter, DeadLetters, Fold, Folded, Memory, Missing, Record, Rules
from common.messages import (
    Asker,
    Genesis,
    Letter,
    Message,
    Outcome,
    Request,
    Told,
    Topology,
    encode,
    encode_batch,
    partition_of,
    partitions_of,
)
from common.store import Fenced
from order.domain import MACHINE as ORDER
from payment.domain import MACHINE as PAYMENT
from stock.domain import MACHINE as STOCK

MACHINES = (ORDER, STOCK, PAYMENT)
WEB = "web-1"
E = TypeVar("E", bound=Entity)

Envelope = Request[Message] | Letter[Message]


class MemoryLog:
    """Kafka: the records of each partition.  `now_ms` is the broker's clock, which stamps them."""

    def __init__(self, topology: Topology = TWO_EACH) -> None:
        self.now_ms = NOW_MS
        self.records: dict[str, list[Record]] = {}
        for service in topology:
            for partition in partitions_of(service, topology):
                self.records[partition] = []
                self.append_value(partition, encode(Genesis(f"the log of {partition}")))

    def append(self, partition: str, messages: Iterable[Envelope | bytes]) -> int:
        """Append one record; return its offset."""
        encoded = [message if isinstance(message, bytes) else encode(message) for message in messages]
        return self.append_value(partition, encode_batch([msgspec.Raw(message) for message in encoded]))

    def append_value(self, partition: str, value: bytes) -> int:
        offset = self.end(partition)
        self.records[partition].append(Record(offset, self.now_ms, value))
        return offset

    def first(self, partition: str) -> int:
        records = self.records[partition]
        return records[0].offset if records else 0

    def end(self, partition: str) -> int:
        records = self.records[partition]
        return records[-1].offset + 1 if records else 0

    def after(self, partition: str, position: int, records_max: int = 500) -> list[Record]:
        """Return what a poll returns at `position`."""
        return [record for record in self.records[partition] if record.offset >= position][:records_max]


class MemoryStore:
    """Redis: a hash and a position for each partition, and the reply lists.  `apply` is fenced as apply.lua is."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.positions: dict[str, int] = {}
        self.replies: dict[str, list[Told]] = {}

    def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        stored = self.hashes.get(partition, {})
        return self.positions.get(partition, 0), [stored.get(field) for field in fields]

    def apply(self, partition: str, folded: Folded, *, with_replies: bool = True) -> None:
        position = self.positions.get(partition, 0)
        if position == folded.start:
            self._write(partition, folded, with_replies=with_replies)
        elif position != folded.end:
            raise Fenced(partition, folded.start, position)

    def restore(self, partition: str, expected: int, position: int, fields: dict[str, bytes]) -> None:
        stored = self.positions.get(partition, 0)
        if stored not in (expected, position):
            raise Fenced(partition, expected, stored)
        self.positions[partition], self.hashes[partition] = position, fields

    def _write(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        stored = self.hashes.setdefault(partition, {})
        for field, value in folded.changes.items():
            if value is None:
                stored.pop(field, None)
            else:
                stored[field] = value
        self.positions[partition] = folded.end
        if with_replies:
            for web_id, replies in folded.replies.items():
                self.replies.setdefault(web_id, []).extend(replies)

    def snapshot(self, partition: str) -> tuple[int, dict[str, bytes]]:
        """Return what a replica knows now, for `roll_back`."""
        return self.positions.get(partition, 0), dict(self.hashes.get(partition, {}))

    def roll_back(self, partition: str, snapshot: tuple[int, dict[str, bytes]]) -> None:
        """Forget every write since `snapshot`, as a failover does."""
        self.positions[partition], self.hashes[partition] = snapshot[0], dict(snapshot[1])


class MemorySnapshotLog:
    """Where snapshots are kept; `trimmed` has what was last to be deleted of each partition."""

    def __init__(self) -> None:
        self.chunk_log: dict[str, list[Record | None]] = {}
        self.manifest_log: dict[str, list[Record]] = {}
        self.trimmed: dict[str, tuple[int, int, int]] = {}

    async def put_chunk(self, partition: str, chunk: bytes) -> int:
        chunks = self.chunk_log.setdefault(partition, [])
        chunks.append(Record(len(chunks), NOW_MS, chunk))
        return len(chunks) - 1

    async def put_manifest(self, partition: str, manifest: bytes) -> None:
        manifests = self.manifest_log.setdefault(partition, [])
        manifests.append(Record(len(manifests), NOW_MS, manifest))

    async def manifests(self, partition: str) -> list[Record]:
        return self.manifest_log.get(partition, [])

    async def chunks(self, partition: str, offsets: list[int]) -> AsyncGenerator[Record | None, None]:
        for offset in offsets:
            yield self.chunk_log[partition][offset]

    async def trim(self, partition: str, position: int, chunk: int, manifest: int) -> None:
        self.trimmed[partition] = (position, chunk, manifest)


class Owner:
    """One partition's owner, a processor without tasks and time.  Each of its methods is a point to crash at."""

    def __init__(self, partition: str, machine: Machine, world: World) -> None:
        self.partition = partition
        self._machine = machine
        self._world = world
        self._codec = Codec(machine)
        self.load()

    def load(self) -> None:
        """Drop the memory, go back to the position that the store has."""
        self.position, (header,) = self._world.store.read(self.partition, ["header"])
        self.header = self._codec.header(header)
        self.memory = Memory()
        letters = self._world.dead_letters.setdefault(self.partition, {})
        self._rules = Rules(self._machine, self._codec, self.partition, self._world.topology, letters)

    def fold(self, records_max: int = 500) -> Folded | None:
        """Fold what the log has from the position on; None when there is nothing."""
        records = self._world.log.after(self.partition, self.position, records_max)
        if not records:
            return None
        fold = Fold(self._rules, self.memory, self.header, records)
        for effect in fold.run():
            match effect:
                case Missing():
                    self._read(effect.keys)
                case DeadLetter():
                    self._world.bury(effect)
        self.position = fold.folded.end
        return fold.folded

    def publish(self, folded: Folded) -> None:
        """Append the letters to their targets' logs."""
        for target, letters in folded.letters.items():
            for start in range(0, len(letters), self._world.letters_max):
                self._world.log.append(target, letters[start : start + self._world.letters_max])

    def apply(self, folded: Folded) -> None:
        """Move the store."""
        self._world.store.apply(self.partition, folded)

    def step(self, records_max: int = 500) -> Folded | None:
        """Fold, publish, apply."""
        folded = self.fold(records_max)
        if folded is not None:
            self.publish(folded)
            self.apply(folded)
        return folded

    def _read(self, keys: list[str]) -> None:
        _, values = self._world.store.read(self.partition, keys)
        for key, value in zip(keys, values, strict=True):
            self.memory.remember(key, self._codec.entity(value))


class World:
    """All partitions of all services.  `records_max` and `letters_max` set the batch boundaries."""

    def __init__(
        self,
        topology: Topology = TWO_EACH,
        machines: Iterable[Machine] = MACHINES,
        records_max: int = 500,
        letters_max: int = 500,
    ) -> None:
        self.topology = topology
        self.records_max = records_max
        self.letters_max = letters_max
        self.log = MemoryLog(topology)
        self.store = MemoryStore()
        self.dead_letters: dict[str, DeadLetters] = {}
        self.buried: list[DeadLetter] = []
        self.folded: list[Folded] = []
        self.machines = {machine.service: machine for machine in machines}
        self.owners = {
            partition: Owner(partition, machine, self)
            for machine in self.machines.values()
            for partition in partitions_of(machine.service, topology)
        }

    def ask(self, service: str, entity_id: str, command: Message, key: str = "", **asker: object) -> Asker:
        """Put a client's command into the log.  Without a `key` no other command is a repeat of it."""
        partition = partition_of(service, entity_id, self.topology)
        request_id = f"{entity_id}/{key or f'attempt/{partition}-{self.log.end(partition)}'}"
        described = {"fingerprint": zlib.crc32(repr(command).encode()), "reply_to": WEB, **asker}
        asker_ = Asker(request_id, **described)
        self.log.append(partition, [Request(asker_, self.log.now_ms, command)])
        return asker_

    def run(self) -> None:
        """Let every owner take its steps until nobody has anything to do."""
        busy = True
        while busy:
            busy = False
            for owner in self.owners.values():
                folded = owner.step(self.records_max)
                if folded is not None:
                    busy = True
                    self.folded.append(folded)

    def carry_out(self, service: str, entity_id: str, command: Message, key: str = "") -> Outcome:
        """Ask, run, and return what the client is told."""
        asker = self.ask(service, entity_id, command, key)
        self.run()
        return self.told(asker)[-1]

    def told(self, asker: Asker) -> list[Outcome]:
        """Return everything that a request has been told."""
        replies = self.store.replies.get(asker.reply_to, [])
        return [told.outcome for told in replies if told.request_id == asker.request_id]

    def entity(self, kind: type[E], service: str, entity_id: str) -> E | None:
        """Return an entity as the store has it."""
        partition = partition_of(service, entity_id, self.topology)
        _, (value,) = self.store.read(partition, [f"{kind.__name__}:{entity_id}"])
        entity = Codec(self.machines[service]).entity(value)
        assert entity is None or isinstance(entity, kind)
        return entity

    def open(self, kind: type[Entity]) -> int:
        """Return how many entities of a kind there are, as the partitions count them."""
        return sum(owner.header.counts.get(kind.__name__, 0) for owner in self.owners.values())

    def bury(self, letter: DeadLetter) -> int:
        """Put a dead letter on record; return its number."""
        number = len(self.buried)
        self.buried.append(letter)
        self.dead_letters[letter.partition][letter.offset, letter.index] = number
        return number


def state_of(store: MemoryStore) -> Mapping[str, tuple[int, dict[str, bytes]]]:
    """Return everything that the store has, byte for byte, to compare."""
    return {partition: store.snapshot(partition) for partition in sorted(store.positions)}


def entities_of(store: MemoryStore) -> Mapping[str, dict[str, bytes]]:
    """Return all entities, byte for byte, to compare: not the positions, which every record moves."""
    return {
        partition: {key: value for key, value in stored.items() if key != "header"}
        for partition, stored in store.hashes.items()
    }
