"""An order as a sequence of moves: what it is made of, whether it is paid, whether it is being checked out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec
from histories.search import Pending
from histories.windows import Held, Room, Windows

LINES_MAX = 100
AMOUNT_MAX = 10**15 - 1

Lines = tuple[tuple[str, int], ...]
"""Item id and quantity, sorted."""


class Facts(msgspec.Struct, frozen=True):
    """What an order is made of."""

    user_id: str
    lines: Lines
    total_cost: int


class Random(msgspec.Struct, frozen=True):
    """What batch_init made, before anybody has looked: two random items for a random user.  `added` came on top."""

    items: int
    users: int
    total_cost: int
    added: Lines = ()


class Created(msgspec.Struct, frozen=True):
    """The order came to be, with nothing in it."""

    user_id: str


class Replaced(msgspec.Struct, frozen=True):
    """batch_init."""

    by: Facts | Random


class Added(msgspec.Struct, frozen=True):
    """A line was added, at one of these prices."""

    item_id: str
    quantity: int
    prices: tuple[int, ...]


class Paid(msgspec.Struct, frozen=True):
    """Somebody was told that it is paid, or nobody knows whether it is."""


class Found(msgspec.Struct, frozen=True):
    """Somebody read this."""

    facts: Facts
    paid: bool


class Missed(msgspec.Struct, frozen=True):
    """Somebody was told that there is no such order."""


class Closed(msgspec.Struct, frozen=True):
    """Somebody was told that nothing can be added: it is paid, or being checked out, or would be too large."""

    item_id: str
    quantity: int
    prices: tuple[int, ...]


class Unpaid(msgspec.Struct, frozen=True):
    """A checkout was refused; `or_missing`, because there is no such order or no such item or user."""

    or_missing: bool = False


Write = Created | Replaced | Added | Paid
Read = Found | Missed | Closed | Unpaid
Move = Write | Read


class State(msgspec.Struct, frozen=True):
    """`held` says whether it is being checked out."""

    facts: Facts | Random
    paid: bool
    held: Held


class Orders:
    """The model of one order; see search.Model.  Unless it is replaced, lines only come and paid remains paid."""

    initial: State | None = None

    def __init__(self, windows: Windows, *, is_replaced: bool) -> None:
        self.windows = windows
        self._is_replaced = is_replaced

    def is_read(self, move: Move) -> bool:
        return isinstance(move, Read)

    def after(self, state: State | None, move: Move, room: Room) -> Iterable[State | None]:
        match move:
            case Created(user_id):
                return [state or State(Facts(user_id, (), 0), paid=False, held=self.windows.nothing_held)]
            case Replaced(facts):
                return [State(facts, paid=False, held=self.windows.nothing_held if state is None else state.held)]
            case Missed():
                return [] if state else [None]
            case Unpaid(or_missing):
                return [state] if (state is None and or_missing) or (state and not state.paid) else []
            case _:
                return [] if state is None else _after(state, move, room)

    def closed(self, state: State | None, room: Room) -> Iterable[State | None]:
        if state is None:
            return [None]
        return [msgspec.structs.replace(state, held=held) for held in state.held.closed(room)]

    def is_hopeless(self, state: State | None, goal: Move, pending: Pending) -> bool:
        if self._is_replaced or state is None or isinstance(state.facts, Random):
            return False
        moves = (*pending.answered, *pending.unanswered)
        return any(_is_lost(state, move) for move in pending.answered) or _is_out_of_reach(state, goal, moves)

    def is_forced(self, state: State | None, move: Move, goal: Move, pending: Sequence[Move]) -> bool:
        """Say whether to place `move` now is as good as any other way, if it leaves hope.

        Whatever else is pending can come after it: lines are added in any order, and a read that has to come before it
        would have no hope after it.
        """
        if self._is_replaced or state is None or isinstance(state.facts, Random):
            return False
        match move:
            case Added(item_id):
                rivals = any(
                    isinstance(other, Added) and other.item_id == item_id and other != move for other in pending
                )
                return not rivals and (move == goal or _needs_line(state.facts, goal, item_id))
            case Paid():
                additions = any(isinstance(other, Added) for other in pending)
                return not additions and (move == goal or (isinstance(goal, Found) and goal.paid))
            case _:
                return False

    def describe(self, state: State | None, room: Room) -> str:
        """Say what there is, for people."""
        if state is None:
            return "no such entity"
        facts = state.facts
        lines = "two random items" if isinstance(facts, Random) else dict(facts.lines)
        doing = "paid" if state.paid else "being checked out" if state.held.amount(room) else "unpaid"
        return f"{doing}, {lines}, total {facts.total_cost}"


def _after(state: State, move: Added | Paid | Found | Closed, room: Room) -> list[State]:
    match move:
        case Added():
            return [] if state.paid else [_with(_open(state), facts) for facts in _longer(state.facts, move)]
        case Paid():
            return [State(state.facts, paid=True, held=_open(state).held)]
        case Found(facts, paid):
            return [_with(state, facts)] if paid == state.paid and _matches(state.facts, facts) else []
        case Closed():
            return [state] if state.paid or _is_too_large(state.facts, move) else _being_checked_out(state, room)
        case _:
            assert_never(move)


def _with(state: State, facts: Facts | Random) -> State:
    return State(facts, state.paid, state.held)


def _open(state: State) -> State:
    """Return the order while nobody checks it out."""
    return State(state.facts, state.paid, state.held.fewer()[-1])


def _being_checked_out(state: State, room: Room) -> list[State]:
    ways = [State(state.facts, state.paid, held) for held in state.held.ways(room) if held.amount(room)]
    return ways[:1]


def _longer(facts: Facts | Random, line: Added | Closed) -> list[Facts | Random]:
    """Return the order with the line, for each price that it may have had, as far as it is allowed."""
    longer: list[Facts | Random] = []
    for price in line.prices:
        total = facts.total_cost + price * line.quantity
        lines = _plus(facts.added if isinstance(facts, Random) else facts.lines, line)
        if isinstance(facts, Random):
            longer.append(Random(facts.items, facts.users, total, lines))
        elif len(lines) <= LINES_MAX and total <= AMOUNT_MAX and dict(lines)[line.item_id] <= AMOUNT_MAX:
            longer.append(Facts(facts.user_id, lines, total))
    return longer


def _plus(lines: Lines, line: Added | Closed) -> Lines:
    quantities = dict(lines)
    quantities[line.item_id] = quantities.get(line.item_id, 0) + line.quantity
    return tuple(sorted(quantities.items()))


def _is_too_large(facts: Facts | Random, line: Closed) -> bool:
    return len(_longer(facts, line)) < len(line.prices)


def _matches(facts: Facts | Random, found: Facts) -> bool:
    """Say whether this is what was found, or may have been made by batch_init."""
    if isinstance(facts, Facts):
        return facts == found
    drawn = Counter(dict(found.lines))
    drawn.subtract(dict(facts.added))
    items = {item_id: count for item_id, count in drawn.items() if count}
    quantities = [2] if facts.items == 1 else [1, 1]
    return (
        sorted(items.values()) == quantities
        and all(is_numbered(item_id, facts.items) for item_id in items)
        and is_numbered(found.user_id, facts.users)
        and found.total_cost == facts.total_cost
    )


def is_numbered(entity_id: str, count: int) -> bool:
    """Say whether batch_init of so many makes this entity."""
    return entity_id.isascii() and entity_id.isdigit() and str(int(entity_id)) == entity_id and int(entity_id) < count


def _needs_line(facts: Facts, goal: Move, item_id: str) -> bool:
    return isinstance(goal, Found) and dict(goal.facts.lines).get(item_id, 0) > dict(facts.lines).get(item_id, 0)


def _is_lost(state: State, move: Move) -> bool:
    """Say whether `move` is impossible from now on."""
    assert isinstance(state.facts, Facts)
    match move:
        case Found(facts, paid):
            return (state.paid and (not paid or facts != state.facts)) or not _is_below(state.facts, facts)
        case Added() | Unpaid():
            return state.paid
        case Missed():
            return True
        case _:
            return False


def _is_below(facts: Facts, later: Facts) -> bool:
    lines = dict(later.lines)
    below = all(count <= lines.get(item_id, 0) for item_id, count in facts.lines)
    return below and facts.user_id == later.user_id and facts.total_cost <= later.total_cost


def _is_out_of_reach(state: State, goal: Move, pending: Sequence[Move]) -> bool:
    """Say whether what is pending cannot lead from here to what was found."""
    assert isinstance(state.facts, Facts)
    if not isinstance(goal, Found):
        return False
    if goal.paid and not state.paid and Paid() not in pending:
        return True
    additions = [move for move in pending if isinstance(move, Added)]
    missing = Counter(dict(goal.facts.lines))
    missing.subtract(dict(state.facts.lines))
    return any(not _is_reachable(item_id, count, additions) for item_id, count in missing.items()) or (
        not any(missing.values()) and goal.facts.total_cost != state.facts.total_cost
    )


def _is_reachable(item_id: str, count: int, additions: Iterable[Added]) -> bool:
    return count <= sum(addition.quantity for addition in additions if addition.item_id == item_id)
