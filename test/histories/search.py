"""Can the steps of one entity be put into an order that explains every answer?  The search of Wing & Gong.

As Lowe has it: step through the answers in the order in which they came.  Before an answer is passed its step must have
been placed; others that were under way may be placed before it.  Tried configurations are remembered.  Besides:
* a read that fits is placed at once: it changes nothing, so later is never better;
* of equal moves the one whose answer comes first goes first: exchanging two equal moves is always possible;
* a step without an answer (`ended` is infinite) may be placed at any time, or never.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import Any, Literal, Protocol

import msgspec
from histories.model import Operation
from histories.windows import Room, TooMany, Windows

NODES_MAX = 20_000
NODES_MAX_PER_STEP = 20
CLOSING = -1


class Step(msgspec.Struct, frozen=True):
    """One move of one entity, to be placed at one moment between `began` and `ended`."""

    move: Hashable
    operation: Operation
    began: float
    ended: float = inf


class Pending(msgspec.Struct, frozen=True):
    """The moves that are under way and not placed: those that were answered, now or later, and the others.

    `later` returns the moves that begin before all of the answered ones have ended.
    """

    answered: Sequence[Any]
    unanswered: Sequence[Any]
    later: Callable[[], Sequence[Any]]


class Model(Protocol):
    """What an entity does.  States are hashable; moves are the model's own."""

    windows: Windows
    initial: Any

    def is_read(self, move: Any) -> bool:
        """Say whether the move changes nothing but what is held."""

    def after(self, state: Any, move: Any, room: Room) -> Iterable[Any]:
        """Return every state that the move may lead to: none if it cannot have been answered so in `state`.

        Where a read fits `state` as it is, this is the first.
        """

    def closed(self, state: Any, room: Room) -> Iterable[Any]:
        """Return every state that may be left once windows have closed."""

    def is_hopeless(self, state: Any, goal: Any, pending: Pending) -> bool:
        """Say whether it is certain that `goal`, or another move that was answered, cannot be placed any more."""

    def is_forced(self, state: Any, move: Any, goal: Any, pending: Sequence[Any]) -> bool:
        """Say whether placing `move` now is as good as anything else, if it leaves hope."""

    def describe(self, state: Any, room: Room) -> str:
        """Say what there is, for people."""


class Verdict(msgspec.Struct, frozen=True):
    """What came of it: if "stuck", the step that cannot be placed, what there was before it, and the last change."""

    kind: Literal["explained", "stuck", "undecided"]
    step: Step | None = None
    states: tuple[str, ...] = ()
    last: Step | None = None


Node = tuple[int, int, Any]
"""How many events are passed, the steps placed since as bits, the state."""


class Search:
    """One search.  `steps` are those of one entity, in any order."""

    def __init__(self, steps: Iterable[Step], model: Model, nodes_max: int = NODES_MAX) -> None:
        self._steps = sorted(steps, key=lambda step: step.ended)
        self._by_begin = sorted(self._steps, key=lambda step: step.began)
        self._is_read = [model.is_read(step.move) for step in self._steps]
        self._model = model
        self._nodes_max = nodes_max + NODES_MAX_PER_STEP * len(self._steps)
        self._events = self._timeline()
        self._rooms = [model.windows.room(time) for time, _, _ in self._events]
        self._active = list(self._under_way())
        self._furthest = 0
        self._states: dict[Any, None] = {}
        self._last: Step | None = None

    def run(self) -> Verdict:
        """Return whether there is an order."""
        try:
            return self._run()
        except TooMany:
            return self._verdict("undecided")

    def _run(self) -> Verdict:
        seen: set[Node] = set()
        placed: list[Step | None] = []
        stack: list[Iterator[tuple[Node, Step | None]]] = [iter([((0, 0, self._model.initial), None)])]
        while stack:
            del placed[len(stack) - 1 :]
            node, step = next(stack[-1], (None, None))
            if node is None:
                stack.pop()
            elif node not in seen:
                seen.add(node)
                placed.append(step)
                self._note(node, placed)
                if node[0] == len(self._events):
                    return self._explained(state=node[2], placed=placed)
                if len(seen) > self._nodes_max:
                    raise TooMany
                stack.append(self._next_nodes(node))
        return self._verdict("stuck")

    def _next_nodes(self, node: Node) -> Iterator[tuple[Node, Step | None]]:
        """Yield what may come next, and the step that is placed by it: the likeliest first."""
        event, placed, state = self._with_reads(node)
        goal = self._events[event][2]
        if goal == CLOSING:
            yield from self._passed(event, placed, state)
        elif placed >> goal & 1:
            yield from self._passed(event, placed & ~(1 << goal), state)
            return
        elif self._is_hopeless(event, placed, state):
            return
        for number in self._candidates(event, placed):
            nodes = self._placing(number, (event, placed, state))
            yield from ((node, self._steps[number]) for node in nodes)
            if len(nodes) == 1 and self._is_forced(number, (event, placed, state), nodes[0]):
                return

    def _placing(self, number: int, node: Node) -> list[Node]:
        event, placed, state = node
        after = self._model.after(state, self._steps[number].move, self._rooms[event])
        return [(event, placed | 1 << number, state) for state in after]

    def _passed(self, event: int, placed: int, state: Any) -> list[tuple[Node, Step | None]]:
        last = event + 1 == len(self._events)
        states = [state] if last else self._model.closed(state, self._rooms[event + 1])
        return [((event + 1, placed, state), None) for state in states]

    def _with_reads(self, node: Node) -> Node:
        """Place the reads that fit as things are."""
        event, placed, state = node
        for number in self._active[event]:
            is_open = self._is_read[number] and not placed >> number & 1
            if is_open and self._fits(state, self._steps[number].move, self._rooms[event]):
                placed |= 1 << number
        return event, placed, state

    def _fits(self, state: Any, move: Any, room: Room) -> bool:
        return any(after == state for after in islice(self._model.after(state, move, room), 1))

    def _candidates(self, event: int, placed: int) -> Iterator[int]:
        """Yield what may be placed, one of each equal move: what is answered first, first; so the goal comes first."""
        tried = set()
        for number in self._unplaced(event, placed):
            move = self._steps[number].move
            if move not in tried:
                tried.add(move)
                yield number

    def _unplaced(self, event: int, placed: int) -> list[int]:
        return [number for number in self._active[event] if not placed >> number & 1]

    def _is_hopeless(self, event: int, placed: int, state: Any) -> bool:
        goal = self._events[event][2]
        if goal == CLOSING:
            return False
        steps = [self._steps[number] for number in self._unplaced(event, placed)]
        answered = [step for step in steps if step.ended < inf]
        pending = Pending(
            [step.move for step in answered],
            [step.move for step in steps if step.ended == inf],
            lambda: self._later(event, answered[-1].ended),
        )
        return self._model.is_hopeless(state, self._steps[goal].move, pending)

    def _later(self, event: int, until: float) -> list[Any]:
        """Return the moves that begin after an event, until a time."""
        first = bisect_right(self._by_begin, self._events[event][0], key=lambda step: step.began)
        last = bisect_right(self._by_begin, until, key=lambda step: step.began)
        return [step.move for step in self._by_begin[first:last]]

    def _is_forced(self, number: int, node: Node, after: Node) -> bool:
        event, placed, state = node
        goal = self._events[event][2]
        if goal == CLOSING:
            return False
        others = [self._steps[other].move for other in self._unplaced(event, placed) if other != number]
        forced = self._model.is_forced(state, self._steps[number].move, self._steps[goal].move, others)
        return forced and not self._is_hopeless(*self._with_reads(after))

    def _note(self, node: Node, placed: list[Step | None]) -> None:
        """Remember how far it went, for the report."""
        event, _, state = node
        if event > self._furthest:
            self._furthest, self._states = event, {}
            self._last = self._last_write(placed)
        if event == self._furthest:
            self._states[state] = None

    def _explained(self, state: Any, placed: list[Step | None]) -> Verdict:
        room = self._rooms[-1] if self._rooms else ()
        return Verdict("explained", None, (self._model.describe(state, room),), self._last_write(placed))

    def _last_write(self, placed: list[Step | None]) -> Step | None:
        writes = (step for step in reversed(placed) if step is not None and not self._model.is_read(step.move))
        return next(writes, None)

    def _verdict(self, kind: Literal["stuck", "undecided"]) -> Verdict:
        event = self._furthest
        described = {self._model.describe(state, self._rooms[event]): None for state in self._states}
        return Verdict(kind, self._steps[self._events[event][2]], tuple(described), self._last)

    def _timeline(self) -> list[tuple[float, bool, int]]:
        """Return the answers, and the closings of windows after what is answered at the same time."""
        answers = [(step.ended, False, number) for number, step in enumerate(self._steps) if step.ended < inf]
        closings = {time for time in self._model.windows.closings if time < inf}
        return sorted(answers + [(time, True, CLOSING) for time in closings])

    def _under_way(self) -> Iterator[tuple[int, ...]]:
        """Yield, for each event, the steps that have begun and are not passed, by when they are answered."""
        waiting = sorted(range(len(self._steps)), key=lambda number: self._steps[number].began, reverse=True)
        active: list[int] = []
        for time, _, goal in self._events:
            while waiting and self._steps[waiting[-1]].began <= time:
                insort(active, waiting.pop())
            yield tuple(active)
            if goal != CLOSING:
                active.remove(goal)
