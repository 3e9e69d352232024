"""Snapshots: what is written is read back, what cannot be read is passed over, and never too much is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from builders import NOW_MS
from world import MemorySnapshotLog

from common import snapshot
from common.fold import Record
from common.snapshot import Snapshots, Unreadable

PARTITION = "stock-0"
FIELDS = {f"Item:{number}": b"%d" % number for number in range(100)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 100)


def take(log: MemorySnapshotLog, *positions: int) -> None:
    for position in positions:
        asyncio.run(Snapshots(log).take(PARTITION, position, b"header %d" % position, FIELDS))


def read(log: MemorySnapshotLog, newest: int = 0) -> dict[str, bytes]:
    async def work() -> dict[str, bytes]:
        snapshots = Snapshots(log)
        manifest = (await snapshots.newest_first(PARTITION))[newest]
        fields: dict[str, bytes] = {}
        async for chunk in snapshots.read(PARTITION, manifest):
            fields |= chunk
        return fields

    return asyncio.run(work())


def test_what_was_taken_is_read_back() -> None:
    log = MemorySnapshotLog()
    take(log, 7)

    assert read(log) == FIELDS
    assert len(log.chunk_log[PARTITION]) > 5


def test_a_state_of_nothing_but_its_header_has_one_chunk() -> None:
    log = MemorySnapshotLog()
    asyncio.run(Snapshots(log).take(PARTITION, 1, b"header", {}))

    (manifest,) = asyncio.run(Snapshots(log).newest_first(PARTITION))
    assert (manifest.position, manifest.header, manifest.field_count, len(manifest.chunks)) == (1, b"header", 0, 1)


def test_the_newest_is_the_one_with_the_highest_position_however_late_another_came() -> None:
    log = MemorySnapshotLog()
    take(log, 20, 30, 10)

    assert [each.position for each in asyncio.run(Snapshots(log).newest_first(PARTITION))] == [30, 20, 10]


def missing(log: MemorySnapshotLog, chunk: int) -> None:
    log.chunk_log[PARTITION][chunk] = None


def another(log: MemorySnapshotLog, chunk: int) -> None:
    log.chunk_log[PARTITION][chunk] = Record(chunk, NOW_MS, b"somebody else's")


@pytest.mark.parametrize("spoil", [missing, another])
def test_a_chunk_that_is_missing_or_another_makes_it_unreadable(
    spoil: Callable[[MemorySnapshotLog, int], None],
) -> None:
    log = MemorySnapshotLog()
    take(log, 7)
    spoil(log, 3)

    with pytest.raises(Unreadable, match="stock-0 at 7"):
        read(log)


def test_nothing_is_deleted_behind_the_first_snapshot() -> None:
    log = MemorySnapshotLog()
    take(log, 10)

    assert log.trimmed == {}


def test_what_is_below_the_second_newest_is_deleted() -> None:
    log = MemorySnapshotLog()
    take(log, 10)
    chunks = len(log.chunk_log[PARTITION])
    take(log, 20, 30)

    assert log.trimmed == {PARTITION: (20, chunks, 1)}


@pytest.mark.parametrize("spoil", [missing, another])
def test_a_snapshot_that_cannot_be_read_is_not_counted(spoil: Callable[[MemorySnapshotLog, int], None]) -> None:
    log = MemorySnapshotLog()
    take(log, 10)
    chunks = len(log.chunk_log[PARTITION])
    take(log, 20)
    spoil(log, chunks)
    log.trimmed.clear()
    take(log, 30)

    assert log.trimmed == {PARTITION: (10, 0, 0)}


def test_a_snapshot_with_fewer_fields_than_it_says_is_not_counted() -> None:
    log = MemorySnapshotLog()
    take(log, 10)
    manifest = asyncio.run(Snapshots(log).newest_first(PARTITION))[0]
    log.manifest_log[PARTITION] = [
        Record(0, NOW_MS, snapshot.encode(snapshot.Manifest(10, b"", manifest.field_count + 1, manifest.chunks)))
    ]
    with pytest.raises(Unreadable, match="lacks 1 fields"):
        read(log)
    take(log, 20)

    assert log.trimmed == {}


def test_a_snapshot_whose_manifest_was_appended_twice_is_counted_once() -> None:
    """Kafka's clients repeat what they know no answer to."""
    log = MemorySnapshotLog()
    take(log, 10, 20)
    log.trimmed.clear()
    log.manifest_log[PARTITION].append(Record(2, NOW_MS, log.manifest_log[PARTITION][1].value))
    take(log, 20)

    assert log.trimmed == {PARTITION: (10, 0, 0)}


def test_a_chunk_is_larger_than_the_limit_only_by_one_field() -> None:
    log = MemorySnapshotLog()
    fields = {"a": bytes(60), "b": bytes(60), "c": bytes(300), "d": bytes(1)}
    asyncio.run(Snapshots(log).take(PARTITION, 7, b"header", fields))

    assert read(log) == fields
    assert [len(chunk.value) > 300 for chunk in log.chunk_log[PARTITION] if chunk] == [False, False, True, False]


def test_of_two_snapshotters_the_late_one_does_not_bring_anything_back() -> None:
    log = MemorySnapshotLog()
    take(log, 10, 20, 30)
    trimmed = log.trimmed[PARTITION]
    take(log, 15)

    assert log.trimmed[PARTITION] == trimmed
