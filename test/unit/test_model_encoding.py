"""Encoding: any value of any type comes out as it went in, as the same bytes; what is not known is refused."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import assume, given
from strategies import commands, inits, model, of, plain, play, scripts
from world import MACHINES, World, state_of

from common.decision import Machine
from common.fold import Codec, DeadLetter, Header, Page, Result, UndecodableRecord
from common.messages import Batch, Genesis, NewRules, Request, Told, encode, encode_batch

HERE = Path(__file__).parent
Decode = Callable[[bytes], Any]


def records_of(machine: Machine) -> Any:
    message: Any = machine.message_type
    return Genesis | NewRules | Batch[message]


def knowing_all_rules(machine: Machine) -> Machine:
    return msgspec.structs.replace(machine, rules=2**64)


def entities_of(machine: Machine) -> Any:
    return machine.entity_type | Result | Page


KINDS: list[Any] = [
    *(
        pytest.param(records_of(machine), Codec(knowing_all_rules(machine)).record, id=f"{machine.service} records")
        for machine in MACHINES
    ),
    *(pytest.param(entities_of(machine), Codec(machine).entity, id=f"{machine.service} state") for machine in MACHINES),
    pytest.param(Header, Codec(MACHINES[0]).header, id="headers"),
    pytest.param(Told, msgspec.msgpack.Decoder(Told).decode, id="replies"),
    pytest.param(DeadLetter, msgspec.msgpack.Decoder(DeadLetter).decode, id="dead letters"),
]
REFUSED = (UndecodableRecord, msgspec.DecodeError)
lists = pytest.mark.parametrize(("kind", "decode"), [kind for kind in KINDS if kind.id != "dead letters"])
tagged = pytest.mark.parametrize(("kind", "decode"), KINDS[:6] + [kind for kind in KINDS if kind.id == "replies"])


@pytest.mark.parametrize(("kind", "decode"), KINDS)
def test_what_is_written_comes_out_equal_and_is_written_again_as_the_same_bytes(kind: Any, decode: Decode) -> None:
    @model(60)
    @given(value=of(kind))
    def holds(value: Any) -> None:
        written = encode(value)
        assert decode(written) == value
        assert type(decode(written)) is type(value)
        assert encode(decode(written)) == written

    holds()


@lists
def test_a_struct_is_written_as_its_tag_and_its_fields_in_order(kind: Any, decode: Decode) -> None:
    @model(60)
    @given(value=of(kind))
    def holds(value: Any) -> None:
        assert encode(plain(value)) == encode(value)
        assert decode(encode(plain(value))) == value

    holds()


@lists
def test_a_field_that_is_not_known_is_refused_wherever_it_stands(kind: Any, decode: Decode) -> None:
    @model(60)
    @given(value=of(kind), place=st.integers(0, 30), more=st.none() | st.integers(0, 3) | st.text(max_size=3))
    def holds(value: Any, place: int, more: object) -> None:
        spoilt = spoilt_at(value, place, lambda fields: [*fields, more])
        with pytest.raises(REFUSED):
            decode(encode(spoilt))

    holds()


@tagged
def test_a_tag_that_is_not_known_is_refused_wherever_it_stands(kind: Any, decode: Decode) -> None:
    @model(60)
    @given(value=of(kind), place=st.integers(0, 30), tag=st.sampled_from(["", "Genesis2", "item", "Orders"]))
    def holds(value: Any, place: int, tag: str) -> None:
        assume(count(value, is_tagged))
        spoilt = spoilt_at(value, place, lambda fields: [tag, *fields[1:]], is_tagged)
        with pytest.raises(REFUSED):
            decode(encode(spoilt))

    holds()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_a_record_cut_short_anywhere_is_refused(machine: Machine) -> None:
    @model(60)
    @given(value=of(records_of(machine)), cut=st.integers(0, 300))
    def holds(value: Any, cut: int) -> None:
        written = encode(value)
        with pytest.raises(UndecodableRecord):
            Codec(machine).record(written[: cut % len(written)])

    holds()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_a_record_of_messages_that_are_already_written_is_the_record_of_the_messages(machine: Machine) -> None:
    message: Any = machine.message_type

    @model(60)
    @given(messages=st.lists(of(Request[message]), max_size=4))
    def holds(messages: list[Any]) -> None:
        assert encode_batch([msgspec.Raw(encode(message)) for message in messages]) == encode(Batch(messages))

    holds()


def is_any(_: msgspec.Struct) -> bool:
    return True


def is_tagged(struct: msgspec.Struct) -> bool:
    return struct.__struct_config__.tag is not None


def count(value: Any, which: Callable[[msgspec.Struct], bool] = is_any) -> int:
    """Return how many structs of a kind a value consists of."""
    found: list[msgspec.Struct] = []
    plain(value, lambda struct, fields: (found.append(struct), fields)[1] if which(struct) else fields)
    return len(found)


def spoilt_at(
    value: Any, place: int, spoil: Callable[[list[Any]], list[Any]], which: Callable[[msgspec.Struct], bool] = is_any
) -> Any:
    """Return what the value looks like in the log, one of its structs spoilt."""
    left = place % count(value, which)

    def at(struct: msgspec.Struct, fields: list[Any]) -> list[Any]:
        nonlocal left
        if not which(struct):
            return fields
        left -= 1
        return spoil(fields) if left == -1 else fields

    return plain(value, at)


# --- the same log, another process ------------------------------------------------------------------------------------

FOLD_AGAIN = """
import base64, hashlib, json, sys
from common.fold import Record
from test_model_encoding import digest
from world import World

for logs in json.load(sys.stdin):
    print(digest({name: [Record(n, ms, base64.b64decode(value)) for n, (ms, value) in enumerate(records)]
                  for name, records in logs.items()}))
"""


def digest(logs: dict[str, Any]) -> str:
    """Return everything that logs come to, in a new world, as text."""
    world = World()
    world.log.records = logs
    folded = [owner.step(7) for owner in world.owners.values()]
    folded += [owner.fold() for owner in world.owners.values()]
    letters = [step.letters for step in folded if step is not None]
    replies = msgspec.to_builtins([step.replies for step in folded if step is not None])
    return repr((state_of(world.store), letters, replies))


@pytest.mark.parametrize("hash_seed", ["0", "1", "424242"])
def test_a_log_comes_to_the_same_bytes_in_a_process_that_hashes_otherwise(hash_seed: str) -> None:
    logs = some_logs()
    sent = json.dumps(
        [
            {name: [(record.timestamp_ms, base64.b64encode(record.value).decode()) for record in records]
             for name, records in log.items()}
            for log in logs
        ]
    )  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}

    process = subprocess.run(
        [sys.executable, "-c", FOLD_AGAIN], input=sent, env=environment, capture_output=True, text=True, check=True
    )

    assert process.stdout.splitlines() == [digest(log) for log in logs]


def some_logs() -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = []

    @model(25)
    @given(script=scripts(commands | inits))
    def note(script: Any) -> None:
        world, _ = play(script)
        logs.append({name: list(records) for name, records in world.log.records.items()})

    note()
    return logs
