"""Rules that change: old records come to what they came to; a record in the log says from where on new rules hold."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

import golden
import hypothesis.strategies as st
import msgspec
import pytest
from aiokafka import TopicPartition
from builders import ONE_EACH, TWO_EACH
from hypothesis import given
from strategies import PARTITIONS, Do, Script, model, play
from test_model_fold import MACHINE_OF, Cuts, Reading, anything, cuts_drawn
from world import MACHINES, STOCK, MemoryStore, World

from common.batch_init import ChunkFilled
from common.decision import RULES, Arrival, Decision, Entity, Machine, Reply, State
from common.fold import Fold, Record, UndecodableRecord
from common.log import LogFailed
from common.messages import AskPrice, Done, Letter, NewRules, PriceTold, Refused, encode
from common.new_rules import begin
from common.processor import Store
from order import checkout
from order import domain as order
from payment import domain as payment
from stock import domain as stock
from stock.domain import AddStock, CreateItem, SubtractStock

ROOT = Path(__file__).parents[2]
DECISIONS = ("order/domain.py", "order/checkout.py", "stock/domain.py", "payment/domain.py", "common/batch_init.py")

# --- old records come to what they came to ---------------------------------------------------------------------------

CHANGED = """
Old records come to something else than they did when they were written.

    was  {was}
    is   {now}

Every processor that replays a log would make another state than the one that stands in Redis, and send other letters
than those that were taken.  So what has changed needs a version in the log (docs/operations.md, "Rules that change"):

  1. RULES in common/decision.py: the next number, and what changes with it.
  2. Where it changed: `if arrival.rules < <that number>:` the old code, unchanged, else the new.
     In common/fold.py the version is `self._header.rules`.  A field more in an entity is a change as well.
  3. test/unit/golden.py: let the story show it, then run it.  It writes the new version's file; the old ones stay.
"""

REPLAY = """
import golden
from common.decision import RULES

for version in range(1, RULES + 1):
    list(golden.refolded(golden.path(version).read_text().splitlines()[1:]))
"""


def stored(version: int) -> list[str]:
    """Return what golden.py wrote when this was the newest version: the limits, then a line for each record."""
    file = golden.path(version)
    assert file.exists(), f"{file.name} is missing: PYTHONPATH=. .venv/bin/python test/unit/golden.py"
    return file.read_text().splitlines()


def differences(version: int) -> Iterable[tuple[str, str]]:
    limits, *lines = stored(version)
    now = [msgspec.json.encode(golden.limits()).decode(), *golden.refolded(lines)]
    return ((was, is_) for was, is_ in zip([limits, *lines], now, strict=True) if was != is_)


@pytest.mark.parametrize("version", range(1, RULES + 1))
def test_old_records_come_to_what_they_came_to(version: int) -> None:
    for was, now in differences(version):
        pytest.fail(CHANGED.format(was=was, now=now))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (stock, "SHORTAGE", Refused(stock.SHORTAGE.reason, "sold out")),
        (stock, "settle", stock.release),
        (payment, "fill", lambda _state, chunk, _arrival: Decision({}, (ChunkFilled(chunk.init_id, chunk.stop),))),
        (order, "random_order", lambda _order_id, _parameters: order.Order("0")),
        (order, "LINES_MAX", 101),
        (order, "supersede", lambda open_: open_),
        (checkout, "SETTLED_LEAST", checkout.SETTLED_LEAST + 1),
        (Fold, "_is_next", lambda _self, _letter: True),
        (golden.fold, "ATTEMPT_RETENTION_MS", golden.ATTEMPT_RETENTION_MS + 2),
        (golden.fold, "COMMAND_AGE_MAX_MS", golden.COMMAND_AGE_MAX_MS - 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_rule_does_not_go_unnoticed(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object
) -> None:
    monkeypatch.setattr(module, name, value)

    assert list(differences(RULES)) != []


def test_a_field_more_in_an_entity_does_not_go_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: list[Any] = [("price", int), ("available", int, 0), ("held", int, 0), ("weight", int, 0)]
    monkeypatch.setattr(stock, "Item", msgspec.defstruct("Item", fields, bases=(Entity,), frozen=True))

    assert list(differences(RULES)) != []


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_the_old_log_has_every_kind_of_message(machine: Machine) -> None:
    batches = [
        line["record"][1]
        for line in map(msgspec.json.decode, stored(RULES)[1:])
        if line["partition"].startswith(machine.service) and line["record"][0] == "batch"
    ]
    told = {envelope[3][0] for batch in batches for envelope in batch}

    assert told == {kind.__name__ for kind in get_args(machine.message_type)}


def test_the_old_logs_take_every_branch_of_every_decision(tmp_path: Path) -> None:
    """Otherwise a changed branch could go unnoticed.  In a process of its own: coverage may be measuring this one."""
    (tmp_path / "rc").write_text("[run]\nbranch = true\n[report]\nexclude_also = assert_never\\(\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT}/test/unit", "COVERAGE_FILE": str(tmp_path / "data")}
    coverage = [sys.executable, "-m", "coverage"]
    options = [f"--rcfile={tmp_path / 'rc'}", f"--include={','.join(DECISIONS)}"]
    (tmp_path / "replay.py").write_text(REPLAY)

    subprocess.run([*coverage, "run", *options, str(tmp_path / "replay.py")], cwd=ROOT, env=environment, check=True)
    report = subprocess.run(
        [*coverage, "report", *options, "--show-missing", "--skip-covered"],
        cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip

    assert f"{len(DECISIONS)} files skipped due to complete coverage" in report.stdout, report.stdout


# --- new rules hold from their record on -----------------------------------------------------------------------------


def changed(machine: Machine) -> Machine:
    """Return the next code: from version 2 on everybody is told something else, and prices are higher."""

    def decide(state: State, message: Any, arrival: Arrival) -> Decision:
        decision = machine.decide(state, message, arrival)
        if arrival.rules < 2:
            return decision
        return msgspec.structs.replace(decision, messages=tuple(map(otherwise, decision.messages)))

    return msgspec.structs.replace(machine, decide=decide, rules=2)


def otherwise(message: Any) -> Any:
    match message:
        case Done():
            return Done(f"{message.value}, by rules 2")
        case Refused():
            return Refused(message.reason, f"{message.detail}, by rules 2")
        case Reply():
            return Reply(message.asker, otherwise(message.outcome))
        case PriceTold(price=int(price)):
            return PriceTold(message.addition_id, price + 1)
        case _:
            return message


NEXT = tuple(map(changed, MACHINES))


def with_new_rules(script: Script, when: list[int]) -> Script:
    """Let the rules of each partition change somewhere in the script."""
    acts = list(script.acts)
    for partition, place in zip(PARTITIONS, when, strict=True):
        acts.insert(place % (len(acts) + 1), Do("new rules", partition))
    return msgspec.structs.replace(script, acts=acts)


def begins_at(records: list[Record]) -> int:
    return next(record.offset for record in records if record.value == encode(NewRules(2)))


whens = st.lists(st.integers(0, 40), min_size=len(PARTITIONS), max_size=len(PARTITIONS))


@model(60)
@given(script=anything, when=whens, cuts=cuts_drawn)
def test_old_code_folds_the_same_bytes_up_to_the_record_and_stops_there(
    script: Script, when: list[int], cuts: Cuts
) -> None:
    world, _ = play(with_new_rules(script, when), NEXT)
    for partition, records in world.log.records.items():
        begin, machine = begins_at(records), MACHINE_OF[partition]
        old = Reading(partition, machine)

        with pytest.raises(UndecodableRecord, match="rules 2"):
            old.read(records, [*cuts, *[(len(records), "keep")] * 2])

        old.apply()
        assert old.position == begin
        assert old.all() == Reading(partition, machine).read(records[:begin]).all()
        assert old.all() == Reading(partition, changed(machine)).read(records[:begin]).all()


@model(60)
@given(script=anything, when=whens, cuts=cuts_drawn)
def test_wherever_a_batch_ends_a_replay_of_changed_rules_comes_to_the_same_bytes(
    script: Script, when: list[int], cuts: Cuts
) -> None:
    world, _ = play(with_new_rules(script, when), NEXT)
    for partition, records in world.log.records.items():
        machine = changed(MACHINE_OF[partition])

        replayed = Reading(partition, machine).read(records, cuts)

        assert replayed.all() == Reading(partition, machine).read(records).all()
        assert replayed.store.snapshot(partition) == world.store.snapshot(partition)
        assert replayed.header.rules == 2


def a_stock(machine: Machine) -> World:
    """Return a stock partition with one apple, at 5."""
    world = World({"order": 1, "stock": 1}, [machine])
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("stock", "apple", AddStock("apple", 1))
    return world


def begin_rules(world: World, version: int) -> None:
    world.log.append_value("stock-0", encode(NewRules(version)))


def test_new_code_decides_as_before_until_the_record() -> None:
    world = a_stock(changed(STOCK))
    assert world.carry_out("stock", "apple", SubtractStock("apple", 2)) == stock.SHORTAGE

    begin_rules(world, 2)

    refusal = world.carry_out("stock", "apple", SubtractStock("apple", 2))
    assert refusal == Refused(stock.SHORTAGE.reason, f"{stock.SHORTAGE.detail}, by rules 2")


def test_a_batch_is_decided_by_the_rules_of_before_and_behind_the_record_in_it() -> None:
    world = a_stock(changed(STOCK))
    world.log.append("stock-0", [Letter("order-0", 1, AskPrice("a1", "apple"))])
    begin_rules(world, 2)
    world.log.append("stock-0", [Letter("order-0", 2, AskPrice("a2", "apple"))])

    folded = world.owners["stock-0"].step()

    assert folded is not None
    told = [encode(Letter("stock-0", number, PriceTold(f"a{number}", 4 + number))) for number in (1, 2)]
    assert folded.letters == {"order-0": told}


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_record_of_rules_that_are_not_newer_changes_nothing(version: int) -> None:
    world = a_stock(changed(STOCK))
    begin_rules(world, 2)
    begin_rules(world, version)
    begin_rules(world, 2)
    world.run()

    assert world.owners["stock-0"].header.rules == 2


def test_a_version_may_be_left_out() -> None:
    world = a_stock(msgspec.structs.replace(STOCK, rules=5))
    begin_rules(world, 4)
    world.run()

    assert world.owners["stock-0"].header.rules == 4


def test_a_request_that_was_decided_by_old_rules_is_told_the_same_again() -> None:
    world = a_stock(changed(STOCK))
    refusal = world.carry_out("stock", "apple", SubtractStock("apple", 2), "key/k1")
    begin_rules(world, 2)

    assert world.carry_out("stock", "apple", SubtractStock("apple", 2), "key/k1") == refusal


def test_an_old_binary_that_has_stopped_goes_on_as_new_code() -> None:
    old, new = a_stock(STOCK), a_stock(changed(STOCK))
    for world in (old, new):
        begin_rules(world, 2)
        world.ask("stock", "apple", SubtractStock("apple", 2))
    with pytest.raises(UndecodableRecord):
        old.run()
    before = old.store.snapshot("stock-0")
    with pytest.raises(UndecodableRecord):
        old.run()
    assert old.store.snapshot("stock-0") == before

    upgraded = World(old.topology, [changed(STOCK)])
    upgraded.log, upgraded.store = old.log, old.store
    upgraded.owners["stock-0"].load()
    upgraded.run()
    new.run()

    assert upgraded.store.snapshot("stock-0") == new.store.snapshot("stock-0")


# --- the command -----------------------------------------------------------------------------------------------------


class FakeSender:
    """Appends to a world's log, unless it is told to fail."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fails = False

    async def send(self, place: TopicPartition, value: bytes) -> int:
        if self.fails:
            raise LogFailed("nobody answers")
        return self._world.log.append_value(f"{place.topic.removesuffix('-inbox')}-{place.partition}", value)


class FakeStore:
    """Reads a world's store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        return self._store.read(partition, fields)


def run_command(world: World, machine: Machine, sender: FakeSender | None = None) -> list[str]:
    store = cast("Store", FakeStore(world.store))
    return asyncio.run(begin(machine, world.topology, store, sender or FakeSender(world)))


def test_the_command_begins_the_rules_in_each_partition_of_its_service_and_again_it_does_nothing() -> None:
    world = World(TWO_EACH, NEXT)
    world.run()

    assert run_command(world, changed(STOCK)) == [
        "stock-0: rules 2 hold from record 1 on",
        "stock-1: rules 2 hold from record 1 on",
    ]
    world.run()
    assert {name: owner.header.rules for name, owner in world.owners.items() if owner.header.rules != 1} == {
        "stock-0": 2,
        "stock-1": 2,
    }
    ends = {partition: world.log.end(partition) for partition in world.log.records}
    assert run_command(world, changed(STOCK)) == [
        "stock-0: rules 2 are in force, nothing to do",
        "stock-1: rules 2 are in force, nothing to do",
    ]
    assert {partition: world.log.end(partition) for partition in world.log.records} == ends


def test_code_without_newer_rules_begins_none() -> None:
    world = World(ONE_EACH, NEXT)

    assert run_command(world, STOCK) == ["stock-0: rules 1 are in force, nothing to do"]
    run_command(world, changed(STOCK))
    world.run()
    assert run_command(world, STOCK) == ["stock-0: rules 2 are in force, nothing to do"]


def test_the_command_run_again_before_the_record_is_folded_does_no_harm() -> None:
    world = World(ONE_EACH, NEXT)
    run_command(world, changed(STOCK))

    run_command(world, changed(STOCK))
    world.run()

    assert world.owners["stock-0"].header.rules == 2


def test_the_command_that_failed_does_the_rest_when_it_is_run_again() -> None:
    world = World(TWO_EACH, NEXT)
    sender = FakeSender(world)
    sender.fails = True
    with pytest.raises(LogFailed):
        run_command(world, changed(STOCK), sender)

    assert [said.partition(":")[0] for said in run_command(world, changed(STOCK))] == ["stock-0", "stock-1"]
