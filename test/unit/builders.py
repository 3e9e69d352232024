"""Builders with defaults: a test names only what its rule is about."""

from __future__ import annotations

from collections.abc import Mapping

from common.decision import Arrival, Entity
from common.messages import Asker, Topology

NOW_MS = 1_700_000_000_000
ONE_EACH: Topology = {"order": 1, "stock": 1, "payment": 1}
TWO_EACH: Topology = {"order": 2, "stock": 2, "payment": 2}


class Entities(dict[str, "Entity | None"]):
    """A whole partition in memory: what is not there is absent."""

    def __missing__(self, key: str) -> Entity | None:
        return None


def given(**entities: Entity) -> Entities:
    """Return the state of entities by id: `given(apple=an_item())` has "Item:apple"."""
    return Entities({f"{type(entity).__name__}:{entity_id}": entity for entity_id, entity in entities.items()})


def after(state: Mapping[str, Entity | None], changes: Mapping[str, Entity | None]) -> Entities:
    """Return the state once a decision's changes are taken over."""
    return Entities({**state, **changes})


def an_asker(request_id: str = "o1/attempt/1", fingerprint: int = 7, reply_to: str = "web-1") -> Asker:
    return Asker(request_id, fingerprint, reply_to)


def an_arrival(
    message_id: str = "order-0-9-0",
    source: str = "",
    asker: Asker | None = None,
    topology: Topology = ONE_EACH,
    time_ms: int = NOW_MS,
) -> Arrival:
    """Return where a message stands; its partition is the one in its id."""
    partition = message_id.rsplit("-", 2)[0]
    return Arrival(message_id, partition, time_ms, topology, source, asker)


def asked(message_id: str = "order-0-9-0", request_id: str = "o1/attempt/1", topology: Topology = ONE_EACH) -> Arrival:
    """Return the arrival of a request."""
    return an_arrival(message_id, asker=an_asker(request_id), topology=topology)


def sent_by(source: str, message_id: str = "order-0-10-0", topology: Topology = ONE_EACH) -> Arrival:
    """Return the arrival of a letter."""
    return an_arrival(message_id, source=source, topology=topology)
