"""What a history says of each entity: steps to be placed, windows in which something may have been held, and doubts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable

import msgspec
from histories.attempts import Attempt, Kind, Violation
from histories.model import Operation
from histories.search import Step
from histories.windows import Window


class Entity(msgspec.Struct, frozen=True, order=True):
    """An item, a user or an order."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Doubt(msgspec.Struct, frozen=True):
    """A refusal that one of several entities must explain; `order` is whose checkout it was."""

    order: Entity
    operation: Operation
    why: str
    steps: tuple[tuple[Entity, Step], ...]


class Hold(msgspec.Struct, frozen=True):
    """A checkout may have held one of `amounts` for a while.  Two of one `holder` never hold at the same time."""

    holder: Hashable
    amounts: frozenset[int]
    began: float
    ended: float
    operation: Operation


class Ledger:
    """Collects it all."""

    def __init__(self) -> None:
        self.steps: defaultdict[Entity, list[Step]] = defaultdict(list)
        self.doubts: list[Doubt] = []
        self.violations: list[Violation] = []
        self._holds: defaultdict[Entity, list[Hold]] = defaultdict(list)
        self._operations: defaultdict[Entity, dict[int, Operation]] = defaultdict(dict)

    def place(self, entity: Entity, move: Hashable, attempt: Attempt) -> None:
        """A move of an entity, somewhere within an attempt."""
        self.step(entity, Step(move, attempt.operation, attempt.began, attempt.ended))

    def step(self, entity: Entity, step: Step) -> None:
        """Add a step."""
        self.steps[entity].append(step)
        self._operations[entity][id(step.operation)] = step.operation

    def hold(self, entity: Entity, hold: Hold) -> None:
        """Something may have been held."""
        self._holds[entity].append(hold)
        self._operations[entity][id(hold.operation)] = hold.operation

    def doubt(self, doubt: Doubt) -> None:
        """One of several must explain it; one of one is a step like any other."""
        if len(doubt.steps) == 1:
            self.step(*doubt.steps[0])
        elif doubt.steps:
            self.doubts.append(doubt)
        else:
            self.violate(doubt.order, doubt.operation, doubt.why)

    def violate(self, entity: Entity, operation: Operation, why: str, kind: Kind = "broken") -> None:
        """It is wrong whatever else is true."""
        self._operations[entity][id(operation)] = operation
        self.violations.append(Violation(str(entity), operation, why, self.history(entity), kind))

    def history(self, entity: Entity) -> tuple[Operation, ...]:
        """Return the calls that have to do with an entity, by when they began."""
        return tuple(sorted(self._operations[entity].values(), key=lambda operation: operation.began))

    def windows(self, entity: Entity, but: Collection[Operation] = ()) -> list[Window]:
        """Return when something may have been held, `but` by some calls; windows of one holder that overlap are one."""
        others = {id(operation) for operation in but}
        same: defaultdict[Hashable, list[Hold]] = defaultdict(list)
        for hold in sorted(self._holds[entity], key=lambda hold: hold.began):
            if id(hold.operation) not in others:
                same[hold.holder].append(hold)
        return [window for holds in same.values() for window in _joined(holds)]


def _joined(holds: list[Hold]) -> list[Window]:
    """Return windows that do not overlap, of holds of one holder, in the order in which they begin."""
    groups: list[list[Hold]] = []
    for hold in holds:
        if groups and any(hold.began <= other.ended for other in groups[-1]):
            groups[-1].append(hold)
        else:
            groups.append([hold])
    return [_window(group) for group in groups]


def _window(holds: list[Hold]) -> Window:
    amounts = frozenset().union(*(hold.amounts for hold in holds))
    began, ended = min(hold.began for hold in holds), max(hold.ended for hold in holds)
    return Window(tuple(sorted(amounts)), began, ended, len(holds))
