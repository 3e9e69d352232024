"""What was asked for: all calls with the same Idempotency-Key and the same path are one attempt, with one answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import inf
from typing import Any, Literal

import msgspec
from histories.model import NOT_TRIED, Call, Invocation, Ok, Operation, Outcome, Refused, Unknown, parse

SAYS_NOTHING = (400, 405, 413, 414, 422, 431, *NOT_TRIED)
"""Refusals that have nothing to do with what there is: of the call as such, or of the moment."""

Kind = Literal["broken", "undecided"]


class Violation(msgspec.Struct, frozen=True):
    """The call that cannot be explained, and why; `kind` is "undecided" when a check would have taken too long."""

    entity: str
    call: Operation
    why: str
    history: tuple[Operation, ...] = ()
    kind: Kind = "broken"

    def __str__(self) -> str:
        return "\n    ".join([f"{self.entity}: {self.call}: {self.why}", *map(str, self.history)])


class Malformed(Exception):
    """An answer has not the fields that api.md gives it."""


class Attempt(msgspec.Struct, frozen=True):
    """What was asked for between its first call's begin and its first answer: `ended` is infinite without one."""

    call: Call
    operation: Operation
    began: float
    ended: float = inf

    @property
    def outcome(self) -> Outcome:
        return self.operation.outcome

    @property
    def is_done(self) -> bool:
        return isinstance(self.outcome, Ok)

    @property
    def status(self) -> int:
        """Return the status of a refusal, else 0."""
        return self.outcome.status if isinstance(self.outcome, Refused) else 0

    def field(self, name: str, kind: type[Any]) -> Any:
        """Return a field of the answer."""
        body = self.outcome.body if isinstance(self.outcome, Ok) else None
        value = body.get(name) if isinstance(body, dict) else None
        if type(value) is not kind:
            raise Malformed(f"its answer has no {name} that is of type {kind.__name__}")
        return value

    def number(self) -> int:
        """Return the number at the end of the answer's text."""
        found = re.search(r"\d+$", str(self.outcome.body)) if isinstance(self.outcome, Ok) else None
        if found is None:
            raise Malformed("its answer does not end with the new amount")
        return int(found[0])


def attempts_of(operations: Iterable[Operation]) -> tuple[list[Attempt], list[Violation]]:
    """Return the attempts that say something, and what was answered once so and once otherwise."""
    groups: dict[object, list[Operation]] = {}
    for number, operation in enumerate(operations):
        if _status(operation.outcome) not in NOT_TRIED:
            groups.setdefault(_identity(number, operation.invocation), []).append(operation)
    attempts, violations = [], []
    for group in groups.values():
        violations += _differences(group)
        attempts += _attempt(group)
    return attempts, violations


def _identity(number: int, invocation: Invocation) -> object:
    if invocation.key is None or invocation.method == "GET":
        return number
    return invocation.key, invocation.method, invocation.path


def _differences(group: list[Operation]) -> list[Violation]:
    answered = sorted(filter(_is_answered, group), key=_end)
    for later in answered[1:]:
        if later.outcome != answered[0].outcome:
            why = f"the same call with the same key was answered otherwise before: {answered[0]}"
            return [Violation(f"key {later.invocation.key}", later, why, tuple(group))]
    return []


def _attempt(group: list[Operation]) -> list[Attempt]:
    answered = sorted(filter(_is_answered, group), key=_end)
    first = answered[0] if answered else group[0]
    call, status = parse(first.invocation), _status(first.outcome)
    if call is None:
        assert status, f"{first}: no call of api.md, and not refused"
        return []
    began = min(operation.began for operation in group)
    return [] if status in SAYS_NOTHING else [Attempt(call, first, began, _end(first) if answered else inf)]


def _is_answered(operation: Operation) -> bool:
    return not isinstance(operation.outcome, Unknown)


def _end(operation: Operation) -> float:
    assert operation.ended is not None, f"{operation}: an answer without a time"
    return operation.ended


def _status(outcome: Outcome) -> int:
    return outcome.status if isinstance(outcome, Refused) else 0
