"""Files as a power cut leaves them: what was written but perhaps not synced is missing."""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct

from local.system import System

UNSYNCED_S = 1.0
"""appendfsync everysec: what is older is on the disk."""
HEADER = Struct(">qi")
"""Of a batch of records: its first offset, and how many bytes follow."""
CHECKPOINT = "recovery-point-offset-checkpoint"
"""Kafka's own list of what is on the disk: a line a partition, `topic partition offset`, below two of its own."""


def aof_lengths(system: System) -> dict[Path, int]:
    """Return how long the file is to which each Redis node appends."""
    nodes = [name for name in system.names() if name.startswith("redis-")]
    files = [max(_incremental(system.data_folder(name)), key=lambda path: path.stat().st_mtime) for name in nodes]
    return {path: path.stat().st_size for path in files}


def cut_aofs(lengths: dict[Path, int]) -> int:
    """Cut off what was appended since; return how many bytes that were.  A file that was replaced stays."""
    return sum(_cut(path, length) for path, length in lengths.items() if path.exists())


def cut_segments(folder: Path) -> int:
    """Cut the last segment of each of a broker's partitions down to what it has synced; return how many bytes."""
    lines = (folder / CHECKPOINT).read_text().splitlines()[2:]
    points = {f"{topic}-{partition}": int(offset) for topic, partition, offset in map(str.split, lines)}
    return sum(_cut_segment(folder / name, offset) for name, offset in points.items())


def _cut_segment(partition: Path, offset: int) -> int:
    last = max(partition.glob("*.log"), default=None)
    return 0 if last is None else _cut(last, bytes_before(last.read_bytes(), offset))


def bytes_before(segment: bytes, offset: int) -> int:
    """Return how many bytes of a segment hold what is before an offset."""
    place = 0
    while place + HEADER.size <= len(segment):
        first, length = HEADER.unpack_from(segment, place)
        if first >= offset or length <= 0:
            return place
        place += HEADER.size + length
    return min(place, len(segment))


def _cut(path: Path, length: int) -> int:
    cut = max(path.stat().st_size - length, 0)
    if cut:
        os.truncate(path, length)
    return cut


def _incremental(folder: Path) -> list[Path]:
    return list((folder / "appendonlydir").glob("*.incr.aof"))
