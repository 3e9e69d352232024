"""The processor: owns partitions, and takes each through the same step for ever.

    poll -> read -> fold (pure) -> publish, all acknowledged -> apply (fenced) -> replies

Where a crash, or anything else that ends a step early, leaves a partition:

    while           on disk                                    what the next owner does
    --------------  -----------------------------------------  -------------------------------------------------
    poll, fold      the records                                loads the same position, folds the same again
    publish         some letters stand in their targets' logs  the same letters again; targets drop the repeats
    apply           all letters; the state moved or it did not goes on behind the batch, or takes it once more
    replies         state and replies moved together           nothing: who missed a reply reads the result

While nobody waits for what is folded (no replies), a step takes along what comes within milliseconds: its letters go
out at once, its apply comes later.  A crash in between is one between publish and apply.

There is one recovery: drop the memory of the partition and load it.  Start, rebalance, failover, fence and an emptied
store all take that way; where the state is gone, it is restored from the newest snapshot first (common.snapshot).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from common import telemetry
from common.decision import Ended, Machine
from common.fold import (
    STUCK,
    Codec,
    DeadLetter,
    DeadLetters,
    Fold,
    Folded,
    Memory,
    Missing,
    Record,
    Rules,
    UndecodableRecord,
)
from common.log import LogFailed, LogSilent
from common.messages import Genesis, Topology, checksum
from common.snapshot import Manifest, Snapshots, Unreadable
from common.store import Fenced, StoreFailed
from common.tasks import spawn
from common.watchdog import Stuck, beat, nurse, rest

IDLE_S = 0.25
"""How long a poll waits; an idle partition compares its position with the store's this often."""
LINGER_S = 0.003
BUSY_MESSAGES = 4
"""After a batch of so many a partition waits this long for more before it folds: larger batches cost less."""
DEFER_MAX_S = 0.005
DEFERRED_MESSAGES_MAX = 1_000
"""A step that nobody waits for takes along what comes next, so long and so much at most."""
RECORDS_MAX = 500
MEMORY_ENTITIES_MAX = 30_000
REPLY_AGE_MAX_MS = 60_000
"""No replies are sent for older records: a replay must not flood."""
RETRY_S = 0.2
HALT_S = 10.0
"""How long a log that does not fit the state may take to fit (a stale leader looks like a short log)."""
OUT_OF_REACH_S = 5.0
"""How long a partition's store may not answer before others should own the partition: longer than a failover."""
SILENCES_MAX = 3
"""Consumers that go silent in a row, none bringing a record, before this process ends and others take over."""

logger = structlog.get_logger()
T = TypeVar("T")


class Tail(Protocol):
    """Follows one partition of the log; common.log has the real one."""

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""

    async def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first record and of the next one to come."""
        ...

    async def read(self, offset: int) -> Record | None:
        """Return one record, None if it does not come in time."""

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        """Return the next records; wait when there are none yet."""
        ...

    def seek(self, offset: int) -> None:
        """Go on with the record at `offset`."""

    def behind(self, position: int) -> int:
        """Return how many records from `position` on are known to exist."""
        ...


class Publisher(Protocol):
    """Delivers messages to partitions, in order; common.log has the real one."""

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        """Return the offset of the last message's record, once it is acknowledged."""
        ...


class Store(Protocol):
    """Reads and moves partitions; common.store has the real one."""

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return position and fields, as of the same moment."""
        ...

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        """Move the partition from folded.start to folded.end, or raise Fenced."""

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        """Put a snapshot in place of a partition that stands at `expected`, or raise Fenced."""


class DeadLetterBox(Protocol):
    """Keeps dead letters; common.log has the real one."""

    async def put(self, letter: DeadLetter) -> int:
        """Return the dead letter's number, once it is acknowledged."""
        ...

    async def of(self, partition: str, since: int = 0) -> DeadLetters:
        """Return a partition's dead letters from number `since` on."""
        ...


class World(msgspec.Struct, frozen=True):
    """All that a partition touches outside itself: the simulation has another one."""

    tail: Callable[[str], Tail]
    publisher: Publisher
    store: Store
    dead_letters: DeadLetterBox
    snapshots: Snapshots
    now_s: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Halted(Exception):
    """The log is not the one that the state was made from: a person has to look."""


class Partition:
    """One partition that this process owns."""

    def __init__(
        self, name: str, machine: Machine, topology: Topology, world: World, *, is_judged: bool = False
    ) -> None:
        """`is_judged`: after a halt somebody else says when it is well again, not this partition by going on."""
        self.name = name
        self._is_judged = is_judged
        self.stopping = False
        self.following = False
        self._store_asked_s: float | None = None
        self._machine = machine
        self._topology = topology
        self._world = world
        self._store = world.store
        self._codec = Codec(machine)
        self._silences = 0

    async def run(self) -> None:
        """Load and follow, again and again, until `stopping`; raise Stuck when new consumers stay silent."""
        while not self.stopping:
            beat()
            try:
                await self._own()
            except (Fenced, LogFailed, StoreFailed) as why:
                self._note_rewind(type(why).__name__, str(why))
                self._count_silence(why)
                await self._world.sleep(RETRY_S)
            except (Halted, UndecodableRecord, msgspec.DecodeError) as why:
                self._note_halt(str(why))
                await self._world.sleep(HALT_S)

    @property
    def is_out_of_reach(self) -> bool:
        """Say whether the store has not answered for a while: nothing but failures, or one call that does not end."""
        asked_s = self._store_asked_s
        return asked_s is not None and self._world.now_s() - asked_s > OUT_OF_REACH_S

    async def _ask(self, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return the partition's position and fields, as of the same moment."""
        return await self._answer(self._store.read(self.name, fields))

    async def _answer(self, asked: Awaitable[T]) -> T:
        """Return what the store says; note since when it has been asked in vain."""
        if self._store_asked_s is None:
            self._store_asked_s = self._world.now_s()
        try:
            answer = await asked
        except Fenced:
            self._store_asked_s = None
            raise
        self._store_asked_s = None
        return answer

    def _count_silence(self, why: Exception) -> None:
        if isinstance(why, LogSilent):
            self._silences += 1
            if self._silences > SILENCES_MAX:
                raise Stuck(f"{self.name}: {self._silences} consumers were silent") from why

    async def _own(self) -> None:
        self._tail = self._world.tail(self.name)
        try:
            await self._tail.open()
            await self._load()
            self.following = True
            await self._follow()
        finally:
            self.following = False
            telemetry.forget_partition(self.name)
            await self._tail.close()

    # --- load

    async def _load(self) -> None:
        """Begin where the store stands, after making sure that the log is the one the state was folded from."""
        position, header = await self._stored()
        self._header = self._codec.header(header)
        self._memory = Memory()
        self._rules = Rules(
            self._machine,
            self._codec,
            self.name,
            self._topology,
            await self._world.dead_letters.of(self.name),
        )
        await self._check_log(position)
        self._position = position
        self._is_busy = False
        self._tail.seek(position)
        logger.info("loaded", partition=self.name, position=position, rules=self._header.rules)

    async def _stored(self) -> tuple[int, bytes | None]:
        """Return position and header; what is missing, or older than the log, is restored from a snapshot first."""
        position, (header,) = await self._ask(["header"])
        first, _ = await self._tail.bounds()
        if (position == 0 or position < first) and await self._restore(position):
            position, (header,) = await self._ask(["header"])
        return position, header

    async def _restore(self, position: int) -> bool:
        """Put the newest snapshot that can be read in place of a state at `position`; return False if none is newer."""
        snapshots = self._world.snapshots
        for manifest in await snapshots.newest_first(self.name):
            if manifest.position <= position:
                break
            try:
                async with aclosing(snapshots.read(self.name, manifest)) as chunks:
                    await self._store.restore(self.name, position, manifest, chunks)
            except Unreadable as why:
                logger.warning("a snapshot cannot be read", partition=self.name, why=str(why))
            else:
                logger.info("restored", partition=self.name, position=manifest.position, fields=manifest.field_count)
                return True
        return False

    async def _check_log(self, position: int) -> None:
        deadline = self._world.now_s() + HALT_S
        while (mismatch := await self._mismatch(position)) is not None:
            if self._world.now_s() > deadline:
                raise Halted(mismatch)
            await self._world.sleep(RETRY_S)

    async def _mismatch(self, position: int) -> str | None:
        """Say what shows that the state was not made from this log, None when nothing does."""
        first, end = await self._tail.bounds()
        if position > end:
            return f"the log of {self.name} ends at {end}, its state stands at {position}: records were lost"
        if position < first:
            return f"the log of {self.name} begins at {first}, its state stands at {position}: records are missing"
        if position == 0:
            return None
        if self._header.topology != self._topology:
            return f"{self.name} was made for partition counts {self._header.topology}, not {dict(self._topology)}"
        if self._header.rules > self._machine.rules:
            return f"{self.name} is folded by rules {self._header.rules}, this code knows {self._machine.rules}"
        log_id = await (self._log_id() if first == 0 else self._snapshots_log_id())
        if log_id != self._header.log_id:
            return f"the log of {self.name} is {log_id!r}, its state was made from {self._header.log_id!r}"
        return None if position == first else await self._last_record_differs(position)

    async def _log_id(self) -> str:
        genesis = await self._tail.read(0)
        if genesis is None:
            raise LogFailed(f"record 0 of {self.name} cannot be read")
        content = self._codec.record(genesis.value)
        return content.log_id if isinstance(content, Genesis) else ""

    async def _snapshots_log_id(self) -> str:
        """Return it where record 0 was deleted: snapshots have it.  Without one there is nothing to compare with."""
        manifests = await self._world.snapshots.newest_first(self.name)
        return self._codec.header(manifests[0].header).log_id if manifests else self._header.log_id

    async def _last_record_differs(self, position: int) -> str | None:
        last = await self._tail.read(position - 1)
        if last is None:
            return f"record {position - 1} of {self.name} cannot be read"
        if (last.timestamp_ms, checksum(last.value)) != (self._header.timestamp_ms, self._header.crc):
            return f"record {position - 1} of {self.name} is not the one that was folded: the log was replaced"
        return None

    # --- follow

    async def _follow(self) -> None:
        """Take step after step.  While nobody waits for what was folded, a step takes along what comes next."""
        folded: Folded | None = None
        while not self.stopping:
            beat()
            records = await self._poll(IDLE_S if folded is None else LINGER_S)
            if records:
                folded = await self._fold(records, folded)
                await self._publish(folded)
            if folded is None:
                self._is_busy = False
                await self._check_position()
            elif not records or folded.end <= records[-1].offset or self._is_awaited(folded):
                await self._apply(folded)
                folded = None
        if folded is not None:
            await self._apply(folded)

    async def _poll(self, wait_s: float) -> list[Record]:
        """Return what there is.  Under load more records come after the ones fetched already: take them along."""
        records = await self._tail.poll(wait_s, RECORDS_MAX)
        if records and self._is_busy:
            records += await self._tail.poll(LINGER_S, RECORDS_MAX)
        return records

    def _is_awaited(self, folded: Folded) -> bool:
        """Say whether to apply now: somebody is to be told, or a read may have been waiting for some milliseconds."""
        is_old = self._world.now_s() - self._folded_since_s > DEFER_MAX_S
        return bool(folded.replies) or is_old or folded.messages > DEFERRED_MESSAGES_MAX

    async def _fold(self, records: list[Record], before: Folded | None) -> Folded:
        """Fold what could be polled, behind what is folded already and not applied; read what is not in memory."""
        self._silences = 0
        if before is None:
            self._folded_since_s = self._world.now_s()
        for offset, record in enumerate(records, before.end if before else self._position):
            if record.offset != offset:
                raise LogFailed(f"{self.name}: expected record {offset}, got {record.offset}")
        fold = Fold(self._rules, self._memory, self._header, records, before)
        for effect in fold.run():
            match effect:
                case Missing():
                    await self._read(effect.keys)
                case DeadLetter():
                    await self._bury(effect)
        if fold.folded.end <= records[-1].offset:
            self._tail.seek(fold.folded.end)
        return fold.folded

    async def _read(self, keys: list[str]) -> None:
        """Bring entities into memory.  Without the fence a zombie would fold new values into an old position."""
        if not keys:
            return
        position, values = await self._ask(keys)
        if position != self._position:
            raise Fenced(self.name, self._position, position)
        for key, value in zip(keys, values, strict=True):
            self._memory.remember(key, self._codec.entity(value))

    async def _bury(self, letter: DeadLetter) -> None:
        """Put it on record.  Another owner may have been first: a replay takes that number, and so do we."""
        await self._world.dead_letters.put(letter)
        known = self._rules.dead_letters
        news = await self._world.dead_letters.of(self.name, max(known.values(), default=-1) + 1)
        for place, first in news.items():
            known.setdefault(place, first)
        number = known[letter.offset, letter.index]
        telemetry.DEAD_LETTERS.labels(self.name).inc()
        described = {"partition": letter.partition, "offset": letter.offset, "index": letter.index}
        logger.error("dead letter", number=number, **described, traceback=letter.traceback)

    async def _check_position(self) -> None:
        """Notice a failover that took the state back, also when nothing is going on."""
        position, _ = await self._ask([])
        if position != self._position:
            raise Fenced(self.name, self._position, position)
        self._note_position()

    # --- commit

    async def _publish(self, folded: Folded) -> None:
        """Deliver the letters, all acknowledged: applied before that, a crash would lose them."""
        letters, folded.letters = folded.letters, {}
        sent = [self._world.publisher.publish(target, messages) for target, messages in letters.items()]
        rest()  # repeated for as long as the log is out of reach
        for acknowledged in sent:
            await acknowledged
        beat()

    async def _apply(self, folded: Folded) -> None:
        """Move the partition, and with it the replies."""
        fresh = self._world.now_s() * 1000 - folded.timestamp_ms < REPLY_AGE_MAX_MS
        await self._answer(self._store.apply(self.name, folded, with_replies=fresh))
        self._position = folded.end
        self._is_busy = folded.messages >= BUSY_MESSAGES
        self._memory.trim(MEMORY_ENTITIES_MAX)
        self._note_apply(folded, fresh=fresh)

    # --- what people see

    def _note_apply(self, folded: Folded, *, fresh: bool) -> None:
        self._note_position()
        telemetry.BATCH_MESSAGES.labels(self.name).observe(folded.messages)
        telemetry.REPEATS.labels(self.name).inc(folded.repeats)
        if folded.gaps:
            telemetry.GAPS.labels(self.name).inc(folded.gaps)
            logger.error("letters dropped, earlier ones are missing", partition=self.name, gaps=folded.gaps)
        if fresh:
            for ended in folded.ended:
                _note_end(ended)
        logger.debug("batch", partition=self.name, start=folded.start, end=folded.end, messages=folded.messages)

    def _note_position(self) -> None:
        if not self._is_judged:
            telemetry.HALTED.labels(self.name).set(0)
        telemetry.POSITION.labels(self.name).set(self._position)
        telemetry.LAG.labels(self.name).set(self._tail.behind(self._position))
        telemetry.OPEN_CHECKOUTS.labels(self.name).set(self._header.counts.get("Checkout", 0))
        telemetry.STUCK.labels(self.name).set(self._header.counts.get(STUCK, 0))

    def _note_rewind(self, cause: str, why: str) -> None:
        telemetry.REWINDS.labels(self.name, cause).inc()
        logger.warning("rewind", partition=self.name, cause=cause, why=why)

    def _note_halt(self, why: str) -> None:
        telemetry.HALTED.labels(self.name).set(1)
        logger.error("halted", partition=self.name, why=why)


def _note_end(ended: Ended) -> None:
    telemetry.CHECKOUTS.labels(ended.outcome).inc()
    telemetry.CHECKOUT_SECONDS.observe(ended.took_ms / 1000)
    logger.info("ended", **msgspec.structs.asdict(ended))


class _Tenure:
    """A partition for as long as it is ours, however often it has to be begun anew."""

    def __init__(self, make: Callable[[], Partition]) -> None:
        self._make = make
        self._is_over = False
        self.partition = make()

    def begin(self) -> Coroutine[Any, Any, None]:
        """Own it, with nothing of what an earlier attempt has; that one, if it wakes up, ends after its step."""
        self.partition.stopping = True
        self.partition = self._make()
        self.partition.stopping = self._is_over
        return self.partition.run()

    def end(self) -> None:
        """Stop after the step that is under way."""
        self._is_over = self.partition.stopping = True


class Processor:
    """All partitions that this process owns."""

    def __init__(self, machine: Machine, topology: Topology, world: World) -> None:
        self._machine = machine
        self._topology = topology
        self._world = world
        self._owned: dict[str, _Tenure] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._stopping = False

    def assign(self, names: set[str]) -> None:
        """Own exactly these partitions.  What is kept goes on undisturbed, what is lost ends after its step."""
        if self._stopping:
            names = set()
        for name in sorted(self._owned.keys() - names):
            self._owned.pop(name).end()
        for name in sorted(names - self._owned.keys()):
            tenure = self._owned[name] = _Tenure(partial(Partition, name, self._machine, self._topology, self._world))
            run = spawn(nurse(name, tenure.begin, self._world.sleep))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        logger.info("assigned", partitions=sorted(names))

    @property
    def is_ready(self) -> bool:
        """Say whether every partition that is ours is being followed."""
        return not self._stopping and all(tenure.partition.following for tenure in self._owned.values())

    def out_of_reach(self) -> list[str]:
        """Return the partitions that are ours and whose store has not answered for a while."""
        return [name for name, tenure in self._owned.items() if tenure.partition.is_out_of_reach]

    async def stop(self) -> None:
        """End every partition after its step."""
        self._stopping = True
        self.assign(set())
        await asyncio.gather(*self._runs)
