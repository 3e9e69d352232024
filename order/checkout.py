"""The checkout: one attempt to check out one order, a saga over the stock partitions and payment.

    state      message             when                           goes to    emits
    ---------  ------------------  -----------------------------  ---------  ----------------------------------------
    -          CheckOut            order unpaid, not checked out  open       ReserveStock each, ChargeUser
    open       accepted, refused   answers are outstanding        open       -
    open       accepted            all accepted                   paid       SettleStock, SettleCharge if large, replies
    open       accepted, refused   all in, some refused           undoing    ReleaseStock / RefundUser to who accepted
    open       refused             all in, all refused            failed     replies
    undoing    undone              undos are outstanding          undoing    -
    undoing    undone              all undone                     failed     replies

Paid and failed checkouts are deleted; the order remembers the result.  Nobody is told of a failure before every undo is
acknowledged, and there are no timeouts: every message in a log is processed sooner or later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from common.decision import Arrival, Ended, Entity, Reply, Send
from common.messages import (
    Asker,
    ChargeUser,
    Done,
    Message,
    Outcome,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    Topology,
    partition_of,
)

ASKERS_MAX = 1_000
"""How many requests may wait for one checkout."""

SETTLED_LEAST = 1_000_000
"""Smaller quantities and amounts are not settled when they are paid: they count against the limit of what an item or an
account may hold, 10**15 - 1, for good.  A message a checkout would be a high price for that last thousandth."""

Lines = tuple[tuple[str, int], ...]
"""Item id and quantity, each item once."""

SUPERSEDED = Refused(Reason.CONFLICT, "batch_init replaced the order while it was being checked out")
TOO_MANY = Refused(Reason.BUSY, f"{ASKERS_MAX} requests wait for this checkout already: ask again, with a new key")


class Checkout(Entity, frozen=True):
    """An open or undoing checkout.

    `lines` are the order's, by stock partition.  `waiting` names the partitions whose answer, or whose acknowledgement
    of an undo, is outstanding; `accepted` those that hold something; `refusals` why others refused.
    """

    id: str
    order_id: str
    user_id: str
    amount: int
    payment: str
    lines: Mapping[str, Lines]
    opened_ms: int
    waiting: tuple[str, ...]
    askers: tuple[Asker, ...]
    accepted: tuple[str, ...] = ()
    refusals: Mapping[str, Refused] = {}
    undoing: bool = False


class Step(msgspec.Struct, frozen=True):
    """What one message makes of a checkout.  `outcome` is set when it ends: then the order takes it over."""

    checkout: Checkout
    messages: tuple[Message | Send | Reply | Ended, ...] = ()
    outcome: Outcome | None = None


def split(lines: Lines, topology: Topology) -> dict[str, Lines]:
    """Return the lines by the stock partition that has their items."""
    parts: dict[str, Lines] = {}
    for line in lines:
        partition = partition_of("stock", line[0], topology)
        parts[partition] = (*parts.get(partition, ()), line)
    return parts


def open_checkout(order_id: str, user_id: str, amount: int, lines: Lines, arrival: Arrival) -> Step:
    """Reserve at every stock partition concerned and charge the user, in parallel."""
    assert arrival.asker is not None
    parts = split(lines, arrival.topology)
    payment = partition_of("payment", user_id, arrival.topology)
    reserve = tuple(Send(partition, ReserveStock(arrival.id, part)) for partition, part in parts.items())
    charge = Send(payment, ChargeUser(arrival.id, user_id, amount))
    checkout = Checkout(
        id=arrival.id,
        order_id=order_id,
        user_id=user_id,
        amount=amount,
        payment=payment,
        lines=parts,
        opened_ms=arrival.time_ms,
        waiting=(*parts, payment),
        askers=(arrival.asker,),
    )
    return Step(checkout, (*reserve, charge))


def join(checkout: Checkout, asker: Asker) -> Checkout | None:
    """Let one more request wait for the outcome, or return None when too many do."""
    if len(checkout.askers) >= ASKERS_MAX:
        return None
    return msgspec.structs.replace(checkout, askers=(*checkout.askers, asker))


def supersede(checkout: Checkout) -> Checkout:
    """The order is not there any more: whatever is accepted will be undone."""
    if checkout.undoing:
        return checkout
    return msgspec.structs.replace(checkout, refusals={**checkout.refusals, "batch_init": SUPERSEDED})


def accept(checkout: Checkout, arrival: Arrival) -> Step:
    """One part holds what was asked for."""
    accepted = (*checkout.accepted, arrival.source)
    return _answered(_heard(checkout, arrival, undoing=False), arrival, accepted=accepted)


def refuse(checkout: Checkout, refusal: Refused, arrival: Arrival) -> Step:
    """One part holds nothing, and says why."""
    refusals = {**checkout.refusals, arrival.source: refusal}
    return _answered(_heard(checkout, arrival, undoing=False), arrival, refusals=refusals)


def acknowledge_undo(checkout: Checkout, arrival: Arrival) -> Step:
    """One part has undone what it held."""
    checkout = _heard(checkout, arrival, undoing=True)
    return Step(checkout) if checkout.waiting else _fail(checkout, arrival)


def _heard(checkout: Checkout, arrival: Arrival, *, undoing: bool) -> Checkout:
    state = "undoing" if checkout.undoing else "open"
    assert checkout.undoing == undoing, f"an answer from {arrival.source} to a checkout that is {state}"
    assert arrival.source in checkout.waiting, f"a second answer from {arrival.source} to a checkout that is {state}"
    waiting = tuple(partition for partition in checkout.waiting if partition != arrival.source)
    return msgspec.structs.replace(checkout, waiting=waiting)


def _answered(checkout: Checkout, arrival: Arrival, **learned: object) -> Step:
    checkout = msgspec.structs.replace(checkout, **learned)
    if checkout.waiting:
        return Step(checkout)
    if not checkout.refusals:
        return _end(checkout, Done(checkout.order_id), arrival, tuple(_settle(checkout)))
    if not checkout.accepted:
        return _fail(checkout, arrival)
    undoing = msgspec.structs.replace(checkout, undoing=True, waiting=checkout.accepted)
    return Step(undoing, tuple(_undo(undoing)))


def _settle(checkout: Checkout) -> Iterator[Send]:
    for partition, lines in checkout.lines.items():
        large = tuple(line for line in lines if line[1] >= SETTLED_LEAST)
        if large:
            yield Send(partition, SettleStock(checkout.id, large))
    if checkout.amount >= SETTLED_LEAST:
        yield Send(checkout.payment, SettleCharge(checkout.id, checkout.user_id, checkout.amount))


def _undo(checkout: Checkout) -> Iterator[Send]:
    for partition in checkout.accepted:
        if partition == checkout.payment:
            yield Send(partition, RefundUser(checkout.id, checkout.user_id, checkout.amount))
        else:
            yield Send(partition, ReleaseStock(checkout.id, checkout.lines[partition]))


def _fail(checkout: Checkout, arrival: Arrival) -> Step:
    first = min(checkout.refusals, key=lambda source: (source == checkout.payment, source))
    return _end(checkout, checkout.refusals[first], arrival)


def _end(checkout: Checkout, outcome: Outcome, arrival: Arrival, settle: tuple[Send, ...] = ()) -> Step:
    replies = tuple(Reply(asker, outcome) for asker in checkout.askers)
    word = "paid" if isinstance(outcome, Done) else outcome.reason.value
    ended = Ended("checkout", checkout.id, checkout.order_id, word, arrival.time_ms - checkout.opened_ms)
    return Step(checkout, (*settle, *replies, ended), outcome)
