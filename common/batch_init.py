"""Batch initialisation, the same for orders, items and users: a saga over all partitions of one service.

The partition that took the command sends each partition one chunk at a time and the next when that one is filled: so a
million entities never stand in one record or one apply.  A chunk is a range of numbers, and each partition makes the
entities of it that live there.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from common.decision import Arrival, Decision, Entity, Reply, Send, State, find, key
from common.messages import Asker, Done, Message, partition_of, partitions_of

CHUNK_ENTITIES = 5_000
"""About how many entities one chunk makes in one partition."""


class FillChunk(Message, frozen=True):
    """Make the entities numbered start <= number < stop; `parameters` are the call's further numbers."""

    init_id: str
    start: int
    stop: int
    parameters: tuple[int, ...]


class ChunkFilled(Message, frozen=True):
    """The chunk that ended before `stop` is made."""

    init_id: str
    stop: int


class BatchInit(Entity, frozen=True):
    """One open call; `filling` names the partitions that are not done."""

    asker: Asker
    count: int
    parameters: tuple[int, ...]
    filling: tuple[str, ...]


def start(service: str, count: int, parameters: tuple[int, ...], arrival: Arrival) -> Decision:
    """Send every partition its first chunk; the asker is told when the last one is filled."""
    assert arrival.asker is not None
    partitions = partitions_of(service, arrival.topology)
    init = BatchInit(arrival.asker, count, parameters, tuple(partitions))
    chunk = _chunk(arrival.id, init, 0, len(partitions))
    return Decision({key(BatchInit, arrival.id): init}, tuple(Send(partition, chunk) for partition in partitions))


def advance(state: State, message: ChunkFilled, service: str, arrival: Arrival) -> Decision:
    """Send the partition its next chunk, or end when none is filling any more."""
    init = find(state, BatchInit, message.init_id)
    assert init is not None
    if message.stop < init.count:
        return Decision({}, (_chunk(message.init_id, init, message.stop, arrival.topology[service]),))
    filling = tuple(partition for partition in init.filling if partition != arrival.source)
    if filling:
        return Decision({key(BatchInit, message.init_id): msgspec.structs.replace(init, filling=filling)})
    return Decision({key(BatchInit, message.init_id): None}, (Reply(init.asker, Done(str(init.count))),))


def numbers_here(service: str, chunk: FillChunk, arrival: Arrival) -> Iterator[str]:
    """Yield the ids of the chunk that live in this partition."""
    for number in range(chunk.start, chunk.stop):
        if partition_of(service, str(number), arrival.topology) == arrival.partition:
            yield str(number)


def _chunk(init_id: str, init: BatchInit, first: int, partitions: int) -> FillChunk:
    return FillChunk(init_id, first, min(first + CHUNK_ENTITIES * partitions, init.count), init.parameters)
