"""The histories of the offenders: a second pass over the logs that keeps only what concerns them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from audit.facts import Fact
from audit.findings import Event, Finding
from audit.keys import keys_of
from common.messages import Asker, Letter, Request

EVENTS_MAX = 100
"""Of one entity, the newest: a popular item is in more messages than anybody reads."""
TEXT_MAX = 400


class Histories:
    """Collects the messages that concern the findings' entities, and those that the findings name."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self._events: dict[str, deque[Event]] = {}
        self._left_out: Counter[str] = Counter()
        for finding in findings:
            for key in _keys(finding):
                self._events.setdefault(key, deque(maxlen=EVENTS_MAX))

    def take(self, fact: Fact) -> None:
        """Keep the message where it concerns an offender."""
        concerned = {*keys_of(fact.message), *fact.before, fact.id, *_result_of(fact)} & self._events.keys()
        if concerned:
            event = _event(fact)
            for key in concerned:
                events = self._events[key]
                self._left_out[key] += len(events) == EVENTS_MAX
                events.append(event)

    def of(self, finding: Finding) -> Finding:
        """Return the finding with its history, in the order of time."""
        keys = _keys(finding)
        events = {event.message_id: event for key in keys for event in self._events[key]}
        left_out = sum(self._left_out[key] for key in keys)
        history = sorted(events.values(), key=lambda event: (event.time_ms, _order(event.message_id)))
        return msgspec.structs.replace(finding, history=tuple(history), left_out=left_out)


def _keys(finding: Finding) -> tuple[str, ...]:
    return tuple(dict.fromkeys((finding.entity, *finding.related, *finding.messages)))


def _order(message_id: str) -> tuple[str, int, int]:
    partition, offset, index = message_id.rsplit("-", 2)
    return partition, int(offset), int(index)


def _result_of(fact: Fact) -> tuple[str, ...]:
    envelope = fact.envelope
    return (f"Result:{envelope.asker.request_id}",) if isinstance(envelope, Request) else ()


def _event(fact: Fact) -> Event:
    envelope = fact.envelope
    origin = f"from {envelope.source} #{envelope.sequence}" if isinstance(envelope, Letter) else _who(envelope.asker)
    said = _short(f"{fact.message} {origin}")
    if fact.decision is None:
        return Event(fact.id, fact.time_ms, said, ("not decided: a repeat, out of turn, or too late",))
    changed = [f"{key}: {before} -> {after}" for key, before, after in fact.changes()]
    emitted = [f"emits {message}" for message in fact.decision.messages]
    return Event(fact.id, fact.time_ms, said, tuple(_short(text) for text in (*changed, *emitted)))


def _who(asker: Asker) -> str:
    return f"asked as {asker.request_id}"


def _short(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]} ..."
