"""The fold: one partition's state after another batch of its log.  Pure.

`Fold.run` is a generator: it yields what it cannot do by itself (read `Missing` keys, put a `DeadLetter` on record) and
goes on when the caller has seen to it.  So the same code runs against Redis, in the simulation and in the unit tests.
It changes the memory and the header that it is given; whoever abandons a fold drops both and loads again.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

import msgspec

from common.decision import Arrival, Decision, Ended, Entity, Machine, NotLoaded, Reply, Send
from common.messages import (
    Asker,
    Batch,
    Content,
    Done,
    Genesis,
    Letter,
    Message,
    NewRules,
    Outcome,
    Reason,
    Refused,
    Request,
    Told,
    Topology,
    checksum,
    encode,
)

ATTEMPT_RETENTION_MS = 10 * 60 * 1000
CLIENT_KEY_RETENTION_MS = 24 * 60 * 60 * 1000
COMMAND_AGE_MAX_MS = 5 * 60 * 1000
"""Older commands are refused, and those that seem to come from the future: a late repeat of one would be young enough
to act again after its own result was pruned."""
RESULTS_MAX = 2_000_000
"""Results that one partition keeps; beyond that new commands are told to come back later."""
PAGES_PRUNED_MAX = 2
"""Pages that one record prunes of each kind: more than it can add."""

STUCK = "stuck"
"""Among the counts: letters that raised and had no excuse.  Their sagas wait for a person."""
BURIED = "buried"
"""Among the counts: messages that are on record as dead letters."""

OTHER_CALL = Refused(Reason.OTHER_CALL, "this Idempotency-Key was used for another call: use a new one")
TOO_LATE = Refused(Reason.NOT_NOW, "too late in the log, or made by a clock that is wrong: ask again")
TOO_MANY_RESULTS = Refused(Reason.NOT_NOW, "too many requests are remembered: ask again in a minute")

E = TypeVar("E", bound=Entity)
Step = Generator["Effect", None, None]


class UndecodableRecord(Exception):
    """A record that this version does not know: it waits for a version that does, nobody skips it."""


# --- what a partition remembers beside its entities ------------------------------------------------------------------


class Result(Entity, frozen=True):
    """What became of a request; `outcome` is None while it is pending."""

    fingerprint: int
    outcome: Outcome | None


class Page(Entity, frozen=True):
    """The requests that one record decided: they are forgotten together."""

    decided_ms: int
    request_ids: tuple[str, ...]


class Shelf(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The pages first..last of one retention time; `oldest_ms` is no later than the decision of the first."""

    first: int = 1
    last: int = 0
    oldest_ms: int = 0


class Header(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The rest of a partition's state, stored beside its position.

    `crc` and `timestamp_ms` are those of the last record folded; `now_ms` is the latest timestamp of all.
    `taken` is the last sequence taken by source, `sent` the last one sent by target.  `counts` counts entities by kind.
    `digest` is a checksum of every change since the log's start: two headers that are equal at one position come from
    the same state, so comparing them compares partitions (against mistakes, not against forgers).
    `rules` is the version in force.
    """

    log_id: str = ""
    crc: int = 0
    timestamp_ms: int = 0
    now_ms: int = 0
    topology: dict[str, int] = {}
    taken: dict[str, int] = {}
    sent: dict[str, int] = {}
    counts: dict[str, int] = {}
    results: int = 0
    attempts: Shelf = msgspec.field(default_factory=Shelf)
    client_keys: Shelf = msgspec.field(default_factory=Shelf)
    digest: int = 0
    rules: int = 1


class Memory(dict[str, "Entity | None"]):
    """The entities of a partition that are in memory: None is one that is known to be absent."""

    def __missing__(self, key: str) -> Entity | None:
        """Say that the store has to be asked."""
        raise NotLoaded(key)

    def remember(self, key: str, entity: Entity | None) -> None:
        """Keep `entity`, as the youngest."""
        self.pop(key, None)
        self[key] = entity

    def trim(self, size_max: int) -> None:
        """Beyond `size_max`, forget the oldest, and a tenth more than need be: finding them takes its time."""
        if len(self) > size_max:
            for key in list(islice(self, len(self) - size_max + size_max // 10)):
                del self[key]


# --- what goes in and what comes out ---------------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True):
    """One record as the log has it; the broker sets `timestamp_ms`."""

    offset: int
    timestamp_ms: int
    value: bytes


class Missing(msgspec.Struct, frozen=True):
    """The fold needs these keys in memory before it goes on."""

    keys: list[str]


class DeadLetter(msgspec.Struct, frozen=True):
    """The fold met a bug of ours and needs it among the dead letters before it goes on.

    `envelope` is the message with its envelope, as the record has it: the log may be trimmed before a person acts.
    """

    partition: str
    offset: int
    index: int
    traceback: str
    envelope: bytes


Effect = Missing | DeadLetter
DeadLetters = dict[tuple[int, int], int]
"""The dead letters of one partition: (offset, index) of the message -> number of the dead letter."""


class Folded(msgspec.Struct):
    """What a batch comes to.

    `changes` has the new bytes by field of the partition's hash (None deletes one), the header's included.  `letters`
    go out by target partition, `replies` by web process.  `repeats` and `gaps` count letters that were dropped.
    """

    start: int
    end: int
    timestamp_ms: int
    changes: dict[str, bytes | None] = {}
    letters: dict[str, list[bytes]] = {}
    replies: dict[str, list[Told]] = {}
    ended: list[Ended] = []
    messages: int = 0
    repeats: int = 0
    gaps: int = 0


class Codec:
    """Decodes what one service's partitions read from the log and from the store."""

    def __init__(self, machine: Machine) -> None:
        message: Any = machine.message_type
        self._rules = machine.rules
        self._record = msgspec.msgpack.Decoder(Genesis | NewRules | Batch[message])
        self._entity = msgspec.msgpack.Decoder(machine.entity_type | Result | Page)
        self._header = msgspec.msgpack.Decoder(Header)

    def record(self, value: bytes) -> Content:
        """Return the record; an unknown one, and one that begins unknown rules, raises UndecodableRecord."""
        try:
            content: Content = self._record.decode(value)
        except msgspec.DecodeError as why:
            raise UndecodableRecord(str(why)) from why
        if isinstance(content, NewRules) and content.version > self._rules:
            raise UndecodableRecord(f"from here on rules {content.version} hold, this code knows {self._rules}")
        return content

    def envelope(self, value: bytes, index: int) -> bytes:
        """Return one message of a batch with its envelope, encoded."""
        batch = self.record(value)
        assert isinstance(batch, Batch)
        return encode(batch.messages[index])

    def entity(self, value: bytes | None) -> Entity | None:
        """Return the entity, None for one that is absent."""
        return None if value is None else self._entity.decode(value)

    def header(self, value: bytes | None) -> Header:
        """Return the header, an empty one for a partition without state."""
        return Header() if value is None else self._header.decode(value)


def result_key(request_id: str) -> str:
    """Return the field that tells what became of a request."""
    return f"Result:{request_id}"


# --- the fold --------------------------------------------------------------------------------------------------------


class Fold:
    """Many decisions, over a batch of consecutive records, behind what is folded `before` and not applied yet."""

    def __init__(
        self, rules: Rules, memory: Memory, header: Header, records: list[Record], before: Folded | None = None
    ) -> None:
        self._rules = rules
        self._memory = memory
        self._header = header
        self._decoded = rules.decode(records)
        last = self._decoded[-1][0]
        self._decided: dict[str, list[str]] = {}
        self.folded = before or Folded(records[0].offset, last.offset + 1, last.timestamp_ms)
        self.folded.end, self.folded.timestamp_ms = last.offset + 1, last.timestamp_ms

    def run(self) -> Step:
        """Take the records one by one; `folded` is complete when this ends."""
        yield Missing([key for key in self._keys() if key not in self._memory])
        for record, content in self._decoded:
            yield from self._take_record(record, content)
        self.folded.changes["header"] = encode(self._header)

    def _keys(self) -> Iterable[str]:
        for record, content in self._decoded:
            if isinstance(content, Batch):
                for envelope in content.messages:
                    if isinstance(envelope, Request):
                        yield result_key(envelope.asker.request_id)
                    yield from self._rules.machine.keys(envelope.message, self._arrival(record, 0, envelope))

    def _take_record(self, record: Record, content: Content) -> Step:
        self._header.now_ms = max(self._header.now_ms, record.timestamp_ms)
        yield from self._prune("attempt", self._header.attempts, ATTEMPT_RETENTION_MS)
        yield from self._prune("client", self._header.client_keys, CLIENT_KEY_RETENTION_MS)
        if isinstance(content, Batch):
            for index, envelope in enumerate(content.messages):
                yield from self._take(record, index, envelope)
        elif isinstance(content, NewRules):
            self._header.rules = max(self._header.rules, content.version)
        elif record.offset == 0:
            self._header.log_id = content.log_id
        if record.offset == 0:
            self._header.topology = dict(self._rules.topology)
        self._file("attempt", self._header.attempts)
        self._file("client", self._header.client_keys)
        self._header.crc = checksum(record.value)
        self._header.timestamp_ms = record.timestamp_ms

    def _take(self, record: Record, index: int, envelope: Request[Any] | Letter[Any]) -> Step:
        self.folded.messages += 1
        if isinstance(envelope, Letter):
            if self._is_next(envelope):
                if envelope.on_behalf_of:
                    self._header.counts[STUCK] = max(self._header.counts.get(STUCK, 0) - 1, 0)
                yield from self._decide(self._arrival(record, index, envelope), envelope.message, record, index)
            return
        result = yield from self._get(Result, envelope.asker.request_id)
        told = self._known(envelope, result)
        if told is not None:
            self._tell(envelope.asker, told)
        elif result is None:
            yield from self._decide(self._arrival(record, index, envelope), envelope.message, record, index)

    # --- is it to be decided at all?

    def _is_next(self, letter: Letter[Any]) -> bool:
        """Say whether the letter is the next one of its source, and take it if it is.  Repeats are dropped here."""
        taken = self._header.taken.get(letter.source, 0)
        if letter.sequence <= taken:
            self.folded.repeats += 1
        elif letter.sequence > taken + 1:
            self.folded.gaps += 1
        else:
            self._header.taken[letter.source] = letter.sequence
            return True
        return False

    def _known(self, request: Request[Any], result: Result | None) -> Outcome | None:
        """Return what to tell without deciding; None for a new request, and for one that is pending."""
        if result is not None:
            if result.fingerprint != request.asker.fingerprint:
                return OTHER_CALL
            return result.outcome
        if abs(self._header.now_ms - request.made_ms) > COMMAND_AGE_MAX_MS:
            return TOO_LATE
        if self._header.results >= RESULTS_MAX:
            return TOO_MANY_RESULTS
        return None

    # --- deciding

    def _arrival(self, record: Record, index: int, envelope: Request[Any] | Letter[Any]) -> Arrival:
        rules, header = self._rules, self._header
        arrival_id = f"{rules.partition}-{record.offset}-{index}"
        if isinstance(envelope, Letter):
            source, asker = envelope.on_behalf_of or envelope.source, None
        else:
            source, asker = "", envelope.asker
        return Arrival(arrival_id, rules.partition, header.now_ms, rules.topology, source, asker, header.rules)

    def _decide(self, arrival: Arrival, message: Message, record: Record, index: int) -> Step:
        """Decide, and take the decision over whole: what cannot be encoded or addressed is as if it had raised."""
        place = (record.offset, index)
        while place not in self._rules.dead_letters:
            try:
                decision = self._rules.machine.decide(self._memory, message, arrival)
                encoded = _Encoded(decision, arrival, self._memory)
            except NotLoaded as missing:
                yield Missing([missing.key])
            except MemoryError:
                raise
            except Exception:
                envelope = self._rules.codec.envelope(record.value, index)
                yield DeadLetter(arrival.partition, record.offset, index, traceback.format_exc(), envelope)
            else:
                self._absorb(arrival, encoded)
                return
        excuse = self._excuse(arrival, message, place)
        self._header.counts[BURIED] = self._header.counts.get(BURIED, 0) + 1
        if not excuse.messages:
            self._header.counts[STUCK] = self._header.counts.get(STUCK, 0) + 1
        self._absorb(arrival, _Encoded(excuse, arrival, self._memory))

    def _excuse(self, arrival: Arrival, message: Message, place: tuple[int, int]) -> Decision:
        if arrival.asker is None:
            return Decision({}, self._rules.machine.excuse(message))
        number = self._rules.dead_letters[place]
        return Decision({}, (Refused(Reason.INTERNAL, f"a bug of ours: it is on record as dead letter {number}"),))

    # --- taking a decision over

    def _absorb(self, arrival: Arrival, decision: _Encoded) -> None:
        for key, (entity, value) in decision.state.items():
            self._count(key, entity)
            self._put(key, entity, value)
        for partition, message in decision.letters:
            self._send(partition, message)
        for asker, outcome in decision.outcomes:
            self._finish(asker, outcome)
        if arrival.asker is not None and not decision.answered:
            self._put_result(arrival.asker, Result(arrival.asker.fingerprint, None))
        self.folded.ended.extend(decision.ended)

    def _count(self, key: str, entity: Entity | None) -> None:
        change = (entity is not None) - (self._memory[key] is not None)
        if change:
            kind = key.partition(":")[0]
            self._header.counts[kind] = self._header.counts.get(kind, 0) + change

    def _put(self, key: str, entity: Entity | None, value: bytes | None) -> None:
        self._memory.remember(key, entity)
        self.folded.changes[key] = value
        self._header.digest = checksum(value or b"", checksum(key.encode(), self._header.digest))

    def _send(self, partition: str, message: msgspec.Raw) -> None:
        sequence = self._header.sent.get(partition, 0) + 1
        self._header.sent[partition] = sequence
        letter = encode(Letter(self._rules.partition, sequence, message))
        self.folded.letters.setdefault(partition, []).append(letter)

    # --- results and replies

    def _finish(self, asker: Asker, outcome: Outcome) -> None:
        self._put_result(asker, Result(asker.fingerprint, outcome))
        self._decided.setdefault("client" if asker.is_client_key else "attempt", []).append(asker.request_id)
        self._tell(asker, outcome)

    def _put_result(self, asker: Asker, result: Result) -> None:
        self._put(result_key(asker.request_id), result, encode(result))

    def _tell(self, asker: Asker, outcome: Outcome) -> None:
        told = Told(asker.request_id, asker.fingerprint, outcome)
        self.folded.replies.setdefault(asker.reply_to, []).append(told)

    def _file(self, name: str, shelf: Shelf) -> None:
        """List the requests that this record decided, so that they can be forgotten together."""
        request_ids = self._decided.pop(name, None)
        if not request_ids:
            return
        page = Page(self._header.now_ms, tuple(request_ids))
        shelf.last += 1
        shelf.oldest_ms = page.decided_ms if shelf.first == shelf.last else shelf.oldest_ms
        self._header.results += len(request_ids)
        self._put(f"Page:{name}-{shelf.last}", page, encode(page))

    def _prune(self, name: str, shelf: Shelf, retention_ms: int) -> Step:
        """Forget the oldest pages that are past their time, by the log's clock."""
        for _ in range(PAGES_PRUNED_MAX):
            if shelf.first > shelf.last or self._header.now_ms - shelf.oldest_ms <= retention_ms:
                return
            page = yield from self._get(Page, f"{name}-{shelf.first}")
            assert page is not None, f"page {name}-{shelf.first} is not there"
            shelf.oldest_ms = page.decided_ms
            if self._header.now_ms - page.decided_ms <= retention_ms:
                return
            for request_id in page.request_ids:
                self._put(result_key(request_id), None, None)
            self._put(f"Page:{name}-{shelf.first}", None, None)
            self._header.results -= len(page.request_ids)
            shelf.first += 1

    def _get(self, kind: type[E], entity_id: str) -> Generator[Effect, None, E | None]:
        key = f"{kind.__name__}:{entity_id}"
        while key not in self._memory:
            yield Missing([key])
        entity = self._memory[key]
        assert entity is None or isinstance(entity, kind)
        return entity


class Rules(msgspec.Struct):
    """What folding one partition depends on, besides its log: the same for its whole life."""

    machine: Machine
    codec: Codec
    partition: str
    topology: Topology
    dead_letters: DeadLetters

    def decode(self, records: list[Record]) -> list[tuple[Record, Content]]:
        """Return the records up to the first one that cannot be decoded; raise when that is the first of all."""
        decoded: list[tuple[Record, Content]] = []
        for record in records:
            try:
                decoded.append((record, self.codec.record(record.value)))
            except UndecodableRecord:
                if not decoded:
                    raise
                break
        return decoded


class _Encoded:
    """A decision whose every part is known to be encodable and addressed: taking it over cannot fail any more."""

    def __init__(self, decision: Decision, arrival: Arrival, memory: Memory) -> None:
        self.state = {key: (entity, _encoded(entity)) for key, entity in decision.state.items()}
        self.letters: list[tuple[str, msgspec.Raw]] = []
        self.outcomes: list[tuple[Asker, Outcome]] = []
        self.ended: list[Ended] = []
        for message in decision.messages:
            self._address(message, arrival)
        self.answered = any(asker is arrival.asker for asker, _ in self.outcomes)
        for key in self.state:
            if key.endswith(f":{arrival.id}"):
                memory.setdefault(key, None)  # what is named after this message cannot exist yet
            memory[key]

    def _address(self, message: Message | Send | Reply | Ended, arrival: Arrival) -> None:
        match message:
            case Ended():
                self.ended.append(message)
            case Send():
                self.letters.append((message.partition, msgspec.Raw(encode(message.message))))
            case Reply():
                self.outcomes.append((message.asker, message.outcome))
            case Done() | Refused():
                assert arrival.asker is not None, f"{message} has nobody to go to"
                self.outcomes.append((arrival.asker, message))
            case _:
                assert arrival.source, f"{message} has nowhere to go"
                self.letters.append((arrival.source, msgspec.Raw(encode(message))))


def _encoded(entity: Entity | None) -> bytes | None:
    return None if entity is None else encode(entity)
