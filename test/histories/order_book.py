"""Enters the calls on orders into the ledger, and hands their checkouts on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import inf

from histories import amounts, orders
from histories.attempts import Attempt, Malformed
from histories.book import Book, enter, entity_of
from histories.checkouts import Addition, Base, Order, Trace
from histories.ledger import Entity, Hold, Ledger
from histories.model import OrderFacts
from histories.search import Step
from histories.windows import TooMany

ANYTHING = "what the checkouts of this order may have taken is too uncertain"


def enter_orders(book: Book, facts: Mapping[str, OrderFacts], ledger: Ledger) -> None:
    """Enter all calls on orders.  Items are in the ledger already: lines have their prices."""
    for attempt in book.of("create_order", "find_order", "checkout"):
        enter(attempt, ledger, _move)
    by_order: defaultdict[Entity, Order] = defaultdict(lambda: Order([], [], [], []))
    for entity, base in _bases(book, ledger):
        by_order[entity].bases.append(base)
    for attempt in book.of("add_item"):
        _enter_addition(attempt, by_order, ledger)
    for attempt in book.of("checkout"):
        by_order[entity_of(attempt)].checkouts.append(attempt)
        hold = Hold(id(attempt), frozenset({1}), attempt.began, attempt.ended, attempt.operation)
        ledger.hold(entity_of(attempt), hold)
    for attempt in book.of("find_order"):
        _enter_found(attempt, by_order)
    for entity, order in by_order.items():
        _learn(order, facts.get(entity.id))
        _trace(entity, order, book, ledger)


def _trace(entity: Entity, order: Order, book: Book, ledger: Ledger) -> None:
    try:
        Trace(entity, order, book.named, ledger).enter()
    except TooMany:
        ledger.violate(entity, order.checkouts[0].operation, ANYTHING, "undecided")


def _move(attempt: Attempt) -> orders.Move | None:
    match attempt.call.verb, attempt.status:
        case "checkout", 0:
            return orders.Paid()
        case "checkout", status:
            return orders.Unpaid(or_missing=status == 404)
        case "find_order", 404:
            return orders.Missed()
        case "find_order", 0:
            return orders.Found(*_found(attempt)) if attempt.is_done else None
        case "create_order", 0:
            return orders.Created(attempt.call.ids[0]) if attempt.is_done else None
        case _, status:
            raise Malformed(f"api.md has no {status} for this call")


def _found(attempt: Attempt) -> tuple[orders.Facts, bool]:
    try:
        lines = {item_id: quantity for item_id, quantity in attempt.field("items", list)}  # noqa: C416
    except (TypeError, ValueError):
        raise Malformed("its items are not pairs of id and quantity") from None
    facts = orders.Facts(attempt.field("user_id", str), tuple(sorted(lines.items())), attempt.field("total_cost", int))
    return facts, attempt.field("paid", bool)


def _bases(book: Book, ledger: Ledger) -> Iterator[tuple[Entity, Base]]:
    """Yield what orders began with; what batch_init made is entered on the way."""
    for entity, steps in list(ledger.steps.items()):
        for step in steps:
            if isinstance(step.move, orders.Created):
                yield entity, Base(orders.Facts(step.move.user_id, (), 0), step.began, step.ended)
    for attempt in book.of("init_orders"):
        count, items, users, price = attempt.call.numbers
        facts = orders.Random(items, users, 2 * price)
        for entity in [] if attempt.status else book.numbered("order", count):
            ledger.place(entity, orders.Replaced(facts), attempt)
            yield entity, Base(facts, attempt.began, attempt.ended)


# --- addItem


def _enter_addition(attempt: Attempt, by_order: Mapping[Entity, Order], ledger: Ledger) -> None:
    order, item = Entity("order", attempt.call.ids[0]), Entity("item", attempt.call.ids[1])
    prices, quantity = _prices(ledger, item, attempt), attempt.call.numbers[0]
    match attempt.status:
        case 0:
            move = orders.Added(item.id, quantity, prices)
            by_order[order].additions.append(Addition(move, attempt.is_done, attempt.began, attempt.ended))
            ledger.place(order, move, attempt)
            if attempt.is_done:
                ledger.place(item, amounts.Enough(0), attempt)
        case 409:
            ledger.place(order, orders.Closed(item.id, quantity, prices), attempt)
        case 404:
            if _was_there(order, by_order, attempt) and _is_certain(ledger, item, attempt):
                ledger.violate(order, attempt.operation, "both the order and the item were there already")
        case status:
            ledger.violate(order, attempt.operation, f"api.md has no {status} for this call")


def _prices(ledger: Ledger, item: Entity, attempt: Attempt) -> tuple[int, ...]:
    """Return the prices that the item may have had during a call."""
    made = _made(ledger, item)
    past = [
        step for step, _ in made if any(step.ended < later.began and later.ended < attempt.began for later, _ in made)
    ]
    return tuple(sorted({price for step, price in made if step.began <= attempt.ended and step not in past}))


def _made(ledger: Ledger, item: Entity) -> list[tuple[Step, int]]:
    """Return when an item came to be, or was replaced, and its price from then on."""
    moves = ((step, step.move) for step in ledger.steps[item])
    return [(step, move.price) for step, move in moves if isinstance(move, amounts.Created | amounts.Replaced)]


def _is_certain(ledger: Ledger, item: Entity, attempt: Attempt) -> bool:
    return any(step.ended < attempt.began for step, _ in _made(ledger, item))


def _was_there(order: Entity, by_order: Mapping[Entity, Order], attempt: Attempt) -> bool:
    return any(base.ended < attempt.began for base in by_order[order].bases)


# --- what batch_init made


def _enter_found(attempt: Attempt, by_order: Mapping[Entity, Order]) -> None:
    try:
        if attempt.is_done:
            by_order[entity_of(attempt)].found.append((attempt, *_found(attempt)))
    except Malformed:
        pass  # is in the ledger as a violation


def _learn(order: Order, facts: OrderFacts | None) -> None:
    """Say of each base what it was, where a read that can only be of this one tells, or else `facts`."""
    for number, base in enumerate(order.bases):
        if isinstance(base.facts, orders.Random):
            told = [found for attempt, found, _ in order.found if _tells(order, base, attempt)]
            is_last = all(base is other or other.ended < base.began for other in order.bases)
            if not told and facts is not None and is_last and not _additions_until(order, base, inf):
                told = [orders.Facts(facts.user_id, tuple(sorted(facts.lines.items())), facts.total_cost)]
            if told:
                order.bases[number] = Base(told[0], base.began, base.ended)


def _tells(order: Order, base: Base, attempt: Attempt) -> bool:
    alone = order.bases_during(attempt.began, attempt.ended) == [base]
    return alone and not _additions_until(order, base, attempt.ended)


def _additions_until(order: Order, base: Base, time: float) -> bool:
    return any(line.began <= time and base.began <= line.ended for line in order.additions)
