"""I5: nothing is ever negative; amounts are integers, at most 10**15 - 1, what checkouts hold included."""

from __future__ import annotations

from collections.abc import Iterator

from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.opening import Opening
from common.decision import Entity
from common.messages import AMOUNT_MAX
from order.checkout import Checkout
from order.domain import Addition, Order
from payment.domain import Account
from stock.domain import Item


class Amounts:
    """I5, after every message."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def begin(self, name: str, opening: Opening) -> None:
        """Check what there is where a partition's records begin."""
        for key, entity in opening.entities.items():
            for kind, detail in amounts_wrong(entity):
                self.findings.append(Finding(kind, key, name, f"in the snapshot: {detail}"))

    def take(self, fact: Fact) -> None:
        """Check what the message wrote."""
        for key, _, after in fact.changes():
            for kind, detail in amounts_wrong(after):
                self.findings.append(Finding(kind, key, fact.partition, detail, (fact.id,)))


def amounts_wrong(entity: Entity | None) -> Iterator[tuple[Kind, str]]:
    """Yield what is wrong with the amounts of an entity, and which one it is."""
    for name, amount in _amounts(entity):
        if type(amount) is not int:
            yield Kind.NOT_AN_INTEGER, f"{name} is {amount!r}"
        elif amount < 0:
            yield Kind.NEGATIVE, f"{name} is {amount}"
        elif amount > AMOUNT_MAX:
            yield Kind.TOO_LARGE, f"{name} is {amount}"


def _amounts(entity: Entity | None) -> Iterator[tuple[str, int]]:
    match entity:
        case Item():
            yield from (("price", entity.price), ("available", entity.available), ("held", entity.held))
            yield from _together("available and held", entity.available, entity.held)
        case Account():
            yield from (("credit", entity.credit), ("held", entity.held))
            yield from _together("credit and held", entity.credit, entity.held)
        case Order():
            yield "total_cost", entity.total_cost
            yield from ((f"the quantity of {item_id}", quantity) for item_id, quantity in entity.lines)
        case Checkout():
            yield "amount", entity.amount
            yield from ((f"the quantity of {line[0]}", line[1]) for part in entity.lines.values() for line in part)
        case Addition():
            yield "quantity", entity.quantity


def _together(name: str, free: int, held: int) -> Iterator[tuple[str, int]]:
    """The sum is news only where neither is negative."""
    if free >= 0 and held >= 0:
        yield name, free + held
