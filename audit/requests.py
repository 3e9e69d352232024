"""I4: what a client asked is decided once as long as its result is kept, and whoever waits is told in the end."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.opening import Opening
from audit.replay import Replay
from common.batch_init import BatchInit
from common.decision import Reply
from common.fold import ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS, Page, Result
from common.messages import Asker, Done, Refused, Request
from order.checkout import Checkout
from order.domain import Addition


class _Asked(msgspec.Struct):
    """When a request was decided, and when its outcome was there: None while it is pending.

    `message_id` is "" for one that was decided before the log begins.
    """

    message_id: str
    retention_ms: int = CLIENT_KEY_RETENTION_MS
    finished_ms: int | None = None


class Requests:
    """Every request that was decided, by partition and request id.  Time is the partition's: it never goes back."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._now_ms: dict[str, int] = {}

    def begin(self, name: str, opening: Opening) -> None:
        """Note what was decided and is not forgotten where a partition's records begin."""
        self._now_ms[name] = opening.now_ms
        for key, entity in opening.entities.items():
            if isinstance(entity, Result) and entity.outcome is None:
                self._asked[name, key.removeprefix("Result:")] = _Asked("")
            elif isinstance(entity, Page):
                retention_ms = _retention_ms(is_client_key=key.startswith("Page:client-"))
                for request_id in entity.request_ids:
                    self._asked[name, request_id] = _Asked("", retention_ms, entity.decided_ms)

    def take(self, fact: Fact) -> None:
        """Note a decision on a request, and every outcome."""
        now_ms = self._now_ms[fact.partition] = max(self._now_ms.get(fact.partition, 0), fact.time_ms)
        if fact.decision is None:
            return
        if isinstance(fact.envelope, Request):
            self._decide(fact, fact.envelope.asker, now_ms)
        for reply in fact.emitted(Reply):
            self._finish(fact.partition, reply.asker, now_ms)

    def _decide(self, fact: Fact, asker: Asker, now_ms: int) -> None:
        place = (fact.partition, asker.request_id)
        earlier = self._asked.get(place)
        if earlier is not None and not _is_forgotten(earlier, now_ms):
            detail = f"{fact.message} was decided before, as {earlier.message_id or 'a snapshot has it'}"
            entity = f"Result:{asker.request_id}"
            messages = (*filter(None, (earlier.message_id,)), fact.id)
            self.findings.append(Finding(Kind.DECIDED_TWICE, entity, fact.partition, detail, messages))
        self._asked[place] = _Asked(fact.id, _retention_ms(is_client_key=asker.is_client_key))
        if fact.emitted(Done) or fact.emitted(Refused):
            self._finish(fact.partition, asker, now_ms)

    def _finish(self, partition: str, asker: Asker, now_ms: int) -> None:
        asked = self._asked.get((partition, asker.request_id))
        if asked is not None:
            asked.finished_ms = now_ms
            asked.retention_ms = _retention_ms(is_client_key=asker.is_client_key)

    def never_told(self, replay: Replay) -> Iterator[Finding]:
        """Yield the requests that are pending at the end of the log while nothing that is open will answer them."""
        waiting = {asker.request_id for entity in replay.memory.values() for asker in _askers(entity)}
        for key, entity in replay.memory.items():
            if isinstance(entity, Result) and entity.outcome is None:
                request_id = key.removeprefix("Result:")
                asked = self._asked.get((replay.name, request_id))
                if request_id not in waiting:
                    messages = (asked.message_id,) if asked and asked.message_id else ()
                    yield Finding(Kind.NEVER_TOLD, key, replay.name, "its result is pending", messages)


def _retention_ms(*, is_client_key: bool) -> int:
    return CLIENT_KEY_RETENTION_MS if is_client_key else ATTEMPT_RETENTION_MS


def _is_forgotten(asked: _Asked, now_ms: int) -> bool:
    return asked.finished_ms is not None and now_ms - asked.finished_ms > asked.retention_ms


def _askers(entity: object) -> tuple[Asker, ...]:
    match entity:
        case Checkout():
            return entity.askers
        case Addition() | BatchInit():
            return (entity.asker,)
        case _:
            return ()
