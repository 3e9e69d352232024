"""Orders, message by message: what each one is made of is exactly what its messages say.

That its charge fits its total proves little if the total does not fit its lines.
"""

from __future__ import annotations

from audit.facts import Fact
from audit.findings import Finding, Kind
from common.batch_init import FillChunk
from common.decision import Reply
from common.messages import Done, PriceTold
from order.domain import Addition, CreateOrder, Order

Contents = tuple[str, dict[str, int], int]
"""User, quantity by item, total."""
ITEMS_OF_A_RANDOM_ORDER = 2


class Orders:
    """Follows every order."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def take(self, fact: Fact) -> None:
        """Compare what the message made of orders with what it says."""
        for key, before, after in fact.changes():
            if isinstance(after, Order):
                self._compare(fact, key, before, after)
            elif isinstance(before, Order):
                self._find(fact, key, f"{before} is gone")
        if _is_line_added(fact) and not any(isinstance(after, Order) for _, _, after in fact.changes()):
            self._find(fact, f"Order:{_addition(fact).order_id}", "the line was not added")

    def _compare(self, fact: Fact, key: str, before: Order | None, after: Order) -> None:
        is_closed = before is not None and bool(before.paid or before.checkout_id)
        expected = _expected(fact, before)
        if isinstance(fact.message, FillChunk):
            if not _is_random_order(fact.message, after):
                self._find(fact, key, f"batch_init made {after}")
        elif _contents(after) != expected:
            self._find(fact, key, f"{before} became {after}")
        elif is_closed and before is not None and expected != _contents(before):
            self._find(fact, key, f"{before} was closed and became {after}")

    def _find(self, fact: Fact, key: str, detail: str) -> None:
        said = f"{fact.message}: {detail}"
        self.findings.append(Finding(Kind.ORDER_CHANGED_WRONGLY, key, fact.partition, said, (fact.id,)))


def _expected(fact: Fact, before: Order | None) -> Contents:
    if before is None:
        return (fact.message.user_id if isinstance(fact.message, CreateOrder) else "", {}, 0)
    user_id, lines, total = _contents(before)
    if _is_line_added(fact):
        addition = _addition(fact)
        lines[addition.item_id] = lines.get(addition.item_id, 0) + addition.quantity
        total += addition.quantity * fact.message.price
    return user_id, lines, total


def _is_line_added(fact: Fact) -> bool:
    is_told = any(isinstance(reply.outcome, Done) for reply in fact.emitted(Reply))
    return is_told and isinstance(fact.message, PriceTold)


def _addition(fact: Fact) -> Addition:
    addition = fact.before[f"Addition:{fact.message.addition_id}"]
    assert isinstance(addition, Addition)
    return addition


def _contents(order: Order) -> Contents:
    return order.user_id, dict(order.lines), order.total_cost


def _is_random_order(chunk: FillChunk, order: Order) -> bool:
    _, _, price, _ = chunk.parameters
    pieces = sum(quantity for _, quantity in order.lines)
    fits = (pieces, order.total_cost) == (ITEMS_OF_A_RANDOM_ORDER, ITEMS_OF_A_RANDOM_ORDER * price)
    return fits and not order.paid and not order.checkout_id
