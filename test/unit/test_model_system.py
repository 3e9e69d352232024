"""The whole system: any script, any batches, any crashes.  Then nothing is open, and not a cent or a piece is missing.

What the audit knows it takes from the logs, not from the code that it audits: who was promised what, and what was
given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from builders import TWO_EACH
from hypothesis import given
from strategies import MINUTE_MS, PARTITIONS, Script, commands, inits, late, model, play, scripts
from world import World, state_of

from common.batch_init import BatchInit, FillChunk
from common.decision import Entity
from common.fold import Codec, Result
from common.messages import (
    AMOUNT_MAX,
    Batch,
    ChargeUser,
    Done,
    Letter,
    Reason,
    Refused,
    Request,
    ReserveStock,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
    partition_of,
)
from order.checkout import Checkout
from order.domain import Addition, CheckOut, Order
from payment.domain import Account, AddFunds, Pay
from stock.domain import AddStock, Item, SubtractStock

anything = scripts(commands | late | inits, (1, -1, MINUTE_MS))
without_inits = scripts(commands | late, (1, -1, MINUTE_MS))


@dataclass
class Promise:
    """A checkout as the logs of stock, payment and order have it; `held` is what was promised and never given back."""

    order_id: str
    place: tuple[str, int, int]
    asked: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> dict[str, int]:
        reserved = [message for message in self.held.values() if isinstance(message, ReserveStock)]
        return {item_id: quantity for message in reserved for item_id, quantity in message.lines}

    def charge(self) -> ChargeUser | None:
        charges = [message for message in self.held.values() if isinstance(message, ChargeUser)]
        return charges[0] if charges else None


def taken(world: World, service: str) -> Iterator[tuple[str, int, int, Request[Any] | Letter[Any]]]:
    """Yield each message of a service's logs with its place: what stands there twice, once."""
    codec = Codec(world.machines[service])
    for number in range(TWO_EACH[service]):
        seen: set[object] = set()
        for record in world.log.records[f"{service}-{number}"]:
            content = codec.record(record.value)
            for index, envelope in enumerate(content.messages if isinstance(content, Batch) else []):
                name = _name(envelope)
                if name not in seen:
                    seen.add(name)
                    yield f"{service}-{number}", record.offset, index, envelope


def _name(envelope: Request[Any] | Letter[Any]) -> object:
    if isinstance(envelope, Letter):
        return envelope.source, envelope.sequence
    return envelope.asker.request_id, envelope.asker.fingerprint, envelope.made_ms


def promises(world: World) -> dict[str, Promise]:
    """Return every checkout that asked for something, by its id."""
    all_: dict[str, Promise] = {}
    orders = {
        f"{name}-{offset}-{index}": (name, offset, index, env) for name, offset, index, env in taken(world, "order")
    }
    for service in ("stock", "payment"):
        for name, _, _, envelope in taken(world, service):
            message = envelope.message
            if isinstance(message, ReserveStock | ChargeUser):
                *place, asked = orders[message.checkout_id]
                assert isinstance(asked.message, CheckOut)
                promise = all_.setdefault(message.checkout_id, Promise(asked.message.order_id, tuple(place)))
                assert name not in promise.asked, "asked twice"
                promise.asked[name] = message
    for _, _, _, envelope in taken(world, "order"):
        _note_answer(all_, envelope)
    return all_


def _note_answer(all_: dict[str, Promise], envelope: Request[Any] | Letter[Any]) -> None:
    match envelope:
        case Letter(source=source, message=StockReserved(checkout_id=id_) | UserCharged(checkout_id=id_)):
            assert source not in all_[id_].held, "promised twice"
            all_[id_].held[source] = all_[id_].asked[source]
        case Letter(source=source, message=StockReleased(checkout_id=id_) | UserRefunded(checkout_id=id_)):
            del all_[id_].held[source]


def entities(world: World, kind: type[Entity]) -> dict[str, Any]:
    """Return all entities of a kind that the stores have, by id."""
    found = {}
    for partition, stored in world.store.hashes.items():
        codec = Codec(world.machines[partition.rpartition("-")[0]])
        for key, value in stored.items():
            name, _, entity_id = key.partition(":")
            if name == kind.__name__:
                found[entity_id] = codec.entity(value)
    return found


def outcomes(world: World) -> dict[tuple[str, int], set[Any]]:
    told: dict[tuple[str, int], set[Any]] = {}
    for replies in world.store.replies.values():
        for reply in replies:
            told.setdefault((reply.request_id, reply.fingerprint), set()).add(reply.outcome)
    return told


# --- the properties -------------------------------------------------------------------------------------------------


@model(100)
@given(script=anything)
def test_in_the_end_nothing_is_open_and_nothing_is_dead_or_missing(script: Script) -> None:
    world, _ = play(script)

    for kind in (Checkout, Addition, BatchInit):
        assert entities(world, kind) == {}
        assert world.open(kind) == 0
    assert world.buried == []
    assert sum(folded.gaps for folded in world.folded) == 0
    assert all(result.outcome is not None for result in entities(world, Result).values())
    for partition in PARTITIONS:
        assert world.owners[partition].position == world.log.end(partition)


@model(100)
@given(script=anything)
def test_everybody_is_told_one_outcome(script: Script) -> None:
    world, askers = play(script)
    told = outcomes(world)

    for asker in askers:
        assert len(told[asker.request_id, asker.fingerprint]) == 1
    assert set(told) == {(asker.request_id, asker.fingerprint) for asker in askers}
    assert not any(outcome.reason == Reason.INTERNAL for outcome in refusals(told))


def refusals(told: dict[tuple[str, int], set[Any]]) -> list[Refused]:
    return [outcome for said in told.values() for outcome in said if isinstance(outcome, Refused)]


@model(100)
@given(script=anything)
def test_every_checkout_stands_whole_or_not_at_all(script: Script) -> None:
    world, _ = play(script)

    for promise in promises(world).values():
        assert promise.held in ({}, promise.asked)


@model(200)
@given(script=anything)
def test_an_order_is_paid_by_exactly_one_checkout_with_its_charge_and_its_lines(script: Script) -> None:
    world, _ = play(script)
    made, all_ = when_made(world), promises(world)

    for order_id, order in entities(world, Order).items():
        here = [promise for promise in all_.values() if promise.order_id == order_id]
        standing = [promise for promise in here if promise.held and promise.place > made[order_id]]
        assert len(standing) == int(order.paid)
        for promise in standing:
            charge = promise.charge()
            assert charge is not None
            assert (charge.user_id, charge.amount) == (order.user_id, order.total_cost)
            assert promise.lines() == dict(order.lines)


def when_made(world: World) -> dict[str, tuple[str, int, int]]:
    """Return where each order was made, or last replaced by batch_init: it has nothing to do with checkouts before."""
    made: dict[str, tuple[str, int, int]] = {}
    for name, offset, index, envelope in taken(world, "order"):
        if isinstance(envelope.message, FillChunk):
            numbers = map(str, range(envelope.message.start, envelope.message.stop))
            here = [order_id for order_id in numbers if partition_of("order", order_id, TWO_EACH) == name]
            made.update(dict.fromkeys(here, (name, offset, index)))
    return {order_id: made.get(order_id, ("", 0, 0)) for order_id in entities(world, Order)}


@model(200)
@given(script=without_inits)
def test_all_money_and_all_goods_are_there_or_went_out(script: Script) -> None:
    """I1 and I2, each account and each item by itself; orders may be replaced, what was sold is sold."""
    world, _ = play(script)
    standing = [promise for promise in promises(world).values() if promise.held]
    credit, pieces = dict.fromkeys("012345", script.money), dict.fromkeys("012345", script.stock)
    for message in carried_out(world):
        match message:
            case AddFunds() | Pay():
                credit.setdefault(message.user_id, 0)
                credit[message.user_id] += message.amount if isinstance(message, AddFunds) else -message.amount
            case AddStock() | SubtractStock():
                pieces.setdefault(message.item_id, 0)
                pieces[message.item_id] += message.amount if isinstance(message, AddStock) else -message.amount
    for promise in standing:
        charge = promise.charge()
        assert charge is not None
        credit[charge.user_id] -= charge.amount
        for item_id, quantity in promise.lines().items():
            pieces[item_id] -= quantity

    assert {id_: account.credit for id_, account in entities(world, Account).items() if id_ in credit} == credit
    assert {id_: item.available for id_, item in entities(world, Item).items() if id_ in pieces} == pieces


def carried_out(world: World) -> Iterator[Any]:
    """Yield each command to stock and payment whose request was told that it is done, once."""
    told, acted = outcomes(world), set()
    for service in ("stock", "payment"):
        for _, _, _, envelope in taken(world, service):
            if isinstance(envelope, Request):
                place = (envelope.asker.request_id, envelope.asker.fingerprint)
                if place not in acted and all(isinstance(outcome, Done) for outcome in told[place]):
                    acted.add(place)
                    yield envelope.message


@model(100)
@given(script=anything)
def test_nothing_is_ever_negative_or_more_than_can_be_counted(script: Script) -> None:
    world, _ = play(script)

    for account in entities(world, Account).values():
        assert min(account.credit, account.held) >= 0
        assert account.credit + account.held <= AMOUNT_MAX
    for item in entities(world, Item).values():
        assert min(item.available, item.held) >= 0
        assert item.available + item.held <= AMOUNT_MAX


@model(100)
@given(script=anything)
def test_crashes_change_nothing(script: Script) -> None:
    """What the logs have in the end, owners without crashes come to as well, byte for byte."""
    world, _ = play(script)
    calm = World(TWO_EACH)
    calm.log.records = {name: list(records) for name, records in world.log.records.items()}

    for owner in calm.owners.values():
        owner.apply(msgspec.structs.replace(owner.fold(10**6), letters={}))

    assert state_of(calm.store) == state_of(world.store)
