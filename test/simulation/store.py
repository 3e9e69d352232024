"""The simulated store: primaries that fail over to a replica which missed the last writes, or come back empty."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar
from zlib import crc32

from simulation.process import Lost, Process, Wire
from simulation.waiting import Waiting

from common.fold import Folded
from common.messages import Told
from common.snapshot import Manifest
from common.store import FILL_LIFE_MS, REPLY_WAIT_S, Fenced, StoreFailed

T = TypeVar("T")
Place = tuple[str, str]
"""A partition and a web process: between them there is a list of replies."""


@dataclass(frozen=True)
class Apply:
    """What an apply did: the partition's position and fields before it, and where it pushed replies."""

    partition: str
    position: int
    before: dict[str, bytes | None]
    pushed: list[Place]


@dataclass(frozen=True)
class Pop:
    """What a web process took."""

    place: Place
    told: list[Told]


@dataclass(frozen=True)
class Fill:
    """What was added to a temporary hash."""

    temporary: str
    fields: dict[str, bytes]


@dataclass(frozen=True)
class Restore:
    """Where a restore put a temporary hash, and what was there before."""

    partition: str
    position: int
    before: dict[str, bytes] | None
    temporary: str


class Incomplete(Exception):
    """The temporary hash has not as many fields as it should have."""


@dataclass
class Temporary:
    """A snapshot that is being restored, until its time is over."""

    fields: dict[str, bytes]
    until_s: float


class Primary:
    """One Redis primary: hashes and reply lists of its partitions.  Writes are fenced as the scripts' are."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.positions: dict[str, int] = {}
        self.replies: dict[Place, list[list[Told]]] = {}
        self.temporaries: dict[str, Temporary] = {}
        self._writes: list[Apply | Pop | Fill | Restore] = []
        self._waiting = Waiting()

    def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return position and fields, as of the same moment."""
        stored = self.hashes.get(partition, {})
        return self.positions.get(partition, 0), [stored.get(field) for field in fields]

    def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> int:
        """Move the partition if it stands at folded.start; return where it stands."""
        position = self.positions.get(partition, 0)
        if position != folded.start:
            return position
        replies = folded.replies if with_replies else {}
        self._write(partition, folded, [(partition, web_id) for web_id in replies])
        for web_id, told in replies.items():
            self._push((partition, web_id), told)
        return folded.end

    def fill(self, temporary: str, fields: dict[str, bytes]) -> None:
        """Add fields to a temporary hash, which vanishes by itself if nobody puts it in its place."""
        now_s = asyncio.get_running_loop().time()
        there = self.temporaries.get(temporary)
        kept = there.fields if there is not None and now_s < there.until_s else {}
        self.temporaries[temporary] = Temporary(kept | fields, now_s + FILL_LIFE_MS / 1000)
        self._writes.append(Fill(temporary, fields))

    def restore(self, partition: str, expected: int, temporary: str, manifest: Manifest) -> int:
        """Put a temporary hash in place of a partition that stands at `expected`; return where it stands."""
        position = self.positions.get(partition, 0)
        if position != expected:
            return position
        there = self.temporaries.get(temporary)
        if there is None or asyncio.get_running_loop().time() >= there.until_s:
            raise Incomplete
        if len(there.fields) != manifest.field_count + 1:
            raise Incomplete
        del self.temporaries[temporary]
        self._writes.append(Restore(partition, position, self.hashes.get(partition), temporary))
        self.hashes[partition], self.positions[partition] = dict(there.fields), manifest.position
        return manifest.position

    def pop(self, place: Place) -> list[Told]:
        """Take what one apply pushed, an empty list when there is nothing."""
        if not self.replies.get(place):
            return []
        told = self.replies[place].pop(0)
        self._writes.append(Pop(place, told))
        return told

    async def wait(self, place: Place, wait_s: float) -> None:
        """Return when something has been pushed, or after `wait_s`."""
        if not self.replies.get(place):
            await self._waiting.wait(place, wait_s)

    def replica(self, missed: int) -> Primary:
        """Return the replica that takes over, without the last writes: what was taken lately comes again."""
        replica = Primary()
        replica.hashes = {partition: dict(stored) for partition, stored in self.hashes.items()}
        replica.positions = dict(self.positions)
        replica.temporaries = copy.deepcopy(self.temporaries)
        replica.replies = {place: list(pushed) for place, pushed in self.replies.items()}
        kept = max(len(self._writes) - missed, 0)
        for write in reversed(self._writes[kept:]):
            replica._undo(write)
        replica._writes = self._writes[:kept]
        return replica

    @property
    def writes(self) -> int:
        """Return how many writes can be missed."""
        return len(self._writes)

    def _write(self, partition: str, folded: Folded, pushed: list[Place]) -> None:
        stored = self.hashes.setdefault(partition, {})
        before = {field: stored.get(field) for field in folded.changes}
        self._writes.append(Apply(partition, self.positions.get(partition, 0), before, pushed))
        _set(stored, folded.changes)
        self.positions[partition] = folded.end

    def _undo(self, write: Apply | Pop | Fill | Restore) -> None:
        match write:
            case Apply():
                _set(self.hashes[write.partition], write.before)
                self.positions[write.partition] = write.position
                for place in write.pushed:
                    self.replies[place].pop()
            case Pop():
                self.replies[write.place].insert(0, write.told)
            case Fill():
                for field in write.fields:
                    self.temporaries[write.temporary].fields.pop(field, None)
            case Restore():
                until_s = asyncio.get_running_loop().time() + FILL_LIFE_MS / 1000
                self.temporaries[write.temporary] = Temporary(self.hashes.pop(write.partition), until_s)
                self.positions[write.partition] = write.position
                if write.before is not None:
                    self.hashes[write.partition] = write.before

    def _push(self, place: Place, told: list[Told]) -> None:
        self.replies.setdefault(place, []).append(told)
        self._waiting.wake(place)


def _set(stored: dict[str, bytes], fields: dict[str, bytes | None]) -> None:
    for field, value in fields.items():
        if value is None:
            stored.pop(field, None)
        else:
            stored[field] = value


class Cluster:
    """All primaries.  A process that has not heard of a failover goes on talking to the old primary."""

    def __init__(self, count: int) -> None:
        self.primaries = [Primary() for _ in range(count)]
        self.down: set[int] = set()
        self.restores = itertools.count()
        self._views: dict[tuple[Process, int], Primary] = {}

    def number_of(self, partition: str) -> int:
        """Return which primary has the partition."""
        return crc32(partition.encode()) % len(self.primaries)

    def current(self, partition: str) -> Primary:
        """Return the primary that counts."""
        return self.primaries[self.number_of(partition)]

    def seen_by(self, process: Process, partition: str) -> Primary:
        """Return the primary that `process` believes in; raise Lost when it is down."""
        number = self.number_of(partition)
        stale = self._views.get((process, number))
        if stale is not None:
            return stale
        if number in self.down:
            raise Lost
        return self.primaries[number]

    def fail_over(self, number: int, missed: int, deceived: list[Process]) -> None:
        """Promote the replica; the deceived still reach the old primary, whose writes nobody will keep."""
        old = self.primaries[number]
        self.primaries[number] = old.replica(missed)
        for process in deceived:
            self._views.setdefault((process, number), old)

    def undeceive(self, process: Process) -> None:
        """Let a process see the primaries that count."""
        for view in [view for view in self._views if view[0] is process]:
            del self._views[view]

    def empty(self, number: int) -> None:
        """Lose everything that a primary had."""
        self.primaries[number] = Primary()


class SimulatedStore:
    """A process's client of the cluster."""

    def __init__(self, cluster: Cluster, wire: Wire, process: Process) -> None:
        self._cluster = cluster
        self._wire = wire
        self._process = process

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return position and fields, as of the same moment."""
        try:
            return await self._wire.call(
                self._process, "read", lambda: self._primary(partition).read(partition, fields)
            )
        except Lost as why:
            raise StoreFailed(f"read {partition}") from why

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        """Move the partition from folded.start to folded.end, or raise Fenced."""

        def effect() -> int:
            return self._primary(partition).apply(partition, folded, with_replies=with_replies)

        stored = await self._write("apply", partition, effect)
        self._wire.note(f"{self._process.name} applied {partition} {folded.start}..{folded.end}, stands at {stored}")
        if stored != folded.end:
            raise Fenced(partition, folded.start, stored)

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        """Put a snapshot in place of a partition that stands at `expected`, or raise Fenced."""
        temporary = f"{partition}:restore:{next(self._cluster.restores)}"
        await self._fill(partition, temporary, {"header": manifest.header})
        async for fields in chunks:
            await self._fill(partition, temporary, fields)

        def effect() -> int:
            return self._primary(partition).restore(partition, expected, temporary, manifest)

        stored = await self._write("restore", partition, effect)
        self._wire.note(f"{self._process.name} restored {partition} to {manifest.position}, stands at {stored}")
        if stored != manifest.position:
            raise Fenced(partition, expected, stored)
        self._wire.injected["restored from a snapshot"] += 1

    async def _fill(self, partition: str, temporary: str, fields: dict[str, bytes]) -> None:
        await self._write("fill", partition, lambda: self._primary(partition).fill(temporary, fields))

    async def _write(self, kind: str, partition: str, effect: Callable[[], T]) -> T:
        try:
            return await self._wire.call(self._process, kind, effect)
        except (Lost, Incomplete) as why:
            raise StoreFailed(f"{kind} {partition}: {why!r}") from why

    async def memory_share(self, partition: str) -> float:
        """Memory is never short here."""
        del partition
        return 0.0

    def _primary(self, partition: str) -> Primary:
        return self._cluster.seen_by(self._process, partition)


class SimulatedReplies:
    """A web process's end of the reply lists."""

    def __init__(self, cluster: Cluster, wire: Wire, process: Process, web_id: str) -> None:
        self._cluster = cluster
        self._wire = wire
        self._process = process
        self._web_id = web_id

    async def take(self, partition: str) -> list[Told]:
        """Return what one apply pushed; wait a while when there is nothing.  What is lost on the way is gone."""
        place = (partition, self._web_id)
        await self._process.gate()
        try:
            await self._cluster.seen_by(self._process, partition).wait(place, REPLY_WAIT_S)
            return await self._wire.call(
                self._process, "reply", lambda: self._cluster.seen_by(self._process, partition).pop(place)
            )
        except Lost as why:
            raise StoreFailed(f"replies of {partition}") from why
