"""I1 and I2, message by message: every account and every item moves exactly as its messages say.

A message's effect is what the state shows before and after it, never what an answer claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from audit.facts import Fact
from audit.findings import Finding, Kind
from common.batch_init import ChunkFilled, FillChunk
from common.messages import (
    AMOUNT_MAX,
    ChargeUser,
    Done,
    RefundUser,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
)
from payment.domain import Account, AddFunds, Pay
from stock.domain import AddStock, Item, SubtractStock

Hold = ReserveStock | ChargeUser
Undo = ReleaseStock | RefundUser
Settle = SettleStock | SettleCharge
OfCheckout = Hold | Undo | Settle
"""What order asks of an item or an account on behalf of a checkout."""


class Balance(msgspec.Struct, frozen=True):
    """What an item or an account has: free to sell or spend, and held for checkouts."""

    free: int = 0
    held: int = 0


class Move(StrEnum):
    """What a message did for a checkout."""

    HOLD = "hold"
    UNDO = "undo"
    SETTLE = "settle"


class Movement(msgspec.Struct, frozen=True):
    """So many pieces, or so much money, moved in one item or account (its key) for one checkout."""

    move: Move
    key: str
    amount: int
    message_id: str


def balance(entity: object) -> Balance:
    """Return what an item or account has; nothing where there is none."""
    match entity:
        case Item():
            return Balance(entity.available, entity.held)
        case Account():
            return Balance(entity.credit, entity.held)
        case _:
            return Balance()


def claims(message: OfCheckout) -> dict[str, int]:
    """Return how much a message wants moved, by key."""
    if isinstance(message, ChargeUser | RefundUser | SettleCharge):
        return {f"Account:{message.user_id}": message.amount}
    wanted: dict[str, int] = {}
    for item_id, quantity in message.lines:
        wanted[f"Item:{item_id}"] = wanted.get(f"Item:{item_id}", 0) + quantity
    return wanted


def movements(fact: Fact) -> Iterator[Movement]:
    """Yield what a message of a checkout did.  Nothing moved is a movement only where nothing was to be moved."""
    moved = {key: (balance(before), balance(after)) for key, before, after in fact.changes()}
    move = _move(fact.message)
    for key, claimed in (dict.fromkeys(moved, -1) | claims(fact.message)).items():
        before, after = moved.get(key, (Balance(), Balance()))
        amount = {
            Move.HOLD: before.free - after.free,
            Move.UNDO: after.free - before.free,
            Move.SETTLE: before.held - after.held,
        }[move]
        if amount or (claimed == 0 and is_accepted(fact)):
            yield Movement(move, key, amount, fact.id)


def is_accepted(fact: Fact) -> bool:
    """Say whether the partition did, by its answer, what it was asked.  A settlement is never answered."""
    if isinstance(fact.message, Settle):
        return fact.decision is not None and not fact.is_dead
    return fact.answers(Done, StockReserved, UserCharged, StockReleased, UserRefunded, ChunkFilled)


def _move(message: OfCheckout) -> Move:
    match message:
        case ReserveStock() | ChargeUser():
            return Move.HOLD
        case ReleaseStock() | RefundUser():
            return Move.UNDO
        case _:
            return Move.SETTLE


class Movements:
    """Follows every item and account.  `added` is what came from outside, by key, less what went out."""

    def __init__(self) -> None:
        self.added: dict[str, int] = {}
        self.findings: list[Finding] = []

    def take(self, fact: Fact) -> None:
        """Compare what the message did with what it says."""
        wanted = _wanted(fact) if fact.decision is not None and is_accepted(fact) else {}
        for key, before, after in fact.changes():
            if isinstance(after, Item | Account) or isinstance(before, Item | Account):
                was, expected = balance(before), _expected(fact, key, balance(before), wanted)
                self._compare(fact, key, was, expected, balance(after))
        for key in wanted.keys() - fact.before.keys():
            if wanted[key] != Balance():
                self._find(fact, key, "nothing changed")
        self._add(fact, wanted)

    def _compare(self, fact: Fact, key: str, *balances: Balance) -> None:
        was, expected, now = balances
        if now != expected:
            self._find(fact, key, f"{_text(was)} became {_text(now)}, not {_text(expected)}")

    def _find(self, fact: Fact, key: str, detail: str) -> None:
        kind = Kind.ACCOUNT_MOVED_WRONGLY if key.startswith("Account:") else Kind.ITEM_MOVED_WRONGLY
        said = f"{fact.message} was {'accepted' if is_accepted(fact) else 'not accepted'}: {detail}"
        related = (f"Checkout:{fact.message.checkout_id}",) if isinstance(fact.message, OfCheckout) else ()
        self.findings.append(Finding(kind, key, fact.partition, said, (fact.id,), related))

    def _add(self, fact: Fact, wanted: dict[str, Balance]) -> None:
        """Note what came from outside.  batch_init counts as the difference it makes."""
        match fact.message:
            case AddStock() | SubtractStock() | AddFunds() | Pay():
                for key, change in wanted.items():
                    self.added[key] = self.added.get(key, 0) + change.free
            case FillChunk():
                for key, before, after in fact.changes():
                    if isinstance(after, Item | Account):
                        self.added[key] = self.added.get(key, 0) + balance(after).free - balance(before).free


def _wanted(fact: Fact) -> dict[str, Balance]:
    """Return by how much an accepted message changes what it names."""
    message = fact.message
    match message:
        case AddStock() | SubtractStock():
            sign = 1 if isinstance(message, AddStock) else -1
            return {f"Item:{message.item_id}": Balance(sign * message.amount)}
        case AddFunds() | Pay():
            sign = 1 if isinstance(message, AddFunds) else -1
            return {f"Account:{message.user_id}": Balance(sign * message.amount)}
        case ReserveStock() | ChargeUser():
            return {key: Balance(-amount, amount) for key, amount in claims(message).items()}
        case ReleaseStock() | RefundUser():
            return {key: Balance(amount, -amount) for key, amount in claims(message).items()}
        case SettleStock() | SettleCharge():
            return {key: Balance(0, -amount) for key, amount in claims(message).items()}
        case _:
            return {}


def _expected(fact: Fact, key: str, was: Balance, wanted: dict[str, Balance]) -> Balance:
    if isinstance(fact.message, FillChunk) and is_accepted(fact):
        return Balance(min(fact.message.parameters[0], AMOUNT_MAX - was.held), was.held)
    change = wanted.get(key, Balance())
    return Balance(was.free + change.free, was.held + change.held)


def _text(of: Balance) -> str:
    return f"{of.free} (held: {of.held})"
