"""One partition, folded again by the shipped fold: what each message of its log did, and if the store agrees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from audit.amounts import amounts_wrong
from audit.evidence import PartitionEvidence
from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.opening import Opening, opening_of
from common.decision import Arrival, Decision, Entity, Machine, State
from common.fold import Codec, DeadLetter, Fold, Header, Memory, Missing, Record, Rules, UndecodableRecord
from common.messages import Batch, Content, Letter, Message, Reason, Refused, Request, Topology

_raw_batch = msgspec.msgpack.Decoder(tuple[str, list[msgspec.Raw]])
NO_NUMBER = -1
"""Of a dead letter that nobody put on record."""


class Replay:
    """Folds one partition to the end of its log; at the store's position it compares.

    `memory` and `header` are the state at the end, `opening` the one at the first record.  `sent` has the letters that
    went out since then, by target; `published` the sequence of the last that came from a record below the position:
    up to it they must stand in their targets' logs.
    """

    def __init__(self, name: str, machine: Machine, evidence: PartitionEvidence, topology: Topology) -> None:
        self.name = name
        self.machine = machine
        self.evidence = evidence
        self.opening = Opening()
        self.header = Header()
        self.sent: dict[str, list[bytes]] = {}
        self.published: dict[str, int] = {}
        self.findings: list[Finding] = []
        self.messages = 0
        self.met = _DeadLetters(evidence.dead_letters)
        self._codec = _Codec(machine)
        self._is_compared = False
        self._fields = dict(evidence.opening)
        self._decided: dict[str, tuple[Decision, dict[str, Entity | None]]] = {}
        watched = msgspec.structs.replace(machine, decide=self._decide)
        self._rules = Rules(watched, self._codec, name, topology, self.met)
        self._is_undecodable = False
        self._begin()

    def facts(self) -> Iterator[Fact]:
        """Yield every message of the log, once its record is folded."""
        if self._is_undecodable:
            return
        offset = self.opening.position
        for record in self.evidence.records:
            self._compare_at(record.offset)
            self._check_offset(record.offset, offset)
            offset = record.offset + 1
            try:
                yield from self._take(record)
            except UndecodableRecord as why:
                self._find(Kind.RECORD_UNDECODABLE, f"record {record.offset}: {why}")
                return
        self._compare_end(offset)

    def envelope(self, offset: int, index: int) -> Request[Any] | Letter[Any] | None:
        """Return the message at a place of the log, None where there is none."""
        record = next((record for record in self.evidence.records if record.offset == offset), None)
        content = self._codec.record(record.value) if record else None
        return content.messages[index] if isinstance(content, Batch) and index < len(content.messages) else None

    # --- folding

    def _begin(self) -> None:
        try:
            self.opening, self.header = opening_of(self.evidence, self._codec)
        except msgspec.DecodeError as why:
            self._is_undecodable = True
            self._find(Kind.RECORD_UNDECODABLE, f"the snapshot at {self.evidence.begins}: {why}")
        self.memory = Memory(self.opening.entities)
        self.published = self._sent_so_far()

    def _sent_so_far(self) -> dict[str, int]:
        before = self.opening.sent
        return dict(before) | {target: before.get(target, 0) + len(sent) for target, sent in self.sent.items()}

    def _take(self, record: Record) -> Iterator[Fact]:
        fold = Fold(self._rules, self.memory, self.header, [record])
        for effect in fold.run():
            match effect:
                case Missing():
                    self._answer_missing(effect.keys)
                case DeadLetter():
                    self._note_raise(effect)
        for field, value in fold.folded.changes.items():
            self._write(field, value)
        for target, letters in fold.folded.letters.items():
            self.sent.setdefault(target, []).extend(letters)
        yield from self._facts_of(record, self._codec.content)

    def _answer_missing(self, keys: list[str]) -> None:
        """Everything that exists is in memory: what is not there is absent."""
        for key in keys:
            self.memory.setdefault(key, None)

    def _write(self, field: str, value: bytes | None) -> None:
        if value is None:
            self._fields.pop(field, None)
        else:
            self._fields[field] = value

    def _facts_of(self, record: Record, content: Content) -> Iterator[Fact]:
        if not isinstance(content, Batch):
            return
        _, raws = _raw_batch.decode(record.value)
        for index, (envelope, raw) in enumerate(zip(content.messages, raws, strict=True)):
            self.messages += 1
            fact_id = f"{self.name}-{record.offset}-{index}"
            decided = self._decided.pop(fact_id, None)
            decision, before = decided or (self._excused(record.offset, index, envelope), {})
            is_dead = decided is None and decision is not None
            yield Fact(fact_id, self.name, record.timestamp_ms, envelope, bytes(raw), decision, before, is_dead)

    def _decide(self, state: State, message: Message, arrival: Arrival) -> Decision:
        """Decide as the machine does, and note it: the last time counts, earlier ones lacked an entity."""
        decision = self.machine.decide(state, message, arrival)
        self._decided[arrival.id] = decision, {key: self.memory.get(key) for key in decision.state}
        return decision

    def _excused(self, offset: int, index: int, envelope: Any) -> Decision | None:
        if (offset, index) not in self.met.places:
            return None
        refusal = (Refused(Reason.INTERNAL, "a dead letter"),)
        return Decision({}, self.machine.excuse(envelope.message) if isinstance(envelope, Letter) else refusal)

    def _note_raise(self, letter: DeadLetter) -> None:
        """Go on as if it had been put on record.  Below the position it must have been."""
        self._decided.pop(f"{self.name}-{letter.offset}-{letter.index}", None)
        self.met[letter.offset, letter.index] = NO_NUMBER
        if letter.offset < self.evidence.position:
            why = letter.traceback.strip().rpartition("\n")[2]
            self._find_at(Kind.DEAD_LETTER_MISSING, letter.offset, letter.index, why)

    # --- the log

    def _check_offset(self, offset: int, expected: int) -> None:
        if offset != expected:
            self._find(Kind.RECORD_MISSING, f"after record {expected - 1} comes record {offset}")

    def _compare_end(self, end: int) -> None:
        position = self.evidence.position
        if position > end:
            self._find(Kind.POSITION_BEYOND_LOG, f"the store stands at {position}, the log ends at {end}")
            self._compare()
        self._compare_at(end)
        if end and not self.header.log_id:
            self._find(Kind.GENESIS_MISSING, "record 0 is not a genesis record")
        for offset, index in sorted(self._dead_letters_here() - self.met.places):
            self._find_at(Kind.DEAD_LETTER_WITHOUT_MESSAGE, offset, index, "nothing there was to be decided")

    def _dead_letters_here(self) -> set[tuple[int, int]]:
        return {place for place in self.met if place[0] >= self.opening.position}

    # --- the store

    def _compare_at(self, offset: int) -> None:
        """Compare once everything below the position is folded.  What the store had before nobody can tell."""
        if offset >= self.evidence.position >= self.opening.position and not self._is_compared:
            self._compare()

    def _compare(self) -> None:
        self._is_compared = True
        self.published = self._sent_so_far()
        stored = self.evidence.stored
        for field in sorted(self._fields.keys() | stored.keys()):
            if self._fields.get(field) != stored.get(field):
                self._differ(field, stored.get(field), self._fields.get(field))

    def _differ(self, field: str, stored: bytes | None, folded: bytes | None) -> None:
        if field == "header":
            self._find(Kind.HEADER_DIFFERS, _header_difference(self._decoded(field, stored), self.header), field)
        elif stored is None:
            self._find(Kind.STATE_MISSING, f"the fold has {self._decoded(field, folded)}", field)
        elif folded is None:
            self._find(Kind.STATE_EXTRA, f"the store has {self._decoded(field, stored)}", field)
        else:
            both = f"the store has {self._decoded(field, stored)}, the fold {self._decoded(field, folded)}"
            self._find(Kind.STATE_DIFFERS, both, field)
        content = self._decoded(field, stored)
        if isinstance(content, Entity):
            self._find_all(amounts_wrong(content), field)

    def _decoded(self, field: str, value: bytes | None) -> object:
        try:
            return self._codec.header(value) if field == "header" else self._codec.entity(value)
        except msgspec.DecodeError:
            return value

    # --- findings

    def _find(self, kind: Kind, detail: str, entity: str = "") -> None:
        self.findings.append(Finding(kind, entity or self.name, self.name, detail))

    def _find_all(self, wrong: Iterator[tuple[Kind, str]], entity: str) -> None:
        for kind, detail in wrong:
            self._find(kind, f"in the store: {detail}", entity)

    def _find_at(self, kind: Kind, offset: int, index: int, detail: str) -> None:
        place = f"{self.name}-{offset}-{index}"
        self.findings.append(Finding(kind, place, self.name, detail, (place,)))


class _DeadLetters(dict[tuple[int, int], int]):
    """The dead letters of a partition; `places` are those that the fold has met."""

    def __init__(self, letters: dict[tuple[int, int], int]) -> None:
        super().__init__(letters)
        self.places: set[tuple[int, int]] = set()

    def __contains__(self, place: object) -> bool:
        is_one = super().__contains__(place)
        if is_one and isinstance(place, tuple):
            self.places.add(place)
        return is_one


class _Codec(Codec):
    """Keeps what it decoded last, so that a record is decoded once."""

    content: Content

    def record(self, value: bytes) -> Content:
        """Return the record."""
        self.content = super().record(value)
        return self.content


def _header_difference(stored: object, folded: Header) -> str:
    if not isinstance(stored, Header):
        return f"the store has {stored!r}"
    ours, theirs = msgspec.structs.asdict(folded), msgspec.structs.asdict(stored)
    differing = [name for name, value in ours.items() if theirs[name] != value]
    return "; ".join(f"{name}: the store has {theirs[name]}, the fold {ours[name]}" for name in differing)
