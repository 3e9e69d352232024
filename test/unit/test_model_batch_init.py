"""batch_init: whatever the partitions' pace, each makes every number once, and the caller is told once, at the end."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from builders import an_arrival, an_asker, asked, given, sent_by
from hypothesis import given as for_any
from strategies import model

from common.batch_init import CHUNK_ENTITIES, BatchInit, ChunkFilled, FillChunk, advance, numbers_here, start
from common.decision import Decision, Reply, Send
from common.messages import Done

ID = "stock-0-9-0"


def chunk_of(message: object) -> FillChunk:
    chunk = message.message if isinstance(message, Send) else message
    assert isinstance(chunk, FillChunk)
    return chunk


@model(150)
@for_any(
    count=st.integers(1, 3) | st.integers(1, 60_000) | st.sampled_from([CHUNK_ENTITIES, 2 * CHUNK_ENTITIES + 1]),
    partitions=st.integers(1, 4),
    pace=st.lists(st.integers(0, 3), min_size=1, max_size=40),
)
def test_every_partition_is_sent_every_number_once_and_the_caller_is_told_when_all_are_filled(
    count: int, partitions: int, pace: list[int]
) -> None:
    topology = {"stock": partitions}
    decision = start("stock", count, (7, 8), asked(ID, topology=topology))
    state = given()
    reached = {f"stock-{number}": 0 for number in range(partitions)}
    filling = {send.partition: chunk_of(send) for send in decision.messages if isinstance(send, Send)}
    assert sorted(filling) == sorted(reached)
    while filling:
        assert not any(isinstance(message, Reply) for message in decision.messages), "told before the end"
        state.update(decision.state)
        partition = sorted(filling)[pace[sum(reached.values()) % len(pace)] % len(filling)]
        chunk = filling.pop(partition)
        assert (chunk.init_id, chunk.start, chunk.parameters) == (ID, reached[partition], (7, 8))
        assert 0 < chunk.stop - chunk.start <= CHUNK_ENTITIES * partitions
        reached[partition] = chunk.stop
        decision = advance(state, ChunkFilled(ID, chunk.stop), "stock", sent_by(partition, topology=topology))
        if reached[partition] < count:
            (message,) = decision.messages
            filling[partition] = chunk_of(message)
    assert set(reached.values()) == {count}
    assert decision == Decision({f"BatchInit:{ID}": None}, (Reply(an_asker(), Done(str(count))),))


@model(50)
@for_any(start_=st.integers(0, 50), size=st.integers(0, 50), partitions=st.integers(1, 4))
def test_each_number_of_a_chunk_lives_in_one_partition(start_: int, size: int, partitions: int) -> None:
    chunk = FillChunk(ID, start_, start_ + size, ())
    topology = {"stock": partitions}

    made = [
        number
        for partition in range(partitions)
        for number in numbers_here("stock", chunk, an_arrival(f"stock-{partition}-1-0", topology=topology))
    ]

    assert sorted(made) == sorted(str(number) for number in range(start_, start_ + size))


def test_a_chunk_that_nobody_waits_for_raises() -> None:
    with pytest.raises(AssertionError):
        advance(given(), ChunkFilled(ID, 5), "stock", sent_by("stock-0"))


def test_the_call_is_remembered_until_it_ends() -> None:
    decision = start("stock", 5, (7,), asked(ID, topology={"stock": 2}))

    assert decision.state == {f"BatchInit:{ID}": BatchInit(an_asker(), 5, (7,), ("stock-0", "stock-1"))}
