"""What a state machine is told, what it sees, and what it decides.

A service's `decide(state, message, arrival)` is pure: the same log gives the same decisions, whatever was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from common.messages import Asker, Done, Message, Outcome, Refused, Topology

RULES = 1
"""The newest rules that this code knows, one count for all services and the fold.  What makes old records come to
something else is a new version here, and asks `arrival.rules` (in the fold: `header.rules`) which one is in force:

    1  as it began
"""


class Entity(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of what a partition's state is made of; lives under the key "<class name>:<id>"."""


State = Mapping[str, Entity | None]
"""The entities of one partition by key.  Reading one that is not in memory raises NotLoaded; absent ones are None."""

E = TypeVar("E", bound=Entity)


class NotLoaded(LookupError):
    """A key that has to be read from the store before the message can be decided."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Arrival(msgspec.Struct, frozen=True):
    """Where and when a message stands in the log: everything a decision may know besides state and message.

    `id` is "<partition>-<offset>-<index>", unlike any other message's.  `time_ms` never goes back.
    `source` is the partition that a letter came from, else "".  `asker` is set for requests only.
    `rules` is the version in force: a decision that has changed asks it, and keeps its old way for ever.
    """

    id: str
    partition: str
    time_ms: int
    topology: Topology
    source: str = ""
    asker: Asker | None = None
    rules: int = 1


class Send(msgspec.Struct, frozen=True):
    """A message to another partition (or to this one: it takes the way through the log as well)."""

    partition: str
    message: Message


class Reply(msgspec.Struct, frozen=True):
    """The outcome for somebody who asked earlier."""

    asker: Asker
    outcome: Outcome


class Ended(msgspec.Struct, frozen=True):
    """A saga's end, for the log lines that people read."""

    kind: str
    id: str
    order_id: str
    outcome: str
    took_ms: int


class Decision(msgspec.Struct, frozen=True):
    """The entities that change, by key (None deletes one), and the messages that go out.

    A bare message goes back to whoever sent this one: an outcome to the asker, an answer to the source partition.
    A request that is decided without an outcome is pending: a Reply follows from a later message.
    """

    state: Mapping[str, Entity | None] = {}
    messages: tuple[Message | Send | Reply | Ended, ...] = ()


class Machine(msgspec.Struct, frozen=True):
    """A service's state machine, as common.fold runs it: every function in it is pure.

    `keys` names the entities that a message needs, so that they are read in one go.  `decide` answers a message.
    `excuse` gives the answer to a message whose decision raised: a bug of ours must not keep a saga waiting.
    `rules` is the newest version that all of it knows: it stops at a record from which newer ones hold.
    """

    service: str
    message_type: Any
    entity_type: Any
    keys: Callable[[Any, Arrival], Iterable[str]]
    decide: Callable[[State, Any, Arrival], Decision]
    excuse: Callable[[Any], tuple[Message, ...]]
    rules: int = RULES


def key(kind: type[Entity], entity_id: str) -> str:
    """Return where an entity lives in its partition's state."""
    return f"{kind.__name__}:{entity_id}"


def find(state: State, kind: type[E], entity_id: str) -> E | None:
    """Return an entity, or None where there is none."""
    entity = state[f"{kind.__name__}:{entity_id}"]
    assert entity is None or isinstance(entity, kind)
    return entity


def done(state: Mapping[str, Entity | None], value: str = "") -> Decision:
    """Return the decision that carries out a request."""
    return Decision(state, (Done(value),))


def refused(refusal: Refused) -> Decision:
    """Return the decision that changes nothing and says why."""
    return Decision({}, (refusal,))
