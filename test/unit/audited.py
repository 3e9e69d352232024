"""A small shop whose evidence the tests of the audit corrupt, and machines that are wrong in one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from builders import TWO_EACH
from world import MACHINES, World

from audit import Evidence, Kind, PartitionEvidence, audit
from common.decision import Arrival, Decision, Machine, State
from common.fold import Codec, DeadLetter, Fold, Header, Memory, Missing, Record, Rules
from common.messages import Batch, Letter, Message, Outcome, Request, encode, encode_batch, partition_of
from order.domain import AddItem, CheckOut, CreateOrder
from payment.domain import AddFunds, CreateUser
from stock.domain import AddStock, CreateItem

Envelope = Request[Any] | Letter[Any]
Rewrite = Callable[[Envelope], list[Envelope]]
Twist = Callable[[State, Any, Arrival, Decision], Decision]


# --- the shop: apples at 3 in stock-0, pears at 4 in stock-1, ten each; ann (payment-1) has 100


def a_shop(machines: Iterable[Machine] = MACHINES, *, stock: int = 10, credit: int = 100) -> World:
    world = World(TWO_EACH, machines)
    for item_id, price in (("apple", 3), ("pear", 4)):
        world.carry_out("stock", item_id, CreateItem(item_id, price))
        world.carry_out("stock", item_id, AddStock(item_id, stock))
    world.carry_out("payment", "ann", CreateUser("ann"))
    world.carry_out("payment", "ann", AddFunds("ann", credit))
    return world


def fill(world: World, order_id: str, user_id: str = "ann", **quantities: int) -> None:
    """Make an order of so many apples and pears."""
    world.carry_out("order", order_id, CreateOrder(order_id, user_id))
    for item_id, quantity in quantities.items():
        world.carry_out("order", order_id, AddItem(order_id, item_id, quantity))


def buy(world: World, order_id: str = "o-1", user_id: str = "ann", **quantities: int) -> Outcome:
    """Make an order and check it out."""
    fill(world, order_id, user_id, **quantities or {"apple": 2, "pear": 1})
    return world.carry_out("order", order_id, CheckOut(order_id))


def fail(world: World, order_id: str = "o-2") -> Outcome:
    """Check an order out that stock-1 refuses: an apple and money are held, and given back."""
    return buy(world, order_id, apple=1, pear=11)


def evidence_of(world: World) -> Evidence:
    partitions = {}
    for name, records in world.log.records.items():
        position, stored = world.store.snapshot(name)
        letters = dict(world.dead_letters.get(name, {}))
        partitions[name] = PartitionEvidence(list(records), letters, position, stored)
    return Evidence(world.topology, partitions)


# --- machines that are wrong in one thing


def wrong(machine: Machine, kind: Any, twist: Twist) -> tuple[Machine, ...]:
    """Return all machines, one of which makes something else of its decisions on messages of a kind."""

    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        decision = machine.decide(state, message, arrival)
        return twist(state, message, arrival, decision) if isinstance(message, kind) else decision

    twisted = msgspec.structs.replace(machine, decide=decide)
    return tuple(twisted if each.service == machine.service else each for each in MACHINES)


def with_state(decision: Decision, **fields: Any) -> Decision:
    """Return the decision with these fields in each entity that it writes and that has them."""
    state = {
        key: msgspec.structs.replace(entity, **{name: value for name, value in fields.items() if hasattr(entity, name)})
        if entity is not None
        else None
        for key, entity in decision.state.items()
    }
    return Decision(state, decision.messages)


# --- logs that are changed


def rewrite(evidence: Evidence, name: str, change: Rewrite) -> None:
    """Replace each message of a log by what `change` makes of it.  Emptied records go, and the rest moves up."""
    decoder = Codec(next(machine for machine in MACHINES if name.startswith(machine.service)))
    values = []
    for record in evidence.partitions[name].records:
        content = decoder.record(record.value)
        if isinstance(content, Batch):
            messages = [after for before in content.messages for after in change(before)]
            values.append((record.timestamp_ms, encode_batch([msgspec.Raw(encode(each)) for each in messages])))
            if not messages:
                values.pop()
        else:
            values.append((record.timestamp_ms, record.value))
    evidence.partitions[name].records = [Record(offset, *value) for offset, value in enumerate(values)]


def append(evidence: Evidence, name: str, *envelopes: Envelope) -> None:
    """Put one more record at the end of a log."""
    records = evidence.partitions[name].records
    value = encode_batch([msgspec.Raw(encode(each)) for each in envelopes])
    records.append(Record(len(records), records[-1].timestamp_ms, value))


def drop(kind: Any) -> Rewrite:
    return lambda envelope: [] if isinstance(envelope.message, kind) else [envelope]


def last_letter(evidence: Evidence, name: str, kind: Any) -> Letter[Any]:
    """Return the last letter of a kind in a log."""
    found: list[Envelope] = []
    rewrite(evidence, name, lambda envelope: [envelope, *note(found, envelope, kind)])
    letter = found[-1]
    assert isinstance(letter, Letter)
    return letter


def note(found: list[Envelope], envelope: Envelope, kind: Any) -> list[Envelope]:
    if isinstance(envelope.message, kind):
        found.append(envelope)
    return []


def refold(evidence: Evidence, machines: Iterable[Machine] = MACHINES) -> None:
    """Give the store the honest fold of the logs as they are now: then nothing is wrong but the logs."""
    for machine in machines:
        for name in [name for name in evidence.partitions if name.startswith(machine.service)]:
            refold_partition(evidence, name, machine)


def refold_partition(evidence: Evidence, name: str, machine: Machine) -> None:
    partition, memory = evidence.partitions[name], Memory()
    rules = Rules(machine, Codec(machine), name, evidence.topology, partition.dead_letters)
    fold = Fold(rules, memory, Header(), partition.records)
    for effect in fold.run():
        match effect:
            case Missing():
                for key in effect.keys:
                    memory.setdefault(key, None)
            case DeadLetter():
                partition.dead_letters[effect.offset, effect.index] = len(partition.dead_letters)
    partition.stored = {field: value for field, value in fold.folded.changes.items() if value is not None}
    partition.position = fold.folded.end


def home(service: str, entity_id: str) -> str:
    return partition_of(service, entity_id, TWO_EACH)


# --- what is found, and what several files corrupt alike

Found = set[tuple[Kind, str]]


def found(evidence: Evidence, machines: tuple[Machine, ...] = MACHINES) -> Found:
    """Return kind and entity of each offender."""
    return {(finding.kind, finding.entity) for finding in audit(evidence, machines).findings}


def sold() -> Evidence:
    """Return a shop's evidence: o-1 is paid (order-0-6-0), o-2 has failed, and everything is at rest."""
    world = a_shop()
    buy(world)
    fail(world)
    return evidence_of(world)


def stored(evidence: Evidence, name: str, field: str, value: bytes | None) -> None:
    if value is None:
        del evidence.partitions[name].stored[field]
    else:
        evidence.partitions[name].stored[field] = value


def raises_always(_state: State, _message: Any, _arrival: Arrival, _decision: Decision) -> Decision:
    raise ZeroDivisionError("the planted bug")


def nothing_stored(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
    """Answer, and change nothing."""
    return Decision({}, decision.messages)


# --- logs that are trimmed


def trim(evidence: Evidence, positions: Mapping[str, int], machines: Iterable[Machine] = MACHINES) -> Evidence:
    """Put a snapshot in place of each partition's records below its position; those that are not named stay whole."""
    for machine in machines:
        for name in evidence.partitions:
            if name.startswith(machine.service) and positions.get(name):
                _trim_partition(evidence, name, machine, positions[name])
    return evidence


def _trim_partition(evidence: Evidence, name: str, machine: Machine, position: int) -> None:
    partition = evidence.partitions[name]
    older = [record for record in partition.records if record.offset < position]
    before = PartitionEvidence(older, dict(partition.dead_letters))
    snapshot = Evidence(evidence.topology, {name: before})
    refold_partition(snapshot, name, machine)
    partition.records = partition.records[len(older) :]
    partition.begins, partition.opening = position, before.stored


def ends_of(world: World) -> dict[str, int]:
    """Return where the logs end: what comes later is what a log has that is trimmed here."""
    return {name: world.log.end(name) for name in world.log.records}
