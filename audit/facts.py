"""A fact: one message of a log, and what its partition made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from common.decision import Decision, Entity, Send
from common.messages import Letter, Request


class Fact(msgspec.Struct, frozen=True):
    """One message.

    `id` is "<partition>-<offset>-<index>", `time_ms` its record's.  `raw` is the message as the log has it.
    `decision` is None for what was not decided: a letter that was dropped, a request that was told its result again.
    `before` has the entities that the decision writes, as they were.  A dead letter (`is_dead`) was skipped: its
    decision is no more than an excuse.
    """

    id: str
    partition: str
    time_ms: int
    envelope: Request[Any] | Letter[Any]
    raw: bytes
    decision: Decision | None
    before: dict[str, Entity | None] = {}
    is_dead: bool = False

    @property
    def message(self) -> Any:
        """What was said, without its envelope."""
        return self.envelope.message

    @property
    def source(self) -> str:
        """The partition that a letter came from in the first place; "" for a request."""
        envelope = self.envelope
        return (envelope.on_behalf_of or envelope.source) if isinstance(envelope, Letter) else ""

    def sends(self) -> Iterator[Send]:
        """Yield what goes to partitions that the decision names."""
        return (each for each in self._emitted() if isinstance(each, Send))

    def answers(self, *kinds: type) -> bool:
        """Say whether the decision emits a message of one of these kinds, whomever to."""
        return any(isinstance(each.message if isinstance(each, Send) else each, kinds) for each in self._emitted())

    def emitted(self, kind: type) -> list[Any]:
        """Return what the decision emits of a kind, without an address: Reply, Done, Refused, Ended."""
        return [each for each in self._emitted() if isinstance(each, kind)]

    def changes(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield each entity that the decision writes: its key, what it was, what it is."""
        for key, after in self.decision.state.items() if self.decision else ():
            yield key, self.before[key], after

    def _emitted(self) -> tuple[Any, ...]:
        return self.decision.messages if self.decision else ()
