"""The snapshotter: folds a service's partitions once more, without outputs, and compares itself with the store.

It takes the owners' own code (common.processor), with a store in its memory, an address for letters where nobody lives,
and a tail that stays behind the real store: it goes from one position that the store had to a later one.  There its
header has to be the store's, byte for byte, and so have some other fields, others each time: I6, audited all day.  Now
and then it takes a snapshot there.  After a crash it begins at the newest snapshot, as an owner does whose store was
emptied.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import structlog

from common import telemetry
from common.decision import Machine
from common.fold import BURIED, Codec, DeadLetter, DeadLetters, Folded, Record
from common.messages import Topology, partitions_of
from common.processor import DeadLetterBox, Halted, Partition, Tail, World
from common.snapshot import Manifest
from common.store import Fenced
from common.watchdog import nurse

LOOK_S = 1.0
"""Having caught up, wait so long before looking where the store is: the longer, the larger and cheaper the batches."""
SEEN_FIELDS = 100
"""Fields of the store that are compared at each look, beside the header: 100,000 in a quarter of an hour."""
PAUSE_S = 60.0
"""At least so long between two snapshots of one partition, also where one could not be finished."""

logger = structlog.get_logger()


class Snapshotter:
    """All partitions of a service, each folded once more in its owner's world, without a word to anybody.

    A snapshot is due `records_min` records after the last one.
    """

    def __init__(self, machine: Machine, topology: Topology, world: World, records_min: int) -> None:
        self._machine = machine
        self._topology = topology
        self._world = world
        self._records_min = records_min
        self._partitions: dict[str, Partition] = {}

    @property
    def is_ready(self) -> bool:
        """Say whether every partition is being followed."""
        names = partitions_of(self._machine.service, self._topology)
        return all(name in self._partitions and self._partitions[name].following for name in names)

    async def run(self) -> None:
        """Follow all partitions until cancelled."""
        names = partitions_of(self._machine.service, self._topology)
        await asyncio.gather(*(nurse(name, partial(self._follow, name), self._world.sleep) for name in names))

    async def _follow(self, name: str) -> None:
        memory = _Memory(name, Codec(self._machine), self._world, self._records_min)
        partition = Partition(name, self._machine, self._topology, _shadow(self._world, memory), is_judged=True)
        self._partitions[name] = partition
        await partition.run()


def _shadow(real: World, memory: _Memory) -> World:
    """Return a world in which nothing is stored but in `memory`, and nothing is sent."""
    return msgspec.structs.replace(
        real,
        tail=lambda partition: _Behind(real.tail(partition), memory),
        publisher=_Nowhere(),
        store=memory,
        dead_letters=memory.letters,
    )


class _Memory:
    """The store of a partition that is folded once more: its fields, and the position up to which to fold."""

    def __init__(self, name: str, codec: Codec, real: World, records_min: int) -> None:
        self.letters = _Letters(name, real.dead_letters)
        self._name = name
        self._codec = codec
        self._real = real
        self._records_min = records_min
        self._position = self._target = 0
        self._fields: dict[str, bytes] = {}
        self._seen: dict[str, bytes | None] = {}
        self._unseen: list[str] = []
        self._snapshot_position = 0
        self._snapshot_s = real.now_s()

    async def read(self, _partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return position and fields."""
        return self._position, [self._fields.get(field) for field in fields]

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        """Begin at a snapshot, if this is still at the position `expected`."""
        if self._position != expected:
            raise Fenced(partition, expected, self._position)
        fields = {"header": manifest.header}
        async for chunk in chunks:
            fields |= chunk
        self._fields = fields
        self._position = self._target = self._snapshot_position = manifest.position

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:  # noqa: ARG002 - to nobody
        """Move; where the store was seen, compare.  What a fold has to tell people, the owner has told them."""
        if folded.start != self._position:
            raise Fenced(partition, folded.start, self._position)
        for field, value in folded.changes.items():
            if value is None:
                self._fields.pop(field, None)
            else:
                self._fields[field] = value
        self._position = folded.end
        folded.ended.clear()
        folded.gaps = 0
        if self._position == self._target:
            await self._arrive()

    async def left(self, offset: int) -> int:
        """Return how many records from `offset` on may be folded now."""
        if offset == self._position >= self._target:
            await self._real.sleep(LOOK_S)
            await self._look()
        return max(self._target - offset, 0)

    async def _look(self) -> None:
        """Note where the store is now, with its header and some other fields: all of them in time.

        Dead letters first: those of all that is to be folded are on record by now.
        """
        names = ["header", *self._next_names()]
        position, values = await self._real.store.read(self._name, names)
        if position == 0 or position < self._position:
            return
        await self.letters.learn(self._codec.header(values[0]).counts.get(BURIED, 0))
        self._target, self._seen = position, dict(zip(names, values, strict=True))
        if position == self._position:
            await self._arrive()

    def _next_names(self) -> list[str]:
        self._unseen = self._unseen or list(self._fields)
        names, self._unseen = self._unseen[:SEEN_FIELDS], self._unseen[SEEN_FIELDS:]
        return names

    async def _arrive(self) -> None:
        """Compare, where the store was seen; keep it, if it is time."""
        self._compare()
        await self._take_if_due()

    def _compare(self) -> None:
        """Raise Halted where the store differs.  Only here a halt ends."""
        if any(self._fields.get(name) != value for name, value in self._seen.items()):
            position, self._position, self._target, self._fields = self._position, 0, 0, {}
            raise Halted(f"{self._name} at {position}: what is stored is not what its log makes: I6 is broken")
        telemetry.COMPARED.labels(self._name).inc()
        telemetry.HALTED.labels(self._name).set(0)

    async def _take_if_due(self) -> None:
        now_s = self._real.now_s()
        is_due = self._position - self._snapshot_position >= self._records_min
        if is_due and now_s - self._snapshot_s >= PAUSE_S:
            self._snapshot_s = now_s  # before: one that fails is as large
            fields = self._fields.copy()
            await self._real.snapshots.take(self._name, self._position, fields.pop("header"), fields)
            self._snapshot_position = self._position
            telemetry.SNAPSHOT_POSITION.labels(self._name).set(self._position)


class _Behind:
    """The log, but never beyond where the store was seen."""

    def __init__(self, tail: Tail, memory: _Memory) -> None:
        self._tail = tail
        self._memory = memory
        self._next = 0
        self.open, self.close = tail.open, tail.close
        self.bounds, self.read, self.behind = tail.bounds, tail.read, tail.behind

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        left = await self._memory.left(self._next)
        if not left:
            return []
        records = await self._tail.poll(wait_s, min(records_max, left))
        self._next += len(records)
        return records

    def seek(self, offset: int) -> None:
        self._tail.seek(offset)
        self._next = offset


class _Letters:
    """The dead letters that the partition's owners have put on record."""

    def __init__(self, name: str, box: DeadLetterBox) -> None:
        self._name = name
        self._box = box
        self._known: DeadLetters = {}

    async def of(self, _partition: str, _since: int = 0) -> DeadLetters:
        """Return those that are known; what is learned later is added to the same dictionary."""
        self._known.update(await self._box.of(self._name))
        return self._known

    async def learn(self, count: int) -> None:
        """Read them again if there are more."""
        if count > len(self._known):
            await self.of(self._name)

    async def put(self, letter: DeadLetter) -> int:
        """Fail: the owner decided this message."""
        raise Halted(f"message {letter.offset}-{letter.index} of {self._name} raises here only: {letter.traceback}")


class _Nowhere:
    """Where letters and replies go that the owner has sent."""

    def publish(self, _partition: str, _messages: list[bytes]) -> asyncio.Future[int]:
        """Return at once."""
        sent: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        sent.set_result(0)
        return sent
