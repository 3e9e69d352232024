"""Bugs on purpose: what the simulation is worth is how many of them it finds.

Each plant changes the shipped code, or a promise of the log or the store that the code relies on, the way a plausible
mistake would.  The first fourteen are those of section 13 of the design.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec
from simulation import scenario, system
from simulation.log import SimulatedSnapshotLog
from simulation.process import EPOCH_S
from simulation.store import Primary, SimulatedStore, Temporary

from common import fold as fold_module
from common import snapshot, snapshotter
from common.decision import Arrival, Decision, Machine, Reply, State, key
from common.fold import Codec, Fold, Folded, Header, Memory, Record, Rules, UndecodableRecord
from common.log import LogFailed, _Lane
from common.messages import Batch, Letter, Refused, Request, checksum
from common.processor import Partition
from common.request_reply import RequestReply
from common.snapshot import Manifest, Snapshots
from common.tasks import spawn
from order import checkout, domain
from order.checkout import Checkout, Step
from stock.domain import MACHINE as STOCK
from stock.domain import AddStock

PLANTS: dict[str, Plant] = {}


@dataclass(frozen=True)
class Plant:
    """One bug: `changes` are what is replaced where; `origin` says who thought of it."""

    name: str
    origin: str
    changes: Callable[[], tuple[tuple[object, str, object], ...]]

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Have the bug while the block runs."""
        with contextlib.ExitStack() as stack:
            for target, name, replacement in self.changes():
                stack.enter_context(patch.object(target, name, replacement))
            yield


def plant(origin: str) -> Callable[[Callable[[], tuple[tuple[object, str, object], ...]]], None]:
    """Register a function that returns what is replaced; its name is the bug's."""

    def register(changes: Callable[[], tuple[tuple[object, str, object], ...]]) -> None:
        name = changes.__name__.replace("_", " ")
        PLANTS[name] = Plant(name, origin, changes)

    return register


def shipped(owner: object, name: str) -> Any:
    """Return a part of the shipped code as it is before anything is planted."""
    return getattr(owner, name)


design = plant("design, section 13")
ours = plant("ours")


# --- the fold --------------------------------------------------------------------------------------------------------


@design
def no_sequence_check() -> Any:
    def is_next(self: Fold, letter: Letter[Any]) -> bool:
        self._header.taken[letter.source] = letter.sequence
        return True

    return ((Fold, "_is_next", is_next),)


@design
def a_sequence_per_record_instead_of_per_message() -> Any:
    send, take_record = shipped(Fold, "_send"), shipped(Fold, "_take_record")

    def send_with_one_sequence(self: Fold, partition: str, message: msgspec.Raw) -> None:
        if partition in self.folded.letters:
            self._header.sent[partition] -= 1
        send(self, partition, message)

    def take_whole_record(self: Fold, record: Record, content: Any) -> Any:
        self.__dict__["begun"] = set()
        yield from take_record(self, record, content)

    def is_next(self: Fold, letter: Letter[Any]) -> bool:
        begun: set[str] = self.__dict__["begun"]
        if letter.source in begun and letter.sequence == self._header.taken[letter.source]:
            return True
        if letter.sequence != self._header.taken.get(letter.source, 0) + 1:
            return False
        begun.add(letter.source)
        self._header.taken[letter.source] = letter.sequence
        return True

    changes = {"_send": send_with_one_sequence, "_take_record": take_whole_record, "_is_next": is_next}
    return tuple((Fold, name, change) for name, change in changes.items())


@design
def results_not_checked_in_the_fold() -> Any:
    def take(self: Fold, record: Record, index: int, envelope: Any) -> Any:
        self.folded.messages += 1
        if isinstance(envelope, Request):
            yield from self._get(fold_module.Result, envelope.asker.request_id)
        elif not self._is_next(envelope):
            return
        yield from self._decide(self._arrival(record, index, envelope), envelope.message, record, index)

    return ((Fold, "_take", take),)


@design
def an_undecodable_record_is_skipped() -> Any:
    def decode(self: Rules, records: list[Record]) -> list[Any]:
        decoded: list[Any] = []
        for record in records:
            try:
                decoded.append((record, self.codec.record(record.value)))
            except UndecodableRecord:
                decoded.append((record, Batch([])))
        return decoded

    return ((Rules, "decode", decode),)


@ours
def rules_change_without_a_version() -> Any:
    return ((scenario, "NEW_RULES", 0),)


@ours
def old_code_folds_on_by_rules_that_it_does_not_know() -> Any:
    def record(self: Codec, value: bytes) -> Any:
        try:
            return self._record.decode(value)
        except msgspec.DecodeError as why:
            raise UndecodableRecord(str(why)) from why

    return ((Codec, "record", record),)


@ours
def a_clock_is_read_in_the_fold() -> Any:
    take_record = shipped(Fold, "_take_record")

    def take_now(self: Fold, record: Record, content: Any) -> Any:
        self._header.now_ms = int((EPOCH_S + asyncio.get_running_loop().time()) * 1000)
        yield from take_record(self, record, content)

    return ((Fold, "_take_record", take_now),)


@ours
def the_result_is_not_stored_with_the_state() -> Any:
    return ((Fold, "_put_result", lambda _self, _asker, _result: None),)


@ours
def sequences_are_not_stored_with_the_state() -> Any:
    def encode_without(value: Any) -> bytes:
        if isinstance(value, Header):
            value = msgspec.structs.replace(value, sent={})
        return msgspec.msgpack.encode(value)

    return ((fold_module, "encode", encode_without),)


@ours
def old_commands_act_after_their_result_is_forgotten() -> Any:
    known = shipped(Fold, "_known")

    def known_at_any_age(self: Fold, request: Request[Any], result: fold_module.Result | None) -> Any:
        return known(self, msgspec.structs.replace(request, made_ms=self._header.now_ms), result)

    return ((Fold, "_known", known_at_any_age),)


@ours
def another_call_under_the_same_key_is_told_the_first_ones_result() -> Any:
    def known(self: Fold, request: Request[Any], result: fold_module.Result | None) -> Any:
        del self, request
        return None if result is None else result.outcome

    return ((Fold, "_known", known),)


# --- the step --------------------------------------------------------------------------------------------------------


@design
def apply_before_publish() -> Any:
    publish, apply = shipped(Partition, "_publish"), shipped(Partition, "_apply")

    async def nothing(_self: Partition, _folded: Folded) -> None:
        pass

    async def apply_then_publish(self: Partition, folded: Folded) -> None:
        await apply(self, folded)
        await publish(self, folded)

    return (Partition, "_publish", nothing), (Partition, "_apply", apply_then_publish)


@design
def reads_of_the_processor_not_tied_to_its_position() -> Any:
    async def read(self: Partition, keys: list[str]) -> None:
        if keys:
            _, values = await self._store.read(self.name, keys)
            for missing, value in zip(keys, values, strict=True):
                self._memory.remember(missing, self._codec.entity(value))

    return ((Partition, "_read", read),)


@design
def no_idle_position_check() -> Any:
    async def check(self: Partition) -> None:
        self._note_position()

    return ((Partition, "_check_position", check),)


@design
def a_log_that_lost_a_consumed_record_goes_unnoticed() -> Any:
    async def mismatch(_self: Partition, _position: int) -> None:
        return None

    return ((Partition, "_mismatch", mismatch),)


@design
def corrected_code_replays_without_the_dead_letter_set() -> Any:
    load = shipped(Partition, "_load")

    async def load_without(self: Partition) -> None:
        await load(self)
        self._rules.dead_letters.clear()

    return ((Partition, "_load", load_without),)


@ours
def the_memory_outlives_a_rewind() -> Any:
    load = shipped(Partition, "_load")

    async def load_but_keep(self: Partition) -> None:
        memory = getattr(self, "_memory", Memory())
        await load(self)
        self._memory = memory

    return ((Partition, "_load", load_but_keep),)


@ours
def a_dead_letter_is_skipped_before_it_is_on_record() -> Any:
    async def bury(self: Partition, letter: fold_module.DeadLetter) -> None:
        self._rules.dead_letters[letter.offset, letter.index] = 0

    return ((Partition, "_bury", bury),)


# --- the store -------------------------------------------------------------------------------------------------------


def _apply_if(allowed: Callable[[int, Folded], bool]) -> Any:
    shipped_apply = Primary.apply

    def apply(self: Primary, partition: str, folded: Folded, *, with_replies: bool) -> int:
        if not allowed(self.positions.get(partition, 0), folded):
            return self.positions.get(partition, 0)
        moved = msgspec.structs.replace(folded, start=self.positions.get(partition, 0))
        return shipped_apply(self, partition, moved, with_replies=with_replies)

    return ((Primary, "apply", apply),)


@design
def no_fence() -> Any:
    return _apply_if(lambda _position, _folded: True)


@design
def a_fence_that_lets_stored_below_start_pass() -> Any:
    return _apply_if(lambda position, folded: position <= folded.start)


@ours
def position_and_values_are_read_one_after_the_other() -> Any:
    read = SimulatedStore.read

    async def read_twice(self: SimulatedStore, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        _, values = await read(self, partition, fields)
        position, _ = await read(self, partition, [])
        return position, values

    return ((SimulatedStore, "read", read_twice),)


# --- snapshots -------------------------------------------------------------------------------------------------------


@ours
def a_snapshot_counts_although_it_was_not_read_back() -> Any:
    async def is_readable(_self: Snapshots, _partition: str, _manifest: Manifest) -> bool:
        return True

    return ((Snapshots, "_is_readable", is_readable),)


@ours
def the_manifest_goes_before_its_chunks_and_is_not_read_back() -> Any:
    """Its chunks are to come where the last one's end, if nobody else writes any, and nobody dies."""

    async def take(self: Snapshots, partition: str, position: int, header: bytes, fields: dict[str, bytes]) -> None:
        written = await self._newest_first(partition)
        following = max((offset for _, manifest in written for offset, _ in manifest.chunks), default=-1) + 1
        chunks = list(shipped(snapshot, "_chunks")(fields))
        places = tuple((following + number, checksum(chunk)) for number, chunk in enumerate(chunks))
        await self._log.put_manifest(partition, fold_module.encode(Manifest(position, header, len(fields), places)))
        for chunk in chunks:
            await self._log.put_chunk(partition, chunk)
        await self._trim(partition)

    async def is_readable(_self: Snapshots, _partition: str, _manifest: Manifest) -> bool:
        return True

    return (Snapshots, "take", take), (Snapshots, "_is_readable", is_readable)


@ours
def the_log_is_trimmed_to_the_newest_snapshot() -> Any:
    return ((snapshot, "KEPT", 1),)


@ours
def a_manifest_that_was_appended_twice_counts_as_two_snapshots() -> Any:
    async def trim(self: Snapshots, partition: str) -> None:
        kept: list[tuple[int, Manifest]] = []
        for offset, manifest in await self._newest_first(partition):
            if await self._is_readable(partition, manifest):
                kept.append((offset, manifest))
            if len(kept) == snapshot.KEPT:
                chunk = min(offset for _, manifest in kept for offset, _ in manifest.chunks)
                return await self._log.trim(partition, kept[-1][1].position, chunk, min(offset for offset, _ in kept))
        return None

    return ((Snapshots, "_trim", trim),)


@ours
def chunks_are_deleted_that_the_older_snapshot_needs() -> Any:
    trim = SimulatedSnapshotLog.trim

    async def trim_more(self: SimulatedSnapshotLog, partition: str, position: int, chunk: int, manifest: int) -> None:
        await trim(self, partition, position, chunk + 1, manifest)

    return ((SimulatedSnapshotLog, "trim", trim_more),)


@ours
def a_state_older_than_its_log_is_not_restored() -> Any:
    restore = shipped(Partition, "_restore")

    async def restore_what_is_missing(self: Partition, position: int) -> bool:
        return position == 0 and await restore(self, position)

    return ((Partition, "_restore", restore_what_is_missing),)


@ours
def where_the_newest_snapshot_cannot_be_read_nothing_is_restored() -> Any:
    newest_first = shipped(Snapshots, "newest_first")

    async def newest(self: Snapshots, partition: str) -> list[Manifest]:
        return (await newest_first(self, partition))[:1]

    return ((Snapshots, "newest_first", newest),)


@ours
def the_log_id_is_looked_for_in_a_record_that_was_deleted() -> Any:
    return ((Partition, "_snapshots_log_id", shipped(Partition, "_log_id")),)


@ours
def what_a_failover_lost_of_a_restore_is_not_counted() -> Any:
    restore = Primary.restore

    def restore_whatever_is_there(self: Primary, partition: str, expected: int, name: str, manifest: Manifest) -> int:
        there = self.temporaries.setdefault(name, Temporary({}, float("inf")))
        there.fields.setdefault("header", manifest.header)  # where it lacks, nobody would load it
        as_many = msgspec.structs.replace(manifest, field_count=len(there.fields) - 1)
        return restore(self, partition, expected, name, as_many)

    return ((Primary, "restore", restore_whatever_is_there),)


@ours
def a_snapshot_is_restored_in_place() -> Any:
    def fill(self: Primary, name: str, fields: dict[str, bytes]) -> None:
        self.hashes.setdefault(name.partition(":")[0], {}).update(fields)

    def restore(self: Primary, partition: str, expected: int, _name: str, manifest: Manifest) -> int:
        if self.positions.get(partition, 0) != expected:
            return self.positions.get(partition, 0)
        self.positions[partition] = manifest.position
        return manifest.position

    return (Primary, "fill", fill), (Primary, "restore", restore)


@ours
def the_snapshotter_folds_beyond_the_store() -> Any:
    memory = shipped(snapshotter, "_Memory")
    left = shipped(memory, "left")

    async def left_and_more(self: Any, offset: int) -> int:
        return await left(self, offset) + 1

    return ((memory, "left", left_and_more),)


@ours
def the_snapshotter_folds_before_it_knows_the_dead_letters() -> Any:
    async def learn(_self: Any, _count: int) -> None:
        pass

    return ((shipped(snapshotter, "_Letters"), "learn", learn),)


@ours
def owners_fold_by_rules_of_their_own() -> Any:
    begin = shipped(system.ProcessorProcess, "__init__")

    def decide(state: State, message: Any, arrival: Arrival) -> Decision:
        if isinstance(message, AddStock):
            message = msgspec.structs.replace(message, amount=message.amount + 1)
        return STOCK.decide(state, message, arrival)

    def begin_otherwise(self: system.ProcessorProcess, name: str, machine: Machine, of: system.System) -> None:
        begin(self, name, msgspec.structs.replace(machine, decide=decide) if machine is STOCK else machine, of)

    return ((system.ProcessorProcess, "__init__", begin_otherwise),)


@ours
def the_digest_is_made_of_what_a_batch_changes_last() -> Any:
    """Where a batch ends is not the same for owner and snapshotter."""
    put, run = shipped(Fold, "_put"), shipped(Fold, "run")

    def put_only(self: Fold, place: str, entity: Any, value: bytes | None) -> None:
        digest = self._header.digest
        put(self, place, entity, value)
        self._header.digest = digest

    def run_then_digest(self: Fold) -> Any:
        yield from run(self)
        changed = fold_module.encode(self.folded.changes)
        self._header.digest = checksum(changed, self._header.digest)
        self.folded.changes["header"] = fold_module.encode(self._header)

    return (Fold, "_put", put_only), (Fold, "run", run_then_digest)


# --- the web side ----------------------------------------------------------------------------------------------------


@design
def reads_do_not_wait_for_the_logs_end() -> Any:
    read_from = shipped(RequestReply, "_read_from")

    async def read_at_once(self: RequestReply, partition: str, end: int, keys: list[str]) -> list[bytes | None]:
        del end
        return await read_from(self, partition, 0, keys)

    return ((RequestReply, "_read_from", read_at_once),)


# --- the publisher ---------------------------------------------------------------------------------------------------


@ours
def a_failed_send_is_not_repeated() -> Any:
    async def deliver(self: _Lane, record: bytes) -> int:
        try:
            return await self._sender.send(self._place, record)
        except LogFailed:
            return self._last_offset

    return ((_Lane, "_deliver", deliver),)


@design
def acknowledgements_are_accepted_out_of_order() -> Any:
    """Every message is a send of its own, and the last one's acknowledgement counts for all."""

    async def run(self: _Lane) -> None:
        queue, self._queue = self._queue, []
        self._task = None
        for message, acknowledged in queue:
            spawn(deliver(self, fold_module.encode(Batch([msgspec.Raw(message)])), acknowledged))

    async def deliver(self: _Lane, record: bytes, acknowledged: asyncio.Future[int] | None) -> None:
        offset = await self._deliver(record)
        if acknowledged is not None and not acknowledged.done():
            acknowledged.set_result(offset)

    return ((_Lane, "_run", run),)


@ours
def publish_does_not_wait_for_acknowledgements() -> Any:
    async def publish(self: Partition, folded: Folded) -> None:
        letters, folded.letters = folded.letters, {}
        for target, messages in letters.items():
            self._world.publisher.publish(target, messages)

    return ((Partition, "_publish", publish),)


# --- the saga --------------------------------------------------------------------------------------------------------


@design
def batch_init_drops_an_open_saga() -> Any:
    fill = domain.fill

    def fill_and_drop(state: State, chunk: Any, arrival: Arrival) -> Decision:
        decision = fill(state, chunk, arrival)
        kept = {place: None if isinstance(entity, Checkout) else entity for place, entity in decision.state.items()}
        return msgspec.structs.replace(decision, state=kept)

    return ((domain, "fill", fill_and_drop),)


@design
def a_checkout_id_is_used_again() -> Any:
    check_out = domain.check_out

    def check_out_by_order(state: State, command: Any, arrival: Arrival) -> Decision:
        return check_out(state, command, msgspec.structs.replace(arrival, id=f"of-{command.order_id}"))

    return ((domain, "check_out", check_out_by_order),)


@ours
def undo_on_the_first_refusal_only() -> Any:
    """What is accepted after the first refusal is never undone."""

    def refuse(open_: Checkout, refusal: Refused, arrival: Arrival) -> Step:
        refusals = {**open_.refusals, arrival.source: refusal}
        refused = msgspec.structs.replace(open_, refusals=refusals, undoing=True, waiting=open_.accepted)
        return Step(refused, tuple(undo(refused))) if refused.waiting else fail(refused, arrival)

    def continue_checkout(state: State, message: Any, arrival: Arrival) -> Decision:
        place = key(Checkout, message.checkout_id)
        open_ = state[place]
        late = open_ is None or (isinstance(open_, Checkout) and open_.undoing and not _is_undone(message))
        return Decision() if late else decide(state, message, arrival)

    def decide_leniently(state: State, message: Any, arrival: Arrival) -> Decision:
        answers = hasattr(message, "checkout_id")
        return continue_checkout(state, message, arrival) if answers else decide(state, message, arrival)

    decide, undo, fail = domain.decide, shipped(checkout, "_undo"), shipped(checkout, "_fail")
    machine = msgspec.structs.replace(domain.MACHINE, decide=decide_leniently)
    return (domain, "refuse", refuse), (system, "ORDER", machine)


def _is_undone(message: object) -> bool:
    return type(message).__name__ in ("StockReleased", "UserRefunded")


@ours
def the_reply_goes_out_before_the_undo_is_acknowledged() -> Any:
    answered = shipped(checkout, "_answered")

    def answered_early(open_: Checkout, arrival: Arrival, **learned: object) -> Step:
        step = answered(open_, arrival, **learned)
        if not step.checkout.undoing or open_.undoing:
            return step
        first = next(iter(step.checkout.refusals.values()))
        replies = tuple(Reply(asker, first) for asker in step.checkout.askers)
        silent = msgspec.structs.replace(step.checkout, askers=())
        return Step(silent, (*step.messages, *replies))

    return ((checkout, "_answered", answered_early),)


@ours
def one_part_of_a_failed_checkout_is_not_undone() -> Any:
    answered = shipped(checkout, "_answered")

    def forgetful(open_: Checkout, arrival: Arrival, **learned: object) -> Step:
        step = answered(open_, arrival, **learned)
        if not step.checkout.undoing or len(step.checkout.waiting) < 2:
            return step
        waiting = step.checkout.waiting[:-1]
        return Step(msgspec.structs.replace(step.checkout, waiting=waiting), step.messages[:-1])

    return ((checkout, "_answered", forgetful),)
