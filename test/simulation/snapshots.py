"""Judges what snapshots a run leaves: each is the fold of the whole log, and enough can be read to trim as was done."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from simulation.log import beside, dead_letters_in, manifests_in
from simulation.system import System

from common.fold import Codec, Fold, Header, Memory, Missing, Rules
from common.log import SNAPSHOTS
from common.messages import checksum, partitions_of
from common.snapshot import KEPT, Chunk, Manifest

Fields = dict[str, bytes]


def snapshots_wrong(system: System) -> Iterator[str]:
    """Yield what is wrong, a sentence each."""
    for service in system.topology:
        for partition in partitions_of(service, system.topology):
            yield from _wrong(system, service, partition)


def _wrong(system: System, service: str, partition: str) -> Iterator[str]:
    readable = {}
    for manifest in manifests_in(system.log, partition):
        fields = _read(system, partition, manifest)
        if fields is not None:
            readable[manifest.position] = fields
    first = system.log.first.get(partition, 0)
    kept = sum(position >= first for position in readable)
    if first and kept < KEPT - (partition in system.spoilt):
        yield f"{partition} begins at {first}, and there are {kept} snapshots that can be read"
    for position, fields in _states(system, service, partition):
        if readable.pop(position, fields) != fields:
            yield f"I6: the snapshot of {partition} at {position} is not what its log makes"
    for position in readable:
        yield f"I6: there is a snapshot of {partition} at {position}, beyond its log"


def _read(system: System, partition: str, manifest: Manifest) -> Fields | None:
    """Return the fields and the header, None if a chunk is missing or another."""
    place = beside(partition, SNAPSHOTS)
    fields = {"header": manifest.header}
    for offset, crc in manifest.chunks:
        value = system.log.records[place][offset].value
        if offset < system.log.first.get(place, 0) or checksum(value) != crc:
            return None
        fields |= msgspec.msgpack.decode(value, type=Chunk).fields
    return fields


def _states(system: System, service: str, partition: str) -> Iterator[tuple[int, Fields]]:
    """Yield position and state behind each record of the whole log."""
    machine = system.machines[service]
    letters = dead_letters_in(system.log.records[f"{service}-dead-letters"], partition)
    rules = Rules(machine, Codec(machine), partition, system.topology, letters)
    memory, header, fields = Memory(), Header(), Fields()
    for record in system.log.records[partition]:
        fold = Fold(rules, memory, header, [record])
        for effect in fold.run():
            assert isinstance(effect, Missing)
            memory.update({key: None for key in effect.keys if key not in memory})
        for field, value in fold.folded.changes.items():
            fields.pop(field, None)
            if value is not None:
                fields[field] = value
        yield record.offset + 1, fields
