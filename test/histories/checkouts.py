"""What checkouts do to items and users.

A paid one takes its lines and its cost, once an order.  A refused one may hold them while it is open, and its refusal
has a reason.  One whose end nobody knows may have done either, or do it later.

What an order consisted of when it was checked out is not always certain: then every possibility is allowed.  A checkout
that finds its order being checked out is told the other one's outcome: so the reason of a refusal may be older than the
call, as old as the call that opened the checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import msgspec
from histories.amounts import Enough, Missed, Short, Taken
from histories.attempts import Attempt
from histories.ledger import Doubt, Entity, Hold, Ledger
from histories.orders import Added, Facts, Random, is_numbered
from histories.search import Step
from histories.windows import TooMany

CHOICES_MAX = 300
KINDS = ("item", "user")

Choices = frozenset[int]
"""Amounts, one of which is right; 0 if it may have nothing to do with it."""
Touched = list[tuple[Entity, Choices]]
Values = Callable[[Added], Iterable[int]]


class Addition(msgspec.Struct, frozen=True):
    """A line that was added, or perhaps."""

    move: Added
    is_done: bool
    began: float
    ended: float


class Base(msgspec.Struct, frozen=True):
    """What an order began with: it was created, or replaced, somewhere between `began` and `ended`."""

    facts: Facts | Random
    began: float
    ended: float


class Order(msgspec.Struct):
    """All that a history says of one order.  `found` are reads with what they found: facts, and whether paid."""

    bases: list[Base]
    additions: list[Addition]
    checkouts: list[Attempt]
    found: list[tuple[Attempt, Facts, bool]]

    def bases_during(self, began: float, ended: float) -> list[Base]:
        """Return what the order may have begun with at some moment of a call."""
        return [base for base in self.bases if base.began <= ended and not self._is_over(base, began)]

    def _is_over(self, base: Base, time: float) -> bool:
        return any(base.ended < other.began and other.ended < time for other in self.bases)


class Content(msgspec.Struct, frozen=True):
    """What may have been checked out: one of `bases`, with additions that are certain and others that are not."""

    bases: tuple[Base, ...]
    certain: tuple[Added, ...]
    possible: tuple[Added, ...]

    def quantities(self, item_id: str) -> Choices:
        """Return how many of an item there may be in it."""
        start = frozenset().union(*(_quantities(base.facts, item_id) for base in self.bases))
        return _added_up(start, self.certain, self.possible, lambda line: _quantity(line, item_id))

    def costs(self, user_id: str) -> Choices:
        """Return what a user may have to pay for it."""
        mine = [base.facts for base in self.bases if _may_be_of(base.facts, user_id)]
        start = frozenset(facts.total_cost for facts in mine)
        costs = _added_up(start, self.certain, self.possible, _costs)
        certainly = all(isinstance(base.facts, Facts) and base.facts.user_id == user_id for base in self.bases)
        return costs if certainly else costs | {0}


def _quantities(facts: Facts | Random, item_id: str) -> Choices:
    if isinstance(facts, Facts):
        return frozenset({dict(facts.lines).get(item_id, 0)})
    if not is_numbered(item_id, facts.items):
        return frozenset({0})
    return frozenset({2}) if facts.items == 1 else frozenset({0, 1})


def _may_be_of(facts: Facts | Random, user_id: str) -> bool:
    return facts.user_id == user_id if isinstance(facts, Facts) else is_numbered(user_id, facts.users)


def _quantity(line: Added, item_id: str) -> tuple[int, ...]:
    return (line.quantity if line.item_id == item_id else 0,)


def _costs(line: Added) -> tuple[int, ...]:
    return tuple(line.quantity * price for price in line.prices)


def _added_up(start: Choices, certain: Iterable[Added], possible: Iterable[Added], values: Values) -> Choices:
    sums = start
    for line in certain:
        sums = frozenset(total + value for total in sums for value in values(line))
    for line in possible:
        sums |= frozenset(total + value for total in sums for value in values(line))
        if len(sums) > CHOICES_MAX:
            raise TooMany
    return sums


class Trace:
    """Enters the checkouts of one order into the ledger.  `named` are all items and users of the history."""

    def __init__(self, entity: Entity, order: Order, named: Iterable[Entity], ledger: Ledger) -> None:
        self._entity = entity
        self._order = order
        self._named = list(named)
        self._ledger = ledger

    def enter(self) -> None:
        """Enter all of them."""
        alone, loose = self._sorted_out()
        for base, attempts in alone:
            paid_by = self._enter_paid(base, attempts, loose)
            for attempt in attempts:
                if not attempt.is_done and attempt.began <= paid_by:
                    self._enter_unpaid(base, attempt, paid_by)
        for number, attempt in enumerate(loose):
            self._enter_loose(number, attempt)

    def _sorted_out(self) -> tuple[list[tuple[Base, list[Attempt]]], list[Attempt]]:
        """Return the checkouts by the one base that they can be of, and those that can be of several."""
        bases = [(attempt, self._order.bases_during(attempt.began, attempt.ended)) for attempt in self._order.checkouts]
        alone = [(base, [attempt for attempt, few in bases if few == [base]]) for base in self._order.bases]
        return alone, [attempt for attempt, few in bases if len(few) > 1]

    # --- paid

    def _enter_paid(self, base: Base, attempts: list[Attempt], loose: list[Attempt]) -> float:
        """Enter what was taken, once; return by when, which is never if it is not known to be paid."""
        found = [entry for entry in self._order.found if entry[2] and self._is_only(base, entry[0])]
        proofs = [attempt for attempt in attempts if attempt.is_done] + [attempt for attempt, _, _ in found]
        proof = min(proofs, key=lambda attempt: attempt.ended, default=None)
        if proof is None:
            return inf
        content = _exactly(base, found[0][1]) if found else self._paid_content(base, proof.ended)
        openers = [attempt for attempt in attempts + loose if not attempt.status and attempt.began <= proof.ended]
        refused = [attempt.began for attempt in attempts if attempt.status and attempt.began <= proof.ended]
        if openers:
            began = max(min(attempt.began for attempt in openers), *refused, -inf)
            self._take(content, Step(None, proof.operation, began, proof.ended))
        return proof.ended

    def _is_only(self, base: Base, during: Attempt | Addition) -> bool:
        return self._order.bases_during(during.began, during.ended) == [base]

    def _paid_content(self, base: Base, paid_by: float) -> Content:
        mine = [line for line in self._order.additions if base.began <= line.ended and line.began <= paid_by]
        certain = [line for line in mine if line.is_done and base.ended < line.began and self._is_only(base, line)]
        return _content((base,), certain, mine)

    def _take(self, content: Content, step: Step) -> None:
        for entity, choices in self._touched(content):
            move = Taken(tuple(sorted(choices)))
            self._ledger.step(entity, Step(move, step.operation, step.began, step.ended))

    # --- not paid, or nobody knows

    def _enter_unpaid(self, base: Base, attempt: Attempt, paid_by: float) -> None:
        began = self._opened(attempt)
        content = self._content((base,), began, attempt.ended)
        touched = [(entity, choices) for entity, choices in self._touched(content) if any(choices)]
        items = [entity for entity, _ in touched if entity.kind == "item"]
        for entity, choices in touched:
            refuses = (attempt.status == 402 and entity.kind == "user") or (attempt.status == 409 and items == [entity])
            if not refuses:
                self._hold(base, attempt, entity, choices, min(attempt.ended, paid_by))
        if attempt.status and isinstance(base.facts, Facts):
            self._enter_reason(base, attempt, began, self._touched(content))

    def _opened(self, attempt: Attempt) -> float:
        """Return when the checkout may have been opened that this call was told about."""
        return min(
            other.began
            for other in self._order.checkouts
            if other is attempt or (_may_share(other, attempt) and other.began <= attempt.began <= other.ended)
        )

    def _enter_reason(self, base: Base, attempt: Attempt, began: float, touched: Touched) -> None:
        """Enter why it was refused: somewhere between the opening of the checkout and the answer, this was so."""

        def step(move: object) -> Step:
            return Step(move, attempt.operation, began, attempt.ended)

        short = {kind: [(e, step(Short(max(c)))) for e, c in touched if e.kind == kind and any(c)] for kind in KINDS}
        match attempt.status:
            case 409:
                self._doubt(attempt, short["item"], "refused, but there was enough of everything")
            case 402:
                self._doubt(attempt, short["user"], "refused, but it costs nothing")
                for entity, choices in touched:
                    if entity.kind == "item" and min(choices):
                        self._ledger.step(entity, step(Enough(min(choices))))
            case 404 if base.ended < began:
                missed = [(entity, step(Missed())) for entity, _ in touched]
                self._doubt(attempt, missed, "refused, but the order, its items and its user are there")
            case 404:
                pass
            case status:
                self._ledger.violate(self._entity, attempt.operation, f"no checkout is answered {status}")

    def _doubt(self, attempt: Attempt, steps: list[tuple[Entity, Step]], why: str) -> None:
        self._ledger.doubt(Doubt(self._entity, attempt.operation, why, tuple(steps)))

    def _enter_loose(self, number: int, attempt: Attempt) -> None:
        """Enter a checkout during which the order was replaced: it may have taken something, or not."""
        ended = attempt.ended if attempt.status else inf
        bases = tuple(self._order.bases_during(attempt.began, attempt.ended))
        content = self._content(bases, attempt.began, attempt.ended)
        for entity, choices in self._touched(content):
            self._hold(number, attempt, entity, choices, ended)

    def _hold(self, part: object, attempt: Attempt, entity: Entity, choices: Choices, ended: float) -> None:
        if any(choices):
            hold = Hold((self._entity, part), choices - {0}, attempt.began, ended, attempt.operation)
            self._ledger.hold(entity, hold)

    # --- what is in it

    def _content(self, bases: tuple[Base, ...], began: float, ended: float) -> Content:
        mine = [line for line in self._order.additions if line.began <= ended]
        late = max(base.ended for base in bases)
        certain = [line for line in mine if line.is_done and late < line.began and line.ended < began]
        return _content(bases, certain, mine)

    def _touched(self, content: Content) -> Touched:
        """Return the items and users that may be concerned, with how many pieces and how much money."""
        touched = [(item, content.quantities(item.id)) for item in self._possible(content, "item")]
        users = [(user, content.costs(user.id)) for user in self._possible(content, "user")]
        return [(item, choices) for item, choices in touched if any(choices)] + users

    def _possible(self, content: Content, kind: str) -> list[Entity]:
        ids = {line.item_id for line in content.certain + content.possible} if kind == "item" else set()
        for base in content.bases:
            if isinstance(base.facts, Facts):
                ids |= dict(base.facts.lines).keys() if kind == "item" else {base.facts.user_id}
            else:
                ids |= {entity.id for entity in self._named if entity.kind == kind}
        return [Entity(kind, entity_id) for entity_id in sorted(ids)]


def _content(bases: tuple[Base, ...], certain: list[Addition], mine: list[Addition]) -> Content:
    possible = (line.move for line in mine if line not in certain)
    return Content(bases, tuple(line.move for line in certain), tuple(possible))


def _exactly(base: Base, facts: Facts) -> Content:
    return Content((Base(facts, base.began, base.ended),), (), ())


def _may_share(opener: Attempt, other: Attempt) -> bool:
    """Say whether two calls may have been told the outcome of the same checkout."""
    return not opener.is_done and (opener.status in (0, other.status) or not other.status)
