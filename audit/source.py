"""Evidence from a running system: the stores first, then the dead letters, then the logs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterable, Mapping
from typing import TypeVar

import msgspec

from audit.evidence import Evidence, PartitionEvidence
from common.config import Settings
from common.fold import DeadLetters, Header, Record
from common.log import DeadLetterBox, Ends, LogFailed, Producer, SnapshotTopics, Tail, a_tail, check_topology, inbox
from common.messages import partitions_of
from common.snapshot import Manifest, Snapshots, Unreadable
from common.store import Store

DUMP_TIMEOUT_S = 60.0
POLL_S = 0.2
RECORDS_MAX = 2_000
SILENCE_MAX_S = 10.0
OPEN_KINDS = ("Checkout", "Addition", "BatchInit")

_header = msgspec.msgpack.Decoder(Header)
NOBODYS: Mapping[str, str] = {}
T = TypeVar("T")
_Log = tuple[int, dict[str, bytes], list[Record]]
"""Where it begins, what a snapshot has of that position, the records from there on."""


class CannotAudit(Exception):
    """What is needed for a judgement cannot be had."""


class _Trimmed(Exception):
    """Records were deleted while they were about to be read."""


async def read(settings: Settings, settle_s: float, redis: Mapping[str, str] = NOBODYS) -> Evidence:
    """Return the evidence, once nothing is under way or `settle_s` seconds have passed.

    `redis` has the addresses of services whose Redis Cluster is not the one that the settings name.

    Raise CannotAudit when the system is being written to meanwhile, LogFailed or StoreFailed when it cannot be reached.
    """
    source = Source(settings, redis)
    try:
        return await source.read(settle_s)
    finally:
        await source.close()


class Source:
    """One system's logs and stores."""

    def __init__(self, settings: Settings, redis: Mapping[str, str]) -> None:
        self._settings = settings
        self._stores = {
            service: Store(msgspec.structs.replace(settings, redis=redis.get(service, settings.redis)), DUMP_TIMEOUT_S)
            for service in settings.topology
        }
        self._ends = Ends(settings)
        self._producer = Producer(settings)  # sends nothing
        self._snapshots = Snapshots(SnapshotTopics(settings, self._producer))
        topology = settings.topology
        self._names = [name for service in topology for name in partitions_of(service, topology)]

    async def close(self) -> None:
        """Disconnect."""
        await _all(store.close() for store in self._stores.values())
        await self._ends.close()

    async def read(self, settle_s: float) -> Evidence:
        """Read at rest: when a log grows while it is read, what is read does not fit together."""
        await check_topology(self._settings)
        deadline_s = time.monotonic() + settle_s
        while True:
            await self._settle(deadline_s)
            before = await self._all_ends()
            with contextlib.suppress(_Trimmed):
                evidence = await self._read(before)
                if await self._all_ends() == before:
                    return evidence
            if time.monotonic() > deadline_s:
                raise CannotAudit("the logs change while they are read: audit a system that nobody uses")

    async def _settle(self, deadline_s: float) -> None:
        """Wait until everything is applied and nothing is open.  What still is at the deadline is an offender."""
        while time.monotonic() < deadline_s:
            if await self._is_settled():
                return
            await asyncio.sleep(POLL_S)

    async def _is_settled(self) -> bool:
        for name in self._names:
            position, (value,) = await self._store_of(name).read(name, ["header"])
            counts = _header.decode(value).counts if value else {}
            if position < await self._ends.end(name) or any(counts.get(kind) for kind in OPEN_KINDS):
                return False
        return True

    def _store_of(self, name: str) -> Store:
        return self._stores[_service_of(name)]

    async def _all_ends(self) -> dict[str, int]:
        return dict(zip(self._names, await _all(self._ends.end(name) for name in self._names), strict=True))

    async def _read(self, ends: dict[str, int]) -> Evidence:
        dumps = await _all(self._store_of(name).dump(name) for name in self._names)
        letters = await _all(self._dead_letters(name) for name in self._names)
        logs = await _all(self._log(name, ends[name]) for name in self._names)
        partitions = {
            name: PartitionEvidence(records, dead, position, stored, begins, fields)
            for name, (begins, fields, records), dead, (position, stored) in zip(
                self._names, logs, letters, dumps, strict=True
            )
        }
        return Evidence(self._settings.topology, partitions, int(time.time() * 1000))

    async def _dead_letters(self, name: str) -> DeadLetters:
        return await DeadLetterBox(self._settings, _service_of(name), self._producer).of(name)

    async def _log(self, name: str, end: int) -> _Log:
        async with a_tail(self._settings, inbox(name)) as tail:
            first, _ = await tail.bounds()
            begins, fields = await opening(self._snapshots, name, first) if first else (0, {})
            tail.seek(begins)
            try:
                return begins, fields, await _until(tail, name, begins, end)
            except LogFailed as why:
                now, _ = await tail.bounds()
                raise (_Trimmed if now > begins else LogFailed)(str(why)) from why


async def opening(snapshots: Snapshots, name: str, first: int) -> tuple[int, dict[str, bytes]]:
    """Return position and fields of the oldest snapshot behind which the log, which begins at `first`, is whole.

    The oldest: most can be joined from there on.  Raise CannotAudit when there is none.
    """
    for manifest in reversed(await snapshots.newest_first(name)):
        if manifest.position >= first:
            with contextlib.suppress(Unreadable):
                return manifest.position, await _fields(snapshots, name, manifest)
    raise CannotAudit(f"the log of {name} begins at {first}, and no snapshot that can be read goes on from there")


async def _fields(snapshots: Snapshots, name: str, manifest: Manifest) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    async for chunk in snapshots.read(name, manifest):
        fields |= chunk
    if len(fields) != manifest.field_count:
        raise Unreadable(f"the snapshot of {name} at {manifest.position} has {len(fields)} fields")
    return fields | {"header": manifest.header}


async def _until(tail: Tail, name: str, position: int, end: int) -> list[Record]:
    """Return all records from `position` to `end`; what does not come is not there to be judged."""
    records: list[Record] = []
    heard_s = time.monotonic()
    while (records[-1].offset + 1 if records else position) < end:
        polled = await tail.poll(1.0, RECORDS_MAX)
        records += polled
        heard_s = time.monotonic() if polled else heard_s
        if time.monotonic() - heard_s > SILENCE_MAX_S:
            raise LogFailed(f"the log of {name} ends at {end}, nothing comes after {len(records)} records")
    return records


def _service_of(name: str) -> str:
    return name.rpartition("-")[0]


async def _all(reads: Iterable[Awaitable[T]]) -> list[T]:
    return [await each for each in reads]
