"""From partition to partition: what a source's fold sent is taken by its target, all of it, in order, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.keys import keys_of, letter_decoder
from audit.opening import Opening
from audit.replay import Replay
from common.fold import STUCK
from common.messages import Letter, encode

Lane = tuple[str, str]
"""Source and target."""


class Arrived(msgspec.Struct, frozen=True):
    """A letter that its target took, as its log has it."""

    message_id: str
    envelope: Letter[Any]
    raw: bytes


class Letters:
    """Counts the letters of every lane by itself: the sequence check of the fold is one of the things audited.

    Only how many were taken before a trimmed log begins is believed.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._arrived: dict[Lane, list[Arrived]] = {}
        self._before: dict[Lane, int] = {}

    def begin(self, name: str, opening: Opening) -> None:
        """Note how far a partition had come where its records begin."""
        self._before.update({(source, name): taken for source, taken in opening.taken.items()})

    def take(self, fact: Fact) -> None:
        """Note the letter, in the order of its log."""
        letter = fact.envelope
        if not isinstance(letter, Letter):
            return
        lane = (letter.source, fact.partition)
        arrived = self._arrived.setdefault(lane, [])
        taken = self._taken(lane)
        if letter.sequence == taken + 1:
            arrived.append(Arrived(fact.id, letter, fact.raw))
            if fact.decision is None:
                self._find(Kind.LETTER_NOT_TAKEN, fact, "it was the next one")
        elif letter.sequence > taken:
            self._find(Kind.LETTER_OUT_OF_TURN, fact, f"{taken + 1} was the next one")
        else:
            self._take_repeat(fact, letter.sequence, lane)

    def join(self, replays: Mapping[str, Replay]) -> Iterator[Finding]:
        """Yield what the sources sent and the targets did not take, and the other way round."""
        sent = {(source, target) for source, replay in replays.items() for target in replay.sent | replay.published}
        for lane in sorted(sent | self._arrived.keys() | self._before.keys()):
            source, target = lane
            if source in replays:
                yield from self._join(replays[source], target)
            else:
                yield from _redelivered(replays[target], self._arrived.get(lane, []))
        for replay in replays.values():
            yield from self._undelivered(replay)

    def in_flight(self, replays: Mapping[str, Replay]) -> Iterator[bytes]:
        """Yield what records at or behind their store's position sent and nobody has published yet."""
        for source, replay in replays.items():
            for target, letters in replay.sent.items():
                done = max(replay.published.get(target, 0), self._taken((source, target)))
                yield from letters[max(done - replay.opening.sent.get(target, 0), 0) :]

    def unseen(self, replays: Mapping[str, Replay]) -> Iterator[tuple[str, bytes]]:
        """Yield, with its target, what was sent by records that are there and taken by records that are not."""
        for source, replay in replays.items():
            for target, letters in replay.sent.items():
                taken = self._before.get((source, target), 0) - replay.opening.sent.get(target, 0)
                yield from ((target, letter) for letter in letters[: max(taken, 0)])

    def _taken(self, lane: Lane) -> int:
        """Return the sequence of the last letter taken so far."""
        return self._before.get(lane, 0) + len(self._arrived.get(lane, []))

    def _take_repeat(self, fact: Fact, sequence: int, lane: Lane) -> None:
        if sequence < 1:
            return self._find(Kind.LETTER_INVENTED, fact, "sequences begin at 1")
        place = sequence - 1 - self._before.get(lane, 0)
        first = self._arrived[lane][place] if place >= 0 else None
        if fact.decision is not None:
            self._find(Kind.LETTER_TAKEN_TWICE, fact, f"it was taken {f'as {first.message_id}' if first else 'before'}")
        if first is not None and fact.raw != first.raw:
            self._find(Kind.LETTER_DIFFERS, fact, f"the first was {first.envelope.message}")
        return None

    def _find(self, kind: Kind, fact: Fact, detail: str) -> None:
        letter = fact.envelope
        assert isinstance(letter, Letter)
        self.findings.append(_finding(kind, fact.partition, letter, (fact.id,), detail))

    def _join(self, source: Replay, target: str) -> Iterator[Finding]:
        before, sent = source.opening.sent.get(target, 0), source.sent.get(target, [])
        for letter in self._arrived.get((source.name, target), []):
            place = letter.envelope.sequence - 1 - before
            if place >= len(sent):
                detail = f"{source.name} has not sent {letter.envelope.message}"
                yield _finding(Kind.LETTER_INVENTED, target, letter.envelope, (letter.message_id,), detail)
            elif place >= 0 and letter.raw != sent[place]:
                detail = f"taken was {letter.envelope.message}, sent was {letter_decoder.decode(sent[place]).message}"
                yield _finding(Kind.LETTER_DIFFERS, target, letter.envelope, (letter.message_id,), detail)
        if self._before.get((source.name, target), 0) > before + len(sent):
            lane = f"letter {source.name}>{target} {before + len(sent) + 1}"
            yield Finding(Kind.LETTER_INVENTED, lane, target, f"{target} took it before, {source.name} never sent it")
        for sequence in range(self._taken((source.name, target)) + 1, source.published.get(target, 0) + 1):
            yield _lost(source.name, target, sequence, sent[sequence - 1 - before] if sequence > before else None)

    def _undelivered(self, replay: Replay) -> Iterator[Finding]:
        """Yield the dead letters that something waits for, until a person delivers them again."""
        found = list(self._undelivered_here(replay))
        yield from found
        before = replay.header.counts.get(STUCK, 0) - len(found)
        if replay.opening.position and before > 0:
            detail = f"{before} of what died before record {replay.opening.position}"
            yield Finding(Kind.DEAD_LETTER_UNDELIVERED, replay.name, replay.name, detail)

    def _undelivered_here(self, replay: Replay) -> Iterator[Finding]:
        for offset, index in sorted(replay.met.places):
            envelope = replay.envelope(offset, index)
            if not isinstance(envelope, Letter) or replay.machine.excuse(envelope.message):
                continue
            if (_source_of(replay, offset, index), replay.name) not in self._arrived:
                place, dead = f"{replay.name}-{offset}-{index}", envelope.message
                related = tuple(keys_of(dead))
                yield Finding(Kind.DEAD_LETTER_UNDELIVERED, place, replay.name, str(dead), (place,), related)


def _lost(source: str, target: str, sequence: int, letter: bytes | None) -> Finding:
    if letter is None:
        detail = f"{target} has not taken it; {source} sent it before its log begins"
        return Finding(Kind.LETTER_LOST, f"letter {source}>{target} {sequence}", target, detail)
    lost = letter_decoder.decode(letter)
    return _finding(Kind.LETTER_LOST, target, lost, (), f"{target} has not taken {lost.message}")


def _redelivered(target: Replay, arrived: list[Arrived]) -> Iterator[Finding]:
    """Only what is a dead letter at this very place, and nobody was answered about, is delivered again."""
    for letter in arrived:
        if not _is_redelivery(target, letter.envelope):
            detail = f"{letter.envelope.message} is no dead letter of {target.name}"
            yield _finding(Kind.LETTER_INVENTED, target.name, letter.envelope, (letter.message_id,), detail)


def _is_redelivery(target: Replay, letter: Letter[Any]) -> bool:
    """Say so; of what died before the log begins, by its place alone."""
    before = (place for place in target.evidence.dead_letters if place[0] < target.opening.position)
    if letter.source in {_source_of(target, *place) for place in before}:
        return True
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
