"""Checks what clients were told against I4 and I8 (architecture.md, section 3), for every item, user and order.

I8: the calls on one entity can be put into an order that agrees with their times and explains every answer.
I4: a call that was answered 2xx is in that order once; 4xx: it changed nothing, and nothing of it is left when it is
received; unknown: it is there once or not at all, at any later time, until the same key tells.

A history has to contain whatever made its entities (create or batch_init): what was there before it is not known to be.

Not seen: whether the lines of a refused checkout were held together, and whether several refusals that each have a
reason in some item have it at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Literal

from histories import amounts
from histories.amounts import Amounts, Taken
from histories.attempts import Kind, Violation, attempts_of
from histories.book import Book, enter_amounts
from histories.ledger import Doubt, Entity, Ledger
from histories.model import Operation, OrderFacts
from histories.order_book import enter_orders
from histories.orders import Created, Orders, Replaced
from histories.search import Model, Search, Step, Verdict
from histories.windows import Windows

KIND: dict[Literal["stuck", "undecided"], Kind] = {"stuck": "broken", "undecided": "undecided"}
STATES_SHOWN = 5


def check(operations: Iterable[Operation], orders: Mapping[str, OrderFacts] | None = None) -> list[Violation]:
    """Return what cannot be explained; nothing if all is well.

    `orders` says what orders that batch_init made consist of, if the history does not: without it anything is possible.
    """
    attempts, violations = attempts_of(operations)
    ledger = Ledger()
    book = Book(attempts, _named(orders or {}))
    enter_amounts(book, ledger)
    enter_orders(book, orders or {}, ledger)
    _find_made_twice(ledger)
    broken = {entity: found for entity in sorted(ledger.steps) if (found := _judge(ledger, entity))}
    return [*violations, *ledger.violations, *broken.values(), *_doubted(ledger, broken)]


def _find_made_twice(ledger: Ledger) -> None:
    """Two creates that were given the same id would share what each of them was told is its own."""
    for entity, steps in list(ledger.steps.items()):
        made = [step for step in steps if isinstance(step.move, amounts.Created | Created)]
        for step in made[1:]:
            ledger.violate(entity, step.operation, f"this id was given before: {made[0].operation}")


def _named(orders: Mapping[str, OrderFacts]) -> Iterator[Entity]:
    for order_id, facts in orders.items():
        yield from (Entity("order", order_id), Entity("user", facts.user_id))
        yield from (Entity("item", item_id) for item_id in facts.lines)


def _judge(ledger: Ledger, entity: Entity) -> Violation | None:
    """Return why the calls on an entity cannot be explained, if so."""
    steps, model = ledger.steps[entity], _model(ledger, entity)
    verdict = Search(steps, model).run()
    if verdict.kind == "stuck" and entity.kind == "order":
        verdict = _first_stuck(steps, model)
    if verdict.kind == "explained":
        return None
    assert verdict.step is not None
    return Violation(str(entity), verdict.step.operation, _why(verdict), ledger.history(entity), KIND[verdict.kind])


def _model(ledger: Ledger, entity: Entity, but: Collection[Operation] = ()) -> Model:
    windows, moves = Windows(ledger.windows(entity, but)), [step.move for step in ledger.steps[entity]]
    if entity.kind == "order":
        return Orders(windows, is_replaced=any(isinstance(move, Replaced) for move in moves))
    return Amounts(windows, sum(max(move.amounts) for move in moves if isinstance(move, Taken)))


def _first_stuck(steps: list[Step], model: Model) -> Verdict:
    """Return what comes of the shortest beginning of the history that cannot be explained: its last answer is to blame.

    A search of the whole looks ahead, and so may give up before it comes to what is wrong.
    """
    ends = sorted({step.ended for step in steps if step.ended < inf})
    shortest = bisect_left(ends, 1, key=lambda time: int(_search_until(time, steps, model).kind != "explained"))
    before = _search_until(ends[shortest - 1], steps, model) if shortest else Verdict("explained")
    step = next(step for step in steps if step.ended == ends[shortest])
    return Verdict(_search_until(ends[shortest], steps, model).kind, step, before.states, before.last)


def _search_until(time: float, steps: list[Step], model: Model) -> Verdict:
    """Search in what was known at a moment: who was answered later is not answered yet."""
    begun = [step for step in steps if step.began <= time]
    known = [step for step in begun if step.ended <= time]
    open_ = [step for step in begun if step.ended > time and not model.is_read(step.move)]
    return Search([*known, *(Step(step.move, step.operation, step.began) for step in open_)], model).run()


def _doubted(ledger: Ledger, broken: Container[Entity]) -> Iterator[Violation]:
    """Yield the refusals that none of their entities explains.  What is broken itself may explain anything.

    Most often one entity explains all that it may explain: only what is left is looked at one by one.
    """
    entities = {entity for doubt in ledger.doubts for entity, _ in doubt.steps}
    left = ledger.doubts
    for entity in sorted(entities):
        concerned = [doubt for doubt in left if entity in dict(doubt.steps)]
        if entity in broken or _explains(ledger, entity, concerned):
            left = [doubt for doubt in left if doubt not in concerned]
    for doubt in left:
        if not any(_explains(ledger, entity, [doubt]) for entity, _ in doubt.steps):
            yield Violation(str(doubt.order), doubt.operation, doubt.why, ledger.history(doubt.order))


def _explains(ledger: Ledger, entity: Entity, doubts: Sequence[Doubt]) -> bool:
    """Say whether an entity can be the reason of all these refusals: then these checkouts held nothing of it."""
    model = _model(ledger, entity, but=[doubt.operation for doubt in doubts])
    steps = ledger.steps[entity] + [dict(doubt.steps)[entity] for doubt in doubts]
    return Search(steps, model).run().kind == "explained"


def _why(verdict: Verdict) -> str:
    states = " or ".join(verdict.states[:STATES_SHOWN])
    if verdict.kind == "undecided":
        return f"undecided: too many possibilities.  So far: {states}"
    last = f", after {verdict.last.operation}" if verdict.last else ""
    return f"this answer cannot be explained.  At that time there could only be: {states}{last}"
