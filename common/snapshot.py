"""Snapshots: an emptied store is back in seconds, and the log does not grow for ever.

A snapshot is one partition's state at one position, kept in the log: chunks of its fields, then a manifest that names
them.  common.snapshotter takes snapshots, common.processor restores them.  Where a crash leaves the taking of one:

    while         in the log                              what the next snapshotter does
    ------------  --------------------------------------  -------------------------------------------------------
    chunks        chunks that no manifest names           takes another; these are deleted with older ones
    manifest      a snapshot, if it was appended          counts it as one if all its chunks can be read
    trim          some of what was to be deleted is gone  deletes the same, or more, behind its own next snapshot
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Protocol

import msgspec
import structlog

from common.fold import Record
from common.messages import checksum, encode
from common.watchdog import beat

CHUNK_BYTES = 500_000
"""A chunk has so much, or one field, which is no larger than the record that it came from (RECORD_BYTES_MAX)."""
KEPT = 2
"""Readable snapshots that are kept, and with them the log from the oldest of them on."""

logger = structlog.get_logger()


class Unreadable(Exception):
    """A snapshot of which a chunk or a field is missing, or is not what was written."""


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag="chunk", forbid_unknown_fields=True):
    """Some fields of a partition's hash."""

    fields: dict[str, bytes]


class Manifest(msgspec.Struct, frozen=True, array_like=True, tag="manifest", forbid_unknown_fields=True):
    """A partition's state at `position`: its header, and its other fields in chunks, by offset and CRC-32 of each."""

    position: int
    header: bytes
    field_count: int
    chunks: tuple[tuple[int, int], ...]


_chunk = msgspec.msgpack.Decoder(Chunk)
_manifest = msgspec.msgpack.Decoder(Manifest)


class SnapshotLog(Protocol):
    """Where a service's snapshots are kept; common.log has the real one."""

    async def put_chunk(self, partition: str, chunk: bytes) -> int:
        """Return the chunk's offset, once it is acknowledged."""
        ...

    async def put_manifest(self, partition: str, manifest: bytes) -> None:
        """Return once it is acknowledged."""

    async def manifests(self, partition: str) -> list[Record]:
        """Return the manifests that there are, in the order of their offsets."""
        ...

    def chunks(self, partition: str, offsets: list[int]) -> AsyncGenerator[Record | None, None]:
        """Yield the chunk at each offset; None for one that is not there."""
        ...

    async def trim(self, partition: str, position: int, chunk: int, manifest: int) -> None:
        """Delete what is below these offsets: records of the inbox, chunks, manifests."""


class Snapshots:
    """Takes, finds and reads the snapshots of one service's partitions."""

    def __init__(self, log: SnapshotLog) -> None:
        self._log = log

    async def newest_first(self, partition: str) -> list[Manifest]:
        """Return the manifests, by falling position.  Whether their chunks are all there is seen by reading them."""
        return [manifest for _, manifest in await self._newest_first(partition)]

    async def read(self, partition: str, manifest: Manifest) -> AsyncGenerator[dict[str, bytes], None]:
        """Yield the fields, chunk by chunk; raise Unreadable where something is missing or not what was written."""
        crcs = dict(manifest.chunks)
        missing = manifest.field_count
        async with aclosing(self._log.chunks(partition, list(crcs))) as chunks:
            async for record in chunks:
                beat()
                if record is None or checksum(record.value) != crcs[record.offset]:
                    raise Unreadable(f"a chunk of the snapshot of {partition} at {manifest.position}")
                fields = _chunk.decode(record.value).fields
                missing -= len(fields)
                yield fields
        if missing:
            raise Unreadable(f"the snapshot of {partition} at {manifest.position} lacks {missing} fields")

    async def take(self, partition: str, position: int, header: bytes, fields: dict[str, bytes]) -> None:
        """Write a snapshot, then delete what no snapshot worth keeping needs."""
        written: list[tuple[int, int]] = []
        for chunk in _chunks(fields):
            beat()
            written.append((await self._log.put_chunk(partition, chunk), checksum(chunk)))
        manifest = Manifest(position, header, len(fields), tuple(written))
        await self._log.put_manifest(partition, encode(manifest))
        logger.info("snapshot", partition=partition, position=position, fields=len(fields), chunks=len(written))
        await self._trim(partition)

    async def _trim(self, partition: str) -> None:
        """Delete what is below the second newest snapshot that can be read back."""
        kept: dict[int, tuple[int, Manifest]] = {}  # by position: one that was appended twice is one
        for offset, manifest in await self._newest_first(partition):
            if manifest.position not in kept and await self._is_readable(partition, manifest):
                kept[manifest.position] = (offset, manifest)
            if len(kept) == KEPT:
                chunk = min(offset for _, manifest in kept.values() for offset, _ in manifest.chunks)
                return await self._log.trim(partition, min(kept), chunk, min(offset for offset, _ in kept.values()))
        return None

    async def _is_readable(self, partition: str, manifest: Manifest) -> bool:
        try:
            async for _ in self.read(partition, manifest):
                pass
        except Unreadable as why:
            logger.warning("a snapshot cannot be read", partition=partition, why=str(why))
            return False
        return True

    async def _newest_first(self, partition: str) -> list[tuple[int, Manifest]]:
        records = await self._log.manifests(partition)
        placed = [(record.offset, _manifest.decode(record.value)) for record in records]
        return sorted(placed, key=lambda each: (each[1].position, each[0]), reverse=True)


def _chunks(fields: dict[str, bytes]) -> Iterator[bytes]:
    """Yield the fields in encoded chunks; there is always one."""
    chunk: dict[str, bytes] = {}
    size = 0
    for field, value in fields.items():
        size += len(field) + len(value)
        if chunk and size > CHUNK_BYTES:
            yield encode(Chunk(chunk))
            chunk, size = {}, len(field) + len(value)
        chunk[field] = value
    if chunk or not fields:
        yield encode(Chunk(chunk))
