"""The fold, over logs of systems that drawn scripts have run: repeats, cuts, dead letters, and records nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import hypothesis.strategies as st
import msgspec
import pytest
from builders import TWO_EACH
from hypothesis import assume, given
from strategies import MINUTE_MS, PARTITIONS, Script, commands, inits, late, model, play, scripts
from world import MACHINES, MemoryStore, World

from common.decision import Arrival, Decision, Machine, State, refused
from common.fold import (
    ATTEMPT_RETENTION_MS,
    BURIED,
    CLIENT_KEY_RETENTION_MS,
    COMMAND_AGE_MAX_MS,
    OTHER_CALL,
    STUCK,
    TOO_LATE,
    Codec,
    DeadLetter,
    DeadLetters,
    Fold,
    Folded,
    Header,
    Memory,
    Missing,
    Record,
    Rules,
    UndecodableRecord,
)
from common.messages import Batch, Done, Letter, Message, Outcome, Reason, Refused, Request, Told, encode
from order.checkout import SUPERSEDED
from stock.domain import Item

Envelope = Request[Message] | Letter[Message]
Place = tuple[int, int]
MACHINE_OF = {partition: machine for machine in MACHINES for partition in PARTITIONS if machine.service in partition}
HOWS = ("keep", "trim", "reload", "defer", "crash")
cuts_drawn = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(HOWS)), max_size=12)
Cuts = list[tuple[int, str]]

anything = scripts(commands | inits | late, (1, -1, MINUTE_MS, ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS + 1))
within_minutes = scripts(commands | inits | late, (1, -1, 5_000))


class Reading:
    """Reads a partition's log, in batches that end at cuts, into a store of its own; keeps all that came out.

    A dead letter's number is made of its place, so that it is the same whoever meets it first.
    """

    def __init__(self, partition: str, machine: Machine | None = None, dead_letters: DeadLetters | None = None) -> None:
        machine = machine or MACHINE_OF[partition]
        self.codec = Codec(machine)
        self.dead_letters = {} if dead_letters is None else dict(dead_letters)
        self.rules = Rules(machine, self.codec, partition, TWO_EACH, self.dead_letters)
        self.partition = partition
        self.store = MemoryStore()
        self.letters: dict[str, dict[int, bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.ended: list[object] = []
        self.load()

    def load(self) -> None:
        self.position, (header,) = self.store.read(self.partition, ["header"])
        self.memory, self.header, self.pending = Memory(), self.codec.header(header), None

    def read(self, records: list[Record], cuts: Cuts | None = None) -> Reading:
        """Read all records: batches end where the cuts say, and then at the end."""
        for size, how in cuts or []:
            if self.position < len(records):
                self.fold(records[self.position : self.position + size])
                self.go_on(how)
        if self.position < len(records):
            self.fold(records[self.position :])
        self.apply()
        return self

    def go_on(self, how: str) -> None:
        if how in ("keep", "trim", "reload"):
            self.apply()
        if how in ("reload", "crash"):
            self.load()
        if how == "trim":
            self.memory.trim(2)

    pending: Folded | None

    def fold(self, records: list[Record]) -> None:
        """Fold, behind what is not applied yet, and send the letters at once, as a processor does."""
        fold = Fold(self.rules, self.memory, self.header, records, self.pending)
        for effect in fold.run():
            match effect:
                case Missing():
                    _, values = self.store.read(self.partition, effect.keys)
                    for key, value in zip(effect.keys, values, strict=True):
                        self.memory.remember(key, self.codec.entity(value))
                case DeadLetter():
                    self.dead_letters[effect.offset, effect.index] = 1_000 * effect.offset + effect.index
        self.pending, self.position = fold.folded, fold.folded.end
        self.publish(fold.folded)

    def publish(self, folded: Folded) -> None:
        """Each number is sent once, and sent again it is the same: the first time they rise by one."""
        letters, folded.letters = folded.letters, {}
        for target, sent in letters.items():
            known = self.letters.setdefault(target, {})
            for value in sent:
                number = msgspec.msgpack.decode(value)[2]
                assert number <= len(known) + 1
                assert known.setdefault(number, value) == value

    def apply(self) -> None:
        if self.pending is not None:
            self.store.apply(self.partition, self.pending)
            self.ended += self.pending.ended
            for count in ("messages", "repeats", "gaps"):
                self.counts[count] += getattr(self.pending, count)
        self.pending = None

    # --- what came out

    def all(self) -> tuple[object, ...]:
        """Return everything, byte for byte."""
        return self.store.snapshot(self.partition), self.letters, self.store.replies, self.ended, self.counts

    def entities(self) -> dict[str, bytes]:
        return {key: value for key, value in self.store.hashes[self.partition].items() if key != "header"}

    def header_but(self, **differs: object) -> Header:
        """Return the header without what is known to differ."""
        return msgspec.structs.replace(self.codec.header(encode(self.header)), **differs)

    def told(self) -> dict[tuple[str, int], list[Outcome]]:
        """Return what everybody was told, by request id and fingerprint."""
        told: dict[tuple[str, int], list[Outcome]] = {}
        for replies in self.store.replies.values():
            for reply in replies:
                told.setdefault((reply.request_id, reply.fingerprint), []).append(reply.outcome)
        return told


def contents(partition: str, records: list[Record]) -> list[list[Envelope] | None]:
    """Return the messages of each record, None for genesis."""
    decoded = [Codec(MACHINE_OF[partition]).record(record.value) for record in records]
    return [content.messages if isinstance(content, Batch) else None for content in decoded]


def rewritten(records: list[Record], envelopes: list[list[Envelope] | None]) -> list[Record]:
    """Return the records with these messages in them."""
    return [
        record if messages is None else msgspec.structs.replace(record, value=encode(Batch(messages)))
        for record, messages in zip(records, envelopes, strict=True)
    ]


def logs(script: Script) -> Iterable[tuple[str, list[Record]]]:
    world, _ = play(script)
    return world.log.records.items()


# --- batches --------------------------------------------------------------------------------------------------------


@model(120)
@given(script=anything, cuts=cuts_drawn)
def test_where_a_batch_ends_does_not_matter_nor_what_is_in_memory_nor_when_it_is_applied(
    script: Script, cuts: Cuts
) -> None:
    for partition, records in logs(script):
        assert Reading(partition).read(records, cuts).all() == Reading(partition).read(records).all()


@model(60)
@given(script=anything, how=st.sampled_from(["keep", "trim", "reload", "defer"]))
def test_records_one_by_one_come_to_the_same_as_all_at_once(script: Script, how: str) -> None:
    for partition, records in logs(script):
        one_by_one = Reading(partition).read(records, [(1, how)] * len(records))

        assert one_by_one.all() == Reading(partition).read(records).all()


@model(60)
@given(script=anything)
def test_what_the_system_came_to_is_the_fold_of_its_logs(script: Script) -> None:
    world, _ = play(script)
    for partition, records in world.log.records.items():
        reading = Reading(partition).read(records)

        assert reading.store.snapshot(partition) == world.store.snapshot(partition)
        assert world.dead_letters[partition] == {}


# --- repeats --------------------------------------------------------------------------------------------------------

repeats_drawn = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 200), st.sampled_from(["again", "again", "another"])),
    min_size=1,
    max_size=12,
)
Repeats = list[tuple[int, int, str]]


def with_repeats(
    log: list[list[Envelope] | None], repeats: Repeats
) -> tuple[list[list[Envelope] | None], Counter[str]]:
    """Put drawn messages again at the ends of drawn records, no earlier; return the log, and how many of what."""
    longer = [None if messages is None else list(messages) for messages in log]
    counts: Counter[str] = Counter()
    found = [(offset, envelope) for offset, messages in enumerate(log) for envelope in messages or []]
    for which, later, how in repeats if found else []:
        first, envelope = found[which % len(found)]
        offset = first + later % (len(log) - first)
        again = envelope if how == "again" else _another(envelope, log[: offset + 1])
        messages = longer[offset]
        assert messages is not None
        messages.append(again)
        counts[f"{type(again).__name__} {how}"] += 1
    return longer, counts


def _another(envelope: Envelope, before: list[list[Envelope] | None]) -> Envelope:
    """Another call under the same id; or a letter that is further ahead than the next one of its source."""
    if isinstance(envelope, Request):
        asker = msgspec.structs.replace(envelope.asker, fingerprint=envelope.asker.fingerprint + 1)
        return msgspec.structs.replace(envelope, asker=asker)
    letters = [other for messages in before for other in messages or [] if isinstance(other, Letter)]
    taken = max(other.sequence for other in letters if other.source == envelope.source)
    return msgspec.structs.replace(envelope, sequence=taken + 2)


@model(200)
@given(script=within_minutes, repeats=repeats_drawn, cuts=cuts_drawn)
def test_a_repeat_anywhere_is_answered_alike_and_changes_nothing(script: Script, repeats: Repeats, cuts: Cuts) -> None:
    for partition, records in logs(script):
        longer, counts = with_repeats(contents(partition, records), repeats)

        once = Reading(partition).read(records)
        more = Reading(partition).read(rewritten(records, longer), cuts)

        assert more.entities() == once.entities()
        assert more.header_but(crc=0) == once.header_but(crc=0)
        assert (more.letters, more.ended) == (once.letters, once.ended)
        assert more.counts["repeats"] == once.counts["repeats"] + counts["Letter again"]
        assert more.counts["gaps"] == once.counts["gaps"] + counts["Letter another"]
        is_told_alike(once.told(), more.told(), counts)


ahead = commands.map(lambda ask: msgspec.structs.replace(ask, age_ms=-COMMAND_AGE_MAX_MS))
hours = scripts(ahead, (1, MINUTE_MS, ATTEMPT_RETENTION_MS + 1, CLIENT_KEY_RETENTION_MS))


@model(200)
@given(script=hours, repeats=repeats_drawn)
def test_a_repeat_never_acts_again_however_late_it_comes(script: Script, repeats: Repeats) -> None:
    """Its result may be forgotten: then it is too late for it.  Clocks up to 5 minutes ahead; beyond: test_fold."""
    for partition, records in logs(script):
        longer, _ = with_repeats(contents(partition, records), [(*drawn, "again") for *drawn, _ in repeats])

        once = Reading(partition).read(records)
        more = Reading(partition).read(rewritten(records, longer))

        assert without_results(more) == without_results(once)
        assert (more.letters, more.ended) == (once.letters, once.ended)


def without_results(reading: Reading) -> dict[str, bytes]:
    return {key: value for key, value in reading.entities().items() if not key.startswith(("Result:", "Page:"))}


Tolds = dict[tuple[str, int], list[Outcome]]


def is_told_alike(once: Tolds, more: Tolds, counts: Counter[str]) -> None:
    """Who asked is told the same, once or again; who made another call is told so, unless it was too late anyway."""
    for asker, outcomes in more.items():
        if asker in once:
            assert outcomes[: len(once[asker])] == once[asker] or set(outcomes) == set(once[asker])
            assert set(outcomes) == set(once[asker])
        else:
            assert set(outcomes) <= {OTHER_CALL, TOO_LATE}
            late_ = TOO_LATE in once.get((asker[0], asker[1] - 1), [])
            assert set(outcomes) == {TOO_LATE if late_ else OTHER_CALL}
    assert set(more) >= set(once)
    total = sum(map(len, more.values())) - sum(map(len, once.values()))
    assert counts["Request another"] <= total <= counts["Request another"] + counts["Request again"]


# --- dead letters ---------------------------------------------------------------------------------------------------


def raising() -> Decision:
    raise ZeroDivisionError("the planted bug")


FAULTS: dict[str, Callable[[], Decision]] = {
    "raises": raising,
    "cannot be encoded": lambda: Decision({"Item:0": Item(2**70)}, (Done(),)),
    "has no address": lambda: Decision({"Item:0": Item(2), "Order:0": None}, (Done(), Told("a", 1, Done()))),
}


def place_of(arrival: Arrival) -> Place:
    _, offset, index = arrival.id.rsplit("-", 2)
    return int(offset), int(index)


def with_bugs(machine: Machine, bugs: dict[Place, str]) -> Machine:
    """Return the machine with a bug at each of these places."""

    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        bug = bugs.get(place_of(arrival))
        return FAULTS[bug]() if bug else machine.decide(state, message, arrival)

    return msgspec.structs.replace(machine, decide=decide)


def with_excuses(machine: Machine, bugs: dict[Place, str]) -> Machine:
    """Return what the machine with bugs has to come to: at these places there is an excuse and nothing else."""

    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        offset, index = place_of(arrival)
        if (offset, index) not in bugs:
            return machine.decide(state, message, arrival)
        if arrival.asker is None:
            return Decision({}, machine.excuse(message))
        number = 1_000 * offset + index
        return refused(Refused(Reason.INTERNAL, f"a bug of ours: it is on record as dead letter {number}"))

    return msgspec.structs.replace(machine, decide=decide)


bugs_drawn = st.dictionaries(st.integers(0, 200), st.sampled_from(sorted(FAULTS)), min_size=1, max_size=5)


def planted(log: list[list[Envelope] | None], bugs: dict[int, str]) -> dict[Place, str]:
    places = [(offset, index) for offset, messages in enumerate(log) for index in range(len(messages or []))]
    return {places[which % len(places)]: bug for which, bug in bugs.items()} if places else {}


@model(100)
@given(script=anything, bugs=bugs_drawn, cuts=cuts_drawn)
def test_a_decision_that_raises_leaves_an_excuse_and_nothing_else(
    script: Script, bugs: dict[int, str], cuts: Cuts
) -> None:
    for partition, records in logs(script):
        machine = MACHINE_OF[partition]
        at = planted(contents(partition, records), bugs)

        met = Reading(partition, with_bugs(machine, at)).read(records, cuts)
        meant = Reading(partition, with_excuses(machine, at)).read(records)

        assert met.entities() == meant.entities()
        assert met.header_but(counts=without_stuck(met)) == meant.header_but(counts=without_stuck(meant))
        assert (met.letters, met.store.replies, met.ended) == (meant.letters, meant.store.replies, meant.ended)
        assert set(met.dead_letters) - set(meant.dead_letters) <= set(at)


def without_stuck(reading: Reading) -> dict[str, int]:
    return {kind: count for kind, count in reading.header.counts.items() if kind not in (STUCK, BURIED)}


@model(100)
@given(script=anything, bugs=bugs_drawn, cuts=cuts_drawn)
def test_corrected_code_that_knows_the_dead_letters_comes_to_the_same_bytes(
    script: Script, bugs: dict[int, str], cuts: Cuts
) -> None:
    for partition, records in logs(script):
        at = planted(contents(partition, records), bugs)
        faulty = Reading(partition, with_bugs(MACHINE_OF[partition], at)).read(records)

        corrected = Reading(partition, dead_letters=faulty.dead_letters).read(records, cuts)

        assert corrected.all() == faulty.all()
        assert corrected.dead_letters == faulty.dead_letters


@model(60)
@given(script=anything, bugs=bugs_drawn)
def test_every_dead_letter_without_an_excuse_is_counted_as_stuck(script: Script, bugs: dict[int, str]) -> None:
    for partition, records in logs(script):
        machine, log = MACHINE_OF[partition], contents(partition, records)
        reading = Reading(partition, with_bugs(machine, planted(log, bugs))).read(records)

        dead = [(log[offset] or [])[index] for offset, index in reading.dead_letters]

        unexcused = [letter for letter in dead if isinstance(letter, Letter) and not machine.excuse(letter.message)]
        assert reading.header.counts.get(STUCK, 0) == len(unexcused)


# --- records that nobody knows ---------------------------------------------------------------------------------------


@model(80)
@given(script=anything, where=st.integers(0, 200), garbage=st.binary(max_size=9), cuts=cuts_drawn)
def test_everything_before_a_record_that_cannot_be_decoded_is_folded_and_nothing_after_it(
    script: Script, where: int, garbage: bytes, cuts: Cuts
) -> None:
    for partition, records in logs(script):
        assume(not is_known(partition, garbage))
        offset = where % len(records)
        spoilt = [*records]
        spoilt[offset] = msgspec.structs.replace(records[offset], value=garbage)
        reading = Reading(partition)

        with pytest.raises(UndecodableRecord):
            reading.read(spoilt, [*cuts, *[(len(records), "keep")] * 2])

        reading.apply()
        assert reading.position == offset
        before = Reading(partition).read(records[:offset])
        assert reading.store.snapshot(partition) == before.store.snapshot(partition)
        assert reading.letters == before.letters


def is_known(partition: str, value: bytes) -> bool:
    try:
        Codec(MACHINE_OF[partition]).record(value)
    except UndecodableRecord:
        return False
    return True


def test_the_scripts_have_everything_in_them() -> None:
    """Otherwise the properties above would say less than they seem to."""
    met: Counter[str] = Counter()

    @model(150)
    @given(script=anything)
    def note(script: Script) -> None:
        world, _ = play(script)
        met.update(seen(world))

    note()

    outcomes = {"paid", "not enough credit", "conflict", "TOO_LATE", "OTHER_CALL", "SUPERSEDED"}
    assert set(met) >= outcomes | {"repeats", "pruned", "joined", "SettleStock", "SettleCharge", "FillChunk"}
    assert set(met) >= {"ReleaseStock", "RefundUser", "PriceTold", "StockRefused", "ChargeRefused"}


NAMES = {OTHER_CALL: "OTHER_CALL", TOO_LATE: "TOO_LATE", SUPERSEDED: "SUPERSEDED"}


def seen(world: World) -> Iterable[str]:
    for folded in world.folded:
        yield from (ended.outcome for ended in folded.ended)
        yield from ["repeats"] * folded.repeats
        told = [reply.outcome for replies in folded.replies.values() for reply in replies]
        yield from (NAMES[outcome] for outcome in told if outcome in NAMES)
        yield from ["joined"] * (len(told) > len(set(told)) and bool(folded.ended))
    for partition, owner in world.owners.items():
        yield from ["pruned"] * (owner.header.attempts.first - 1)
        for messages in contents(partition, world.log.records[partition]):
            yield from (type(envelope.message).__name__ for envelope in messages or [])
