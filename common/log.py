"""The log: Kafka, and nobody else here knows that.

What the rest sees: partitions by name ("order-3"), records by offset, a Publisher that delivers in order or not at all,
a Tail that follows one partition, a Membership that says which partitions are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Protocol
from uuid import uuid4

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    TopicAlreadyExistsError,
    for_code,
)

from common.config import ConfigError, Settings
from common.failures import Failures
from common.fold import DeadLetter, DeadLetters, Record
from common.messages import RECORD_BYTES_MAX, Genesis, encode, encode_batch
from common.tasks import spawn
from common.watchdog import Stuck, note_repair

REQUEST_TIMEOUT_MS = 700
"""Bounds every call to a broker.  Once others lead, a client that waits for the frozen one needs two of these: for what
it sent there, and for the metadata that it asked there, too."""
ADMIN_TIMEOUT_MS = 2_000
"""The same where nobody waits in a failover: a broker that has just been started is slow."""
METADATA_AGE_MS = 500
"""How often every client asks who leads what, idle ones too.  Otherwise each learns it from failures of its own, a
request time-out each, and a checkout passes through six: measured, 7 s after the new leaders stood."""
RETRY_BACKOFF_MS = 150
"""When a connection is refused.  With 50, everybody's attempts keep those busy who have to take over."""
FETCH_WAIT_MS = 300
SEND_TIMEOUT_S = 3.0
STOP_TIMEOUT_S = 3.0
CALL_TIMEOUT_S = 10.0
"""Bounds the calls that aiokafka does not bound."""
START_RETRY_S = 0.5
FAILURES_MAX = 5
REPLACE_S = 8.0
"""So many calls in a row, and for so long, nothing but failures: the producer, or the consumer that asks for ends, is
replaced, and no sooner again.  Longer than a failover, in which a new one knows no more, and may begin with the broker
that is frozen."""
DEAD_FAILURES = 20
DEAD_S = 60.0
"""So many sends, for so long, nothing but failures: is it the log, or this process?  Longer than the 30 s after which
brokers stop waiting for a replica that is frozen."""
SILENCE_S = 3.0
"""After so long without a record a tail asks whether there are really none."""
LOOK_S = 3.0
"""How often a member looks at its group from outside."""
DOUBTS_MAX = 5
"""Looks in a row that find something else than the member knows, before it joins anew: longer than a rebalance."""
GROUP_GAP_S = 25.0
"""How long the group may not be seen before the process says that it is not ready: longer than a failover."""
NEVER_S = float("-inf")
REJOINS_MAX = 3
BACKOFF_S = 0.05
BACKOFF_MAX_S = 0.5

SNAPSHOTS, MANIFESTS = "snapshots", "manifests"

LINGER_S = 0.006
LINGER_MESSAGES = 3
"""When so many came while a send was in flight, they wait this much longer for company: a quiet lane sends at once."""

TOPIC_CONFIG = {
    "message.timestamp.type": "LogAppendTime",
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
}

logger = structlog.get_logger()


class LogFailed(Exception):
    """The log cannot be reached, or did not answer in time.  What was asked may or may not have happened."""


class LogSilent(LogFailed):
    """The log has more records, and the consumer does not bring them."""


def inbox(partition: str) -> TopicPartition:
    """Return where Kafka has a partition: "order-3" is partition 3 of order-inbox."""
    return _beside(partition, "inbox")


def _beside(partition: str, kind: str) -> TopicPartition:
    service, _, number = partition.rpartition("-")
    return TopicPartition(f"{service}-{kind}", int(number))


def dead_letters_of(service: str) -> TopicPartition:
    """Return where Kafka has a service's dead letters."""
    return TopicPartition(f"{service}-dead-letters", 0)


# --- writing ---------------------------------------------------------------------------------------------------------


class Sender(Protocol):
    """Appends one record; the real one is Producer."""

    async def send(self, place: TopicPartition, value: bytes) -> int:
        """Return the record's offset, acknowledged by all in-sync replicas; raise LogFailed otherwise."""


class Producer:
    """Appends single records.  A producer of aiokafka's that keeps failing is replaced, the old one closed first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._failures = Failures(FAILURES_MAX, REPLACE_S)
        self._all_failures = Failures(DEAD_FAILURES, DEAD_S)  # those with earlier producers, too
        self._lock = asyncio.Lock()

    async def send(self, place: TopicPartition, value: bytes) -> int:
        """Return the record's offset, acknowledged by all in-sync replicas."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                producer = self._producer or await self._start()
                delivered = await producer.send(place.topic, value, partition=place.partition)
                offset: int = (await asyncio.shield(delivered)).offset
        except MessageSizeTooLargeError:
            raise  # a bug of ours: repeating it would stop everything behind it, for ever and in silence
        except (KafkaError, OSError, TimeoutError, AssertionError) as why:  # AssertionError: partition not known yet
            await self._failed(place, why)
            raise LogFailed(f"send to {place.topic}-{place.partition}: {why!r}") from why
        self._failures.end(place)
        self._all_failures.end(place)
        return offset

    async def close(self) -> None:
        """Close the connections; what is on its way is given a moment."""
        async with self._lock:
            producer, self._producer = self._producer, None
            if producer is not None:
                await _stop(producer)

    async def _start(self) -> AIOKafkaProducer:
        async with self._lock:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._settings.kafka,
                    acks="all",
                    enable_idempotence=False,
                    request_timeout_ms=REQUEST_TIMEOUT_MS,
                    retry_backoff_ms=RETRY_BACKOFF_MS,
                    metadata_max_age_ms=METADATA_AGE_MS,
                )
                await _start(producer)
                self._producer = producer
            return self._producer

    async def _failed(self, place: TopicPartition, why: BaseException) -> None:
        """Replace the producer now and then; raise Stuck when that does not help although the log answers others."""
        seems_dead = self._all_failures.add(place)
        if not self._failures.add(place):
            return
        self._failures.clear()
        await self.close()
        note_repair("producer", f"{place.topic}-{place.partition}: {why!r}")
        if seems_dead and not _lacks_replicas(why) and await self._answers_others(place):
            raise Stuck(f"{DEAD_FAILURES} sends in a row to {place} have failed, and it can be read") from why

    async def _answers_others(self, place: TopicPartition) -> bool:
        try:
            async with a_tail(self._settings, place) as tail:
                await tail.bounds()
        except LogFailed:
            return False
        return True


def _lacks_replicas(why: BaseException) -> bool:
    """Say whether it is the broker itself that says whose fault it is."""
    return isinstance(why, NotEnoughReplicasError | NotEnoughReplicasAfterAppendError)


class Publisher:
    """Delivers messages to partitions: in order, each until it is acknowledged.

    One send is in flight per target.  What arrives meanwhile goes out together in the next record (group commit).  A
    send that failed, or that nobody knows the end of, is repeated in place, the same bytes, before anything later goes.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._lanes: dict[str, _Lane] = {}

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        """Return the offset, once it is acknowledged, of the record that the last of the messages is in."""
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(self._sender, partition)
        return lane.publish(messages)

    def close(self) -> None:
        """Stop sending.  What is not acknowledged yet stays unknown."""
        for lane in self._lanes.values():
            lane.close()


class _Lane:
    """The way to one target partition."""

    def __init__(self, sender: Sender, partition: str) -> None:
        self._sender = sender
        self._place = inbox(partition)
        self._partition = partition
        self._queue: list[tuple[bytes, asyncio.Future[int] | None]] = []
        self._last_offset = -1
        self._task: asyncio.Task[None] | None = None

    def publish(self, messages: list[bytes]) -> asyncio.Future[int]:
        acknowledged: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.extend((message, None) for message in messages[:-1])
        self._queue.append((messages[-1], acknowledged))
        if self._task is None:
            self._task = spawn(self._run())
        return acknowledged

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._queue:
            messages, acknowledged = self._take()
            offset = await self._deliver(encode_batch(messages))
            for future in acknowledged:
                if not future.done():
                    future.set_result(offset)
            if len(self._queue) >= LINGER_MESSAGES:
                await asyncio.sleep(LINGER_S)
        self._task = None

    def _take(self) -> tuple[list[msgspec.Raw], list[asyncio.Future[int]]]:
        """Take what fits one record, in order."""
        size = count = 0
        for message, _ in self._queue:
            size += len(message)
            if count and size > RECORD_BYTES_MAX:
                break
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        return [msgspec.Raw(message) for message, _ in taken], [future for _, future in taken if future is not None]

    async def _deliver(self, record: bytes) -> int:
        failures = 0
        while True:
            try:
                offset = await self._sender.send(self._place, record)
            except LogFailed as why:
                failures += 1
                logger.log(30 if failures == 1 else 10, "send failed, repeating", target=self._partition, why=str(why))
                await asyncio.sleep(min(BACKOFF_S * failures, BACKOFF_MAX_S))
                continue
            if offset > self._last_offset:
                self._last_offset = offset
                return offset
            logger.warning("acknowledged offset did not rise, repeating", target=self._partition, offset=offset)


# --- reading ---------------------------------------------------------------------------------------------------------


def _consumer(settings: Settings, **options: object) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=settings.kafka,
        enable_auto_commit=False,
        auto_offset_reset="none",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        retry_backoff_ms=RETRY_BACKOFF_MS,
        metadata_max_age_ms=METADATA_AGE_MS,
        **options,
    )


async def _start(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Start it, or leave nothing behind."""
    try:
        await client.start()
    except BaseException:
        await _stop(client)
        raise


async def _stop(client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> None:
    """Stop it, whatever it says.

    In a task of its own: when aiokafka 0.14 stops a consumer whose fetch waits to be retried, it raises the
    CancelledError of that fetch, and that would look as if we had been cancelled ourselves.
    """
    stopping = asyncio.ensure_future(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
    if not stopping.done():
        stopping.cancel()
    elif not stopping.cancelled() and stopping.exception() is not None:
        logger.warning("a client did not stop cleanly", why=repr(stopping.exception()))


class Tail:
    """Follows one partition, with a connection of its own.

    aiokafka has one fetch in flight per broker: in a shared consumer the long poll of an idle partition would hold up
    the busy ones.
    """

    def __init__(self, settings: Settings, place: TopicPartition, ends: Ends | None = None) -> None:
        """`ends` says by another connection where the log ends; without it nobody notices a consumer gone silent."""
        self._place = place
        self._consumer = _consumer(settings, fetch_max_wait_ms=FETCH_WAIT_MS)
        self._ends = ends
        self._next = 0
        self._silent_s = 0.0
        self._doubts = 0

    async def open(self) -> None:
        """Connect."""
        with _as_log_failed(f"open {self._place.topic}-{self._place.partition}"):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._consumer.start()
            self._consumer.assign([self._place])
            await asyncio.sleep(0)  # a consumer that is stopped before its tasks began raises CancelledError

    async def close(self) -> None:
        """Disconnect."""
        await _stop(self._consumer)

    async def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first record and of the next one to come."""
        with _as_log_failed("bounds"):
            first = await self._consumer.beginning_offsets([self._place])
            end = await self._consumer.end_offsets([self._place])
        return first[self._place], end[self._place]

    def seek(self, offset: int) -> None:
        """Go on with the record at `offset`."""
        self._consumer.seek(self._place, offset)
        self._next = offset
        self._silent_s, self._doubts = 0.0, 0

    def behind(self, position: int) -> int:
        """Return how many records from `position` on are known to exist."""
        return max((self._consumer.highwater(self._place) or position) - position, 0)

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        """Return the next records; wait when there are none yet.  Raise LogSilent when there are some all the same."""
        with _as_log_failed("poll"):
            fetched = await self._consumer.getmany(self._place, timeout_ms=int(wait_s * 1000), max_records=records_max)
        records = [
            Record(record.offset, record.timestamp, record.value) for found in fetched.values() for record in found
        ]
        if records:
            self._next = records[-1].offset + 1
            self._silent_s, self._doubts = 0.0, 0
        else:
            self._silent_s += wait_s  # not by a clock: who was frozen has not been waiting
            if self._ends is not None and self._silent_s >= SILENCE_S:
                await self._doubt(self._ends)
        return records

    async def _doubt(self, ends: Ends) -> None:
        """Ask the log itself whether silence means that there is nothing; once more before believing it.

        aiokafka 0.14 repeats failed fetches in silence, and its fetching may end without a word (its issue 1037).
        """
        self._silent_s = 0.0
        self._doubts += 1
        try:
            end = await ends.end_of(self._place)
        except LogFailed:
            if self._doubts > 1:
                raise
            return
        if end <= self._next:
            self._doubts = 0
        elif self._doubts > 1:
            raise LogSilent(f"no record {self._next} of {self._place} comes, and the log ends at {end}")

    async def read(self, offset: int, wait_s: float = 3.0) -> Record | None:
        """Return the record at `offset`, None if it does not come in time."""
        self.seek(offset)
        records = await self.poll(wait_s, 1)
        return records[0] if records and records[0].offset == offset else None


class Ends:
    """Asks where partitions end, for reads that must not be stale.  No group, nothing assigned."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._failures = Failures(FAILURES_MAX, REPLACE_S)
        self._lock = asyncio.Lock()

    async def end(self, partition: str) -> int:
        """Return the offset of the partition's next record to come."""
        return await self.end_of(inbox(partition))

    async def end_of(self, place: TopicPartition) -> int:
        """Return the offset of a place's next record to come."""
        try:
            with _as_log_failed(f"end of {place.topic}-{place.partition}"):
                consumer = self._consumer or await self._start()
                ends = await consumer.end_offsets([place])
        except LogFailed as why:
            await self._failed(place, why)
            raise
        self._failures.end(place)
        end: int = ends[place]
        return end

    async def _start(self) -> AIOKafkaConsumer:
        async with self._lock:
            if self._consumer is None:
                consumer = _consumer(self._settings)
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await _start(consumer)
                self._consumer = consumer
            return self._consumer

    async def _failed(self, place: TopicPartition, why: LogFailed) -> None:
        if self._failures.add(place):
            self._failures.clear()
            await self.close()
            note_repair("consumer that asks for ends", str(why))

    async def close(self) -> None:
        """Disconnect."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)


@contextlib.asynccontextmanager
async def a_tail(settings: Settings, place: TopicPartition) -> AsyncIterator[Tail]:
    """Yield a tail for a moment."""
    tail = Tail(settings, place)
    try:
        await tail.open()
        yield tail
    finally:
        await tail.close()


@contextlib.contextmanager
def _as_log_failed(doing: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as why:
        raise LogFailed(f"{doing}: {why!r}") from why


# --- dead letters ----------------------------------------------------------------------------------------------------


class DeadLetterBox:
    """The dead letters of one service, a topic with one partition; a dead letter's number is its offset there."""

    def __init__(self, settings: Settings, service: str, sender: Sender) -> None:
        self._settings = settings
        self._place = dead_letters_of(service)
        self._sender = sender

    async def put(self, letter: DeadLetter) -> int:
        """Return the number of the dead letter, once it is acknowledged."""
        return await self._sender.send(self._place, encode(letter))

    async def of(self, partition: str, since: int = 0) -> DeadLetters:
        """Return a partition's dead letters from number `since` on.  Of two for one message the first counts."""
        async with a_tail(self._settings, self._place) as tail:
            records = await _all(tail, since)
        letters: DeadLetters = {}
        for record in records:
            letter = msgspec.msgpack.decode(record.value, type=DeadLetter)
            if letter.partition == partition:
                letters.setdefault((letter.offset, letter.index), record.offset)
        return letters

    async def at(self, number: int) -> DeadLetter | None:
        """Return the dead letter with this number, None where there is none."""
        async with a_tail(self._settings, self._place) as tail:
            first, end = await tail.bounds()
            record = await tail.read(number) if first <= number < end else None
        return None if record is None else msgspec.msgpack.decode(record.value, type=DeadLetter)


async def _all(tail: Tail, since: int) -> list[Record]:
    """Return all records from `since` on."""
    first, end = await tail.bounds()
    position = max(first, since)
    records: list[Record] = []
    tail.seek(position)
    while position < end:
        found = await tail.poll(SILENCE_S, 500)
        if not found:
            raise LogSilent(f"no record {position} comes, and the log ends at {end}")
        records += found
        position = found[-1].offset + 1
    return records


# --- snapshots -------------------------------------------------------------------------------------------------------


class SnapshotTopics:
    """The snapshots of one service: chunks in one topic, manifests in another, each with the inbox's partitions."""

    def __init__(self, settings: Settings, sender: Sender) -> None:
        self._settings = settings
        self._sender = sender

    async def put_chunk(self, partition: str, chunk: bytes) -> int:
        """Return the chunk's offset, once it is acknowledged."""
        return await self._sender.send(_beside(partition, SNAPSHOTS), chunk)

    async def put_manifest(self, partition: str, manifest: bytes) -> None:
        """Return once it is acknowledged."""
        await self._sender.send(_beside(partition, MANIFESTS), manifest)

    async def manifests(self, partition: str) -> list[Record]:
        """Return the manifests that there are, in the order of their offsets."""
        async with a_tail(self._settings, _beside(partition, MANIFESTS)) as tail:
            return await _all(tail, 0)

    async def chunks(self, partition: str, offsets: list[int]) -> AsyncGenerator[Record | None, None]:
        """Yield the chunk at each offset; None for one that is not there, deleted or not written.

        One that is there and does not come is no reason to take an older snapshot: LogFailed.
        """
        async with a_tail(self._settings, _beside(partition, SNAPSHOTS)) as tail:
            first, end = await tail.bounds()
            for offset in offsets:
                chunk = await tail.read(offset) if first <= offset < end else None
                if chunk is None and first <= offset < end:
                    raise LogFailed(f"chunk {offset} of {partition} does not come")
                yield chunk

    async def trim(self, partition: str, position: int, chunk: int, manifest: int) -> None:
        """Delete what is below these offsets: records of the inbox, chunks, manifests.  In this order."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka, request_timeout_ms=ADMIN_TIMEOUT_MS)
        with _as_log_failed(f"trim {partition}"):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                try:
                    await admin.start()
                    await _delete(admin, inbox(partition), position)
                    await _delete(admin, _beside(partition, SNAPSHOTS), chunk)
                    await _delete(admin, _beside(partition, MANIFESTS), manifest)
                finally:
                    await _stop(admin)


async def _delete(admin: AIOKafkaAdminClient, place: TopicPartition, below: int) -> None:
    await admin.delete_records({place: RecordsToDelete(below)})


# --- ownership -------------------------------------------------------------------------------------------------------


class Membership(ConsumerRebalanceListener):
    """Membership of the service's consumer group: says which partitions are ours, nothing else.

    Balance only: two owners at once are harmless.  Rebalance callbacks do no I/O, because aiokafka heartbeats again
    only after they return.

    Now and then it looks at its group from outside, as any tool does.  Whatever is wrong with a member (no heartbeats,
    a rejoin that never ends, a callback that was not made), the group then says something else than the member knows.
    """

    def __init__(self, settings: Settings, service: str, assigned: Callable[[set[str]], None]) -> None:
        self._settings = settings
        self._service = service
        self._assigned = assigned
        self._client_id = f"{service}-{uuid4().hex}"
        self._group = _Group(settings, service)
        self._ours: set[str] = set()
        self._rejoins = 0
        self._agreed_s = NEVER_S

    @property
    def is_member(self) -> bool:
        """Say whether the group has taken us, or was seen to have us, lately."""
        return time.monotonic() - self._agreed_s < GROUP_GAP_S

    async def run(self) -> None:
        """Stay a member until cancelled, then leave, so that others take over at once; it can be run again.

        Raise Stuck when joining anew does not make a member of us.
        """
        try:
            while True:
                await self._join()
        finally:
            self._agreed_s = NEVER_S
            await self._group.close()

    async def _join(self) -> None:
        """Be a member until something is wrong with that."""
        member = asyncio.ensure_future(self._take_part())
        try:
            await self._look_after(member)
        except KafkaError as why:
            logger.warning("not in the group, joining again", service=self._service, why=repr(why))
            await asyncio.sleep(BACKOFF_MAX_S)
        finally:
            member.cancel()
            await asyncio.wait({member}, timeout=2 * STOP_TIMEOUT_S)

    async def _look_after(self, member: asyncio.Future[None]) -> None:
        """Return when the group has gone on without us, raise what the member raises."""
        doubts = 0
        while doubts < DOUBTS_MAX:
            await asyncio.wait({member}, timeout=LOOK_S)
            if member.cancelled():
                break  # not by us: aiokafka raises the CancelledError of its coordination, if that has ended
            if member.done():
                member.result()
            doubts = 0 if await self._agrees() else doubts + 1
        self._agreed_s = NEVER_S
        self._rejoins += 1
        if self._rejoins > REJOINS_MAX:
            raise Stuck(f"the {self._service} processors' group does not take this member")
        note_repair("membership", "the group has gone on without this member")

    async def _agrees(self) -> bool:
        """Say whether the group sees us as we do.  While it cannot be seen, or is about to change, nothing is wrong."""
        members = await self._group.members()
        if members is None:
            return True
        if members.get(self._client_id) != self._ours:
            return False
        self._rejoins = 0
        self._agreed_s = time.monotonic()
        return True

    async def _take_part(self) -> None:
        self._ours = set()
        self._consumer = _consumer(
            self._settings,
            client_id=self._client_id,
            group_id=_group_of(self._service),
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=self._settings.session_timeout_ms // 5,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        )
        self._consumer.subscribe([f"{self._service}-inbox"], listener=self)
        try:
            await self._consumer.start()
            while True:
                await self._consumer.getmany(timeout_ms=1_000)
        finally:
            await asyncio.shield(_stop(self._consumer))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing: whoever keeps a partition after the rebalance just goes on with it."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Note what is ours; this consumer itself never fetches."""
        places = list(assigned)
        for place in places:
            self._consumer.seek(place, 0)
        self._consumer.pause(*places)
        self._ours = {f"{self._service}-{place.partition}" for place in places}
        self._agreed_s = time.monotonic()
        self._assigned(self._ours)


class _Group:
    """A service's consumer group, seen from outside."""

    def __init__(self, settings: Settings, service: str) -> None:
        self._settings = settings
        self._service = service
        self._admin: AIOKafkaAdminClient | None = None

    async def members(self) -> dict[str, set[str]] | None:
        """Return each member's partitions by its client id; None while nobody knows: no answer, or a rebalance."""
        try:
            with _as_log_failed("describe the group"):
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    group = await self._describe()
        except LogFailed as why:
            logger.debug("the group cannot be seen", why=str(why))
            await self.close()
            return None
        if group["error_code"] or group["state"] not in ("Stable", "Empty", "Dead"):
            return None
        return {member["client_id"]: self._partitions(member["member_assignment"]) for member in group["members"]}

    async def close(self) -> None:
        """Disconnect."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await _stop(admin)

    async def _describe(self) -> dict[str, Any]:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(
                bootstrap_servers=self._settings.kafka, request_timeout_ms=ADMIN_TIMEOUT_MS
            )
            await self._admin.start()
        (response,) = await self._admin.describe_consumer_groups([_group_of(self._service)])
        group: dict[str, Any] = response.to_object()["groups"][0]
        return group

    def _partitions(self, assignment: bytes) -> set[str]:
        places = ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions() if assignment else []
        return {f"{self._service}-{place.partition}" for place in places}


def _group_of(service: str) -> str:
    return f"{service}-processors"


# --- set-up ----------------------------------------------------------------------------------------------------------


async def set_up(settings: Settings, service: str) -> None:
    """Create the service's topics and the genesis record of each partition.  Run again, it changes nothing."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=10_000)
    await admin.start()
    try:
        await _create(admin, settings, f"{service}-inbox", settings.topology[service])
        await _create(admin, settings, dead_letters_of(service).topic, 1)
        for kind in (SNAPSHOTS, MANIFESTS):
            await _create(admin, settings, f"{service}-{kind}", settings.topology[service])
    finally:
        await admin.close()
    producer = Producer(settings)
    try:
        for number in range(settings.topology[service]):
            await _begin(settings, producer, inbox(f"{service}-{number}"))
    finally:
        await producer.close()


async def _create(admin: AIOKafkaAdminClient, settings: Settings, topic: str, partitions: int) -> None:
    config = {**TOPIC_CONFIG, "min.insync.replicas": str(max(settings.replication - 1, 1))}
    response = await admin.create_topics(
        [NewTopic(topic, partitions, settings.replication, topic_configs=config)], timeout_ms=8_000
    )
    for name, code, *_ in response.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise LogFailed(f"create topic {name}: {for_code(code).__name__}")


async def _begin(settings: Settings, producer: Producer, place: TopicPartition) -> None:
    """Make sure that the log begins with a genesis record; try for as long as it takes.

    A send that failed may append later, behind the second one or behind commands: the fold takes the log id from record
    0 and passes over every other genesis.
    """
    while True:
        try:
            async with a_tail(settings, place) as tail:
                has_begun = await tail.bounds() != (0, 0)
            if not has_begun:
                await producer.send(place, encode(Genesis(uuid4().hex)))
        except LogFailed as why:
            logger.warning("the log does not begin, trying again", place=str(place), why=str(why))
            await asyncio.sleep(START_RETRY_S)
        else:
            return


async def check_topology(settings: Settings) -> None:
    """End the process when a topic has another partition count than the settings say."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka, request_timeout_ms=ADMIN_TIMEOUT_MS)
    with _as_log_failed("read the topics"):
        async with asyncio.timeout(CALL_TIMEOUT_S):
            await admin.start()
        try:
            topics = await admin.describe_topics([f"{service}-inbox" for service in settings.topology])
        finally:
            await admin.close()
    for topic in topics:
        _check_count(settings, topic["topic"].removesuffix("-inbox"), len(topic["partitions"]))


async def wait_for_log(settings: Settings) -> None:
    """Check the topology as soon as the log can be reached: whoever starts first must not die of it."""
    while True:
        try:
            return await check_topology(settings)
        except LogFailed as why:
            logger.warning("waiting for the log", why=str(why))
            await asyncio.sleep(START_RETRY_S)


def _check_count(settings: Settings, service: str, partitions: int) -> None:
    count = settings.topology[service]
    if partitions not in (0, count):  # 0: the topic is yet to be created
        setting = f"CHECKOUT_{service.upper()}_PARTITIONS"
        raise ConfigError(f"wrong configuration: {setting} is {count}, but {service}-inbox has {partitions} partitions")
