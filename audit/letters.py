"""From partition to partition: what a source's fold sent is taken by its target, all of it, in order, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.keys import keys_of, letter_decoder
from audit.replay import Replay
from common.messages import Letter, encode

Lane = tuple[str, str]
"""Source and target."""


class Arrived(msgspec.Struct, frozen=True):
    """A letter that its target took, as its log has it."""

    message_id: str
    envelope: Letter[Any]
    raw: bytes


class Letters:
    """Counts the letters of every lane by itself: the sequence check of the fold is one of the things audited."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._arrived: dict[Lane, list[Arrived]] = {}

    def take(self, fact: Fact) -> None:
        """Note the letter, in the order of its log."""
        letter = fact.envelope
        if not isinstance(letter, Letter):
            return
        arrived = self._arrived.setdefault((letter.source, fact.partition), [])
        if letter.sequence == len(arrived) + 1:
            arrived.append(Arrived(fact.id, letter, fact.raw))
            if fact.decision is None:
                self._find(Kind.LETTER_NOT_TAKEN, fact, "it was the next one")
        elif letter.sequence > len(arrived):
            self._find(Kind.LETTER_OUT_OF_TURN, fact, f"{len(arrived) + 1} was the next one")
        else:
            self._take_repeat(fact, arrived, letter.sequence)

    def join(self, replays: Mapping[str, Replay]) -> Iterator[Finding]:
        """Yield what the sources sent and the targets did not take, and the other way round."""
        sent = {(source, target) for source, replay in replays.items() for target in replay.sent}
        for source, target in sorted(sent | self._arrived.keys()):
            arrived = self._arrived.get((source, target), [])
            if source in replays:
                yield from _join(replays[source], target, arrived)
            else:
                yield from _redelivered(replays[target], arrived)
        for replay in replays.values():
            yield from self._undelivered(replay)

    def in_flight(self, replays: Mapping[str, Replay]) -> Iterator[bytes]:
        """Yield what records at or behind their store's position sent and nobody has published yet."""
        for source, replay in replays.items():
            for target, letters in replay.sent.items():
                first = max(replay.published.get(target, 0), len(self._arrived.get((source, target), [])))
                yield from letters[first:]

    def _take_repeat(self, fact: Fact, arrived: list[Arrived], sequence: int) -> None:
        if sequence < 1:
            return self._find(Kind.LETTER_INVENTED, fact, "sequences begin at 1")
        if fact.decision is not None:
            self._find(Kind.LETTER_TAKEN_TWICE, fact, f"it was taken as {arrived[sequence - 1].message_id}")
        if fact.raw != arrived[sequence - 1].raw:
            self._find(Kind.LETTER_DIFFERS, fact, f"the first was {arrived[sequence - 1].envelope.message}")
        return None

    def _find(self, kind: Kind, fact: Fact, detail: str) -> None:
        letter = fact.envelope
        assert isinstance(letter, Letter)
        self.findings.append(_finding(kind, fact.partition, letter, (fact.id,), detail))

    def _undelivered(self, replay: Replay) -> Iterator[Finding]:
        """Yield the dead letters that something waits for, until a person delivers them again."""
        for offset, index in sorted(replay.met.places):
            envelope = replay.envelope(offset, index)
            if not isinstance(envelope, Letter) or replay.machine.excuse(envelope.message):
                continue
            if (_source_of(replay, offset, index), replay.name) not in self._arrived:
                place, dead = f"{replay.name}-{offset}-{index}", envelope.message
                related = tuple(keys_of(dead))
                yield Finding(Kind.DEAD_LETTER_UNDELIVERED, place, replay.name, str(dead), (place,), related)


def _join(source: Replay, target: str, arrived: list[Arrived]) -> Iterator[Finding]:
    sent = source.sent.get(target, [])
    for letter, raw in zip(arrived, sent, strict=False):
        if letter.raw != raw:
            detail = f"taken was {letter.envelope.message}, sent was {letter_decoder.decode(raw).message}"
            yield _finding(Kind.LETTER_DIFFERS, target, letter.envelope, (letter.message_id,), detail)
    for letter in arrived[len(sent) :]:
        detail = f"{source.name} has not sent {letter.envelope.message}"
        yield _finding(Kind.LETTER_INVENTED, target, letter.envelope, (letter.message_id,), detail)
    for raw in sent[len(arrived) : source.published.get(target, 0)]:
        lost = letter_decoder.decode(raw)
        yield _finding(Kind.LETTER_LOST, target, lost, (), f"{target} has not taken {lost.message}")


def _redelivered(target: Replay, arrived: list[Arrived]) -> Iterator[Finding]:
    """Only what is a dead letter at this very place, and nobody was answered about, is delivered again."""
    for letter in arrived:
        if not _is_redelivery(target, letter.envelope):
            detail = f"{letter.envelope.message} is no dead letter of {target.name}"
            yield _finding(Kind.LETTER_INVENTED, target.name, letter.envelope, (letter.message_id,), detail)


def _is_redelivery(target: Replay, letter: Letter[Any]) -> bool:
    for offset, index in target.met.places:
        dead = target.envelope(offset, index)
        if letter.source == _source_of(target, offset, index) and isinstance(dead, Letter):
            expected = Letter(letter.source, 1, dead.message, dead.on_behalf_of or dead.source)
            return encode(letter) == encode(expected) and not target.machine.excuse(dead.message)
    return False


def _source_of(replay: Replay, offset: int, index: int) -> str:
    return f"dead-letter-{replay.name}-{offset}-{index}"


def _finding(kind: Kind, target: str, letter: Any, messages: tuple[str, ...], detail: str) -> Finding:
    entity = f"letter {letter.source}>{target} {letter.sequence}"
    return Finding(kind, entity, target, detail, messages, tuple(keys_of(letter.message)))
