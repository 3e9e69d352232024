"""Judges what snapshots a run leaves: each is the fold of the whole log, and enough can be read to trim as was done."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from simulation.log import SPOILT, Trim, beside, dead_letters_in, manifests_in
from simulation.system import System

from common.fold import Codec, DeadLetter, Fold, Header, Memory, Missing, Rules
from common.log import MANIFESTS, SNAPSHOTS
from common.messages import checksum, partitions_of
from common.snapshot import KEPT, Chunk, Manifest

Fields = dict[str, bytes]


def snapshots_wrong(system: System) -> Iterator[str]:
    """Yield what is wrong, a sentence each."""
    for service in system.topology:
        for partition in partitions_of(service, system.topology):
            yield from _contents_wrong(system, service, partition)
    for trim in system.log.trims:
        yield from _trim_wrong(system, trim)


def _contents_wrong(system: System, service: str, partition: str) -> Iterator[str]:
    """Every snapshot is what its log makes.  Two are left, of which one may have been spoilt since."""
    manifests = manifests_in(system.log.offered(beside(partition, MANIFESTS)))
    first_chunk = system.log.first.get(beside(partition, SNAPSHOTS), 0)
    readable = {
        manifest.position: _fields(system, partition, manifest)
        for manifest in manifests
        if _is_readable(system, partition, manifest, first_chunk)
    }
    first = system.log.first.get(partition, 0)
    if first and sum(position >= first for position in readable) < KEPT - (partition in system.spoilt):
        yield f"{partition} begins at {first}, and its snapshots that can be read are at {sorted(readable)}"
    for position, fields in _states(system, service, partition):
        if readable.pop(position, fields) != fields:
            yield f"I6: the snapshot of {partition} at {position} is not what its log makes"
    for position in readable:
        yield f"I6: there is a snapshot of {partition} at {position}, beyond its log"


def _trim_wrong(system: System, trim: Trim) -> Iterator[str]:
    """Two snapshots could be read, when it was looked for them, from which the log is whole behind the trim."""
    records = system.log.records[beside(trim.partition, MANIFESTS)][: trim.seen.manifests]
    was_spoilt = system.spoilt.get(trim.partition, float("inf")) < trim.seen.at_s
    readable = {
        manifest.position
        for manifest in manifests_in(records)
        if manifest.position >= trim.position
        and _is_readable(system, trim.partition, manifest, trim.seen.first_chunk, spoilt_is_sound=not was_spoilt)
    }
    if len(readable) < KEPT:
        yield f"{trim.partition} was trimmed to {trim.position}, with snapshots at {sorted(readable)}"


def _is_readable(
    system: System, partition: str, manifest: Manifest, first_chunk: int, *, spoilt_is_sound: bool = False
) -> bool:
    chunks = system.log.records[beside(partition, SNAPSHOTS)]
    for offset, crc in manifest.chunks:
        if not first_chunk <= offset < len(chunks):
            return False
        value = chunks[offset].value
        if checksum(value) != crc and not (value == SPOILT and spoilt_is_sound):
            return False
    return True


def _fields(system: System, partition: str, manifest: Manifest) -> Fields:
    fields = {"header": manifest.header}
    for offset, _ in manifest.chunks:
        value = system.log.records[beside(partition, SNAPSHOTS)][offset].value
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
            match effect:
                case Missing():
                    memory.update({key: None for key in effect.keys if key not in memory})
                case DeadLetter():  # the audit says what is wrong with one that is not on record
                    letters[effect.offset, effect.index] = -1
        for field, value in fold.folded.changes.items():
            fields.pop(field, None)
            if value is not None:
                fields[field] = value
        yield record.offset + 1, fields
