"""An item or a user as a sequence of moves: how much is free to sell or to spend, and an item's price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec
from histories.search import Pending
from histories.windows import Held, Room, Windows

AMOUNT_MAX = 10**15 - 1
CROWD = 8


class Created(msgspec.Struct, frozen=True):
    """The entity came to be, with nothing in it."""

    price: int = 0


class Replaced(msgspec.Struct, frozen=True):
    """batch_init: so much is free from now on.  What was held stays held, and comes on top when it is given back."""

    amount: int
    price: int = 0


class Changed(msgspec.Struct, frozen=True):
    """So much was added (taken, if negative).  `answer` is what was then said to be free; None if nobody heard it."""

    by: int
    answer: int | None = None


class Taken(msgspec.Struct, frozen=True):
    """A paid checkout took one of these amounts (it is not always known what an order consisted of)."""

    amounts: tuple[int, ...]


class Found(msgspec.Struct, frozen=True):
    """Somebody read so much, and this price."""

    amount: int
    price: int = 0


class Missed(msgspec.Struct, frozen=True):
    """Somebody was told that there is no such entity."""


class Short(msgspec.Struct, frozen=True):
    """Somebody was told that there is less than this."""

    amount: int


class Enough(msgspec.Struct, frozen=True):
    """Somebody learned that there is at least this: a checkout that was refused for another reason."""

    amount: int


class Full(msgspec.Struct, frozen=True):
    """Somebody was told that with so much more it would be more than can be counted."""

    amount: int


Write = Created | Replaced | Changed | Taken
Read = Found | Missed | Short | Enough | Full
Move = Write | Read


class State(msgspec.Struct, frozen=True):
    """`amount` counts what is held."""

    amount: int
    price: int
    held: Held


class Amounts:
    """The model of one item or user; see search.Model.

    `sold_max` is what paid checkouts took at most: the system may count it against the limit for good.
    """

    initial: State | None = None

    def __init__(self, windows: Windows, sold_max: int = 0) -> None:
        self.windows = windows
        self._most = AMOUNT_MAX - sold_max

    def is_read(self, move: Move) -> bool:
        return isinstance(move, Read)

    def after(self, state: State | None, move: Move, room: Room) -> Iterable[State | None]:
        match move:
            case Created(price):
                return [state or State(0, price, self.windows.nothing_held)]
            case Missed():
                return [] if state else [None]
            case Taken(amounts) if state is None:
                return [None] if 0 in amounts else []
            case Full(amount):
                return [state] if state and state.amount + amount > self._most else []
            case Replaced():
                return _replaced(state or State(0, 0, self.windows.nothing_held), move, room)
            case _:
                return [] if state is None else _after(state, move, room)

    def closed(self, state: State | None, room: Room) -> Iterable[State | None]:
        if state is None:
            return [None]
        return [msgspec.structs.replace(state, held=held) for held in state.held.closed(room)]

    def is_hopeless(self, state: State | None, _goal: Move, pending: Pending) -> bool:
        """Say whether an amount that was told is out of reach.  Looked at when much is under way: it takes time."""
        if state is None or len(pending.answered) < CROWD:
            return False
        wanted = _wanted(pending.answered)
        changes = [
            move for move in (*pending.answered, *pending.unanswered, *pending.later()) if isinstance(move, Write)
        ]
        if any(isinstance(move, Created | Replaced) for move in changes):
            return False
        if max(wanted, default=0) > state.amount + sum(
            max(0, move.by) for move in changes if isinstance(move, Changed)
        ):
            return True
        return _is_path(state, changes) and not wanted <= _reachable(state.amount, changes)

    def is_forced(self, _state: State | None, _move: Move, _goal: Move, _pending: Iterable[Move]) -> bool:
        return False

    def describe(self, state: State | None, room: Room) -> str:
        """Say what there is, for people."""
        if state is None:
            return "no such entity"
        held = state.held.amount(room)
        return f"{state.amount - held}" + (f" ({held} more held by checkouts)" if held else "")


def _wanted(moves: Iterable[Move]) -> set[int]:
    """Return the amounts from which moves start."""
    found = {move.amount for move in moves if isinstance(move, Found)}
    return found | {move.answer - move.by for move in moves if isinstance(move, Changed) and move.answer is not None}


def _is_path(state: State, changes: Iterable[Move]) -> bool:
    """Say whether all changes were answered: then each leads from one amount to another."""
    return not state.held.now and all(isinstance(move, Changed) and move.answer is not None for move in changes)


def _reachable(amount: int, changes: Iterable[Move]) -> set[int]:
    ways: defaultdict[int, set[int]] = defaultdict(set)
    for move in changes:
        if isinstance(move, Changed) and move.answer is not None:
            ways[move.answer - move.by].add(move.answer)
    reached, new = {amount}, [amount]
    while new:
        further = ways[new.pop()] - reached
        reached |= further
        new += further
    return reached


def _replaced(state: State, move: Replaced, room: Room) -> Iterator[State]:
    for held in state.held.ways(room):
        yield State(move.amount + held.amount(room), move.price, held)


def _after(state: State, move: Changed | Taken | Found | Short | Enough, room: Room) -> Iterator[State]:
    match move:
        case Changed(by, None):
            return (_changed(way, by) for way in _with_enough(state, -by, room))
        case Changed(by, int() as answer):
            return (_changed(way, by) for way in _exactly(state, answer - by, room)) if answer >= by else iter(())
        case Taken(amounts):
            return (_changed(way, -amount) for amount in amounts for way in _with_enough(state, amount, room))
        case Found(amount, price):
            return _exactly(state, amount, room) if price == state.price else iter(())
        case Short(amount):
            return _short(state, amount, room)
        case Enough(amount):
            return _with_enough(state, amount, room)
    raise AssertionError(move)


def _changed(state: State, by: int) -> State:
    return State(state.amount + by, state.price, state.held)


def _exactly(state: State, amount: int, room: Room) -> Iterator[State]:
    """Yield how it can be held and given back so that exactly so much is free."""
    fits = state.amount - state.held.amount(room) == amount
    yield from [state] * fits
    for held in state.held.ways_to(state.amount - amount, state.amount - amount, room)[fits:]:
        yield State(state.amount, state.price, held)


def _short(state: State, amount: int, room: Room) -> Iterator[State]:
    """Yield how it can be held and given back so that less is free."""
    if state.amount - state.held.amount(room) < amount:
        yield state
        return
    for held in state.held.ways_to(state.amount - amount + 1, state.amount, room):
        yield State(state.amount, state.price, held)


def _with_enough(state: State, least: float, room: Room) -> Iterator[State]:
    """Yield how to give back as little as possible so that enough is free: to give back more is possible later."""
    if state.amount - state.held.amount(room) >= least:
        yield state
        return
    fits = [held for held in state.held.fewer() if state.amount - held.amount(room) >= least]
    for held in fits:
        if not any(held.is_below(other) for other in fits):
            yield State(state.amount, state.price, held)
