"""A service of a test's own in the system under test: topics, consumer group and hashes that nobody else uses."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
from redis.asyncio.cluster import ClusterNode, RedisCluster

from common import store as store_module
from common.config import Settings
from common.decision import Machine
from common.fold import Codec, DeadLetters, Fold, Folded, Header, Memory, Missing, Record, Rules
from common.log import DeadLetterBox, Ends, LogFailed, Producer, Publisher, SnapshotTopics, Tail, inbox, set_up
from common.messages import Asker, Message, Outcome, Request, Told, Topology, encode
from common.processor import Partition, World
from common.processor import Publisher as Publishing
from common.processor import Store as Storing
from common.snapshot import Manifest, Snapshots
from common.store import Replies, Store, StoreFailed
from common.tasks import spawn
from local.system import System
from stock.domain import MACHINE as STOCK

STUCK_S = 30.0
POLL_S = 0.05
WEB = "web-probe"
APPLY = (Path(store_module.__file__).parent / "apply.lua").read_text()

State = dict[str, bytes]
"""A partition's hash, byte for byte."""


class ProbeSettings(Settings, frozen=True):
    """The settings of a service that only one test knows."""

    service: str = "probe"
    partitions: int = 1

    @property
    def topology(self) -> Topology:
        return {self.service: self.partitions}

    @property
    def first(self) -> str:
        """The name of partition 0."""
        return f"{self.service}-0"

    @property
    def second(self) -> str:
        """The name of partition 1."""
        return f"{self.service}-1"

    @property
    def machine(self) -> Machine:
        """Stock's state machine under this service's name."""
        return msgspec.structs.replace(STOCK, service=self.service)


def settings_of(system: System) -> Settings:
    """Return what a service of the system under test is given."""
    return Settings(kafka=system.kafka_bootstrap, redis=",".join(f"{host}:{port}" for host, port in system.redis_nodes))


def a_probe(system: System, partitions: int = 1) -> ProbeSettings:
    """Return the settings of a new service; it has no topics yet."""
    given = settings_of(system)
    return ProbeSettings(
        kafka=given.kafka, redis=given.redis, service=f"probe-{uuid4().hex[:8]}", partitions=partitions
    )


async def a_log(system: System, partitions: int = 1) -> ProbeSettings:
    """Return the settings of a new service whose topics are there."""
    probe = a_probe(system, partitions)
    await set_up(probe, probe.service)
    return probe


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait; noise may make it long, only being stuck makes it fail."""
    deadline = time.monotonic() + STUCK_S
    while not await condition():
        assert time.monotonic() < deadline, f"{what}: not within {STUCK_S:.0f} s"
        await asyncio.sleep(POLL_S)


# --- the log ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_publisher(settings: Settings) -> AsyncIterator[Publisher]:
    producer = Producer(settings)
    publisher = Publisher(producer)
    try:
        yield publisher
    finally:
        publisher.close()
        await producer.close()


@asynccontextmanager
async def a_producer(settings: Settings) -> AsyncIterator[Producer]:
    producer = Producer(settings)
    try:
        yield producer
    finally:
        await producer.close()


@asynccontextmanager
async def a_tail(settings: Settings, partition: str) -> AsyncIterator[Tail]:
    tail = Tail(settings, inbox(partition))
    await tail.open()
    try:
        yield tail
    finally:
        await tail.close()


@asynccontextmanager
async def the_ends(settings: Settings) -> AsyncIterator[Ends]:
    ends = Ends(settings)
    try:
        yield ends
    finally:
        await ends.close()


async def records_of(settings: Settings, partition: str) -> list[Record]:
    """Return the whole log of a partition."""
    async with a_tail(settings, partition) as tail:
        position, end = await tail.bounds()
        tail.seek(position)
        records: list[Record] = []
        while position < end:
            records += await tail.poll(0.5, 500)
            position = records[-1].offset + 1 if records else position
    assert [record.offset for record in records] == list(range(end))
    return records


# --- the state -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_store(settings: Settings) -> AsyncIterator[Store]:
    store = Store(settings)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def a_redis(settings: Settings) -> AsyncIterator[RedisCluster]:
    """Yield a client of the whole cluster, for what the store itself never does."""
    client = RedisCluster(startup_nodes=[ClusterNode(*node) for node in settings.redis_nodes])
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def the_replies(settings: Settings) -> AsyncIterator[Replies]:
    replies = Replies(settings, WEB)
    try:
        yield replies
    finally:
        await replies.close()


def hash_of(partition: str) -> str:
    """Return the key of a partition's hash."""
    return f"{{{partition}}}"


async def stored(redis: RedisCluster, partition: str) -> State:
    """Return all that the store has of a partition."""
    return {field.decode(): value for field, value in (await redis.hgetall(hash_of(partition))).items()}


def refolded(
    machine: Machine, partition: str, topology: Topology, records: list[Record], dead: DeadLetters | None = None
) -> State:
    """Return what a partition's hash has to be after these records: the pure fold, record by record, in memory."""
    rules = Rules(machine, Codec(machine), partition, topology, dead or {})
    memory, header, state = Memory(), Header(), State()
    for record in records:
        fold = Fold(rules, memory, header, [record])
        for effect in fold.run():
            assert isinstance(effect, Missing), effect
            for key in effect.keys:
                memory.remember(key, None)
        for field, value in fold.folded.changes.items():
            if value is None:
                state.pop(field, None)
            else:
                state[field] = value
    return state | {"position": str(records[-1].offset + 1).encode()}


# --- a partition that runs -------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_world(probe: ProbeSettings) -> AsyncIterator[World]:
    """Yield what a processor has: as common.service makes it."""
    async with a_producer(probe) as producer, a_store(probe) as store, the_ends(probe) as ends:
        publisher = Publisher(producer)
        box = DeadLetterBox(probe, probe.service, producer)
        try:
            snapshots = Snapshots(SnapshotTopics(probe, producer))
            yield World(lambda partition: Tail(probe, inbox(partition), ends), publisher, store, box, snapshots)
        finally:
            publisher.close()


@asynccontextmanager
async def running(
    probe: ProbeSettings,
    machine: Machine | None = None,
    partition: str = "",
    hold: Callable[[World], World] = lambda world: world,
) -> AsyncIterator[Partition]:
    """Let a processor own a partition, partition 0 unless another is named, with connections of its own."""
    async with a_world(probe) as world:
        owned = Partition(partition or probe.first, machine or probe.machine, probe.topology, hold(world))
        run = spawn(owned.run())
        try:
            yield owned
        finally:
            owned.stopping = True
            await asyncio.wait({run}, timeout=STUCK_S)
            run.cancel()


class Gate:
    """Holds a processor up at one of its steps."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def before_publishing(self, world: World) -> World:
        """Let nothing go out before the gate is open."""
        return msgspec.structs.replace(world, publisher=_HeldPublisher(self, world.publisher))

    def before_reading(self, world: World) -> World:
        """Let no entity be read before the gate is open."""
        return msgspec.structs.replace(world, store=_HeldStore(self, world.store))


class _HeldPublisher:
    def __init__(self, gate: Gate, publisher: Publishing) -> None:
        self._gate = gate
        self._publisher = publisher

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        return asyncio.ensure_future(self._publish(partition, messages))

    async def _publish(self, partition: str, messages: list[bytes]) -> int:
        await self._gate.wait()
        return await self._publisher.publish(partition, messages)


class _HeldStore:
    def __init__(self, gate: Gate, store: Storing) -> None:
        self._gate = gate
        self._store = store

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        if fields not in ([], ["header"]):
            await self._gate.wait()
        return await self._store.read(partition, fields)

    async def apply(self, partition: str, folded: Folded, *, with_replies: bool) -> None:
        await self._store.apply(partition, folded, with_replies=with_replies)

    async def restore(
        self, partition: str, expected: int, manifest: Manifest, chunks: AsyncIterator[dict[str, bytes]]
    ) -> None:
        await self._store.restore(partition, expected, manifest, chunks)


async def caught_up(probe: ProbeSettings, partition: str = "") -> None:
    """Wait until a partition, partition 0 unless another is named, has folded and applied all of its log."""
    name = partition or probe.first
    ends = Ends(probe)
    async with a_store(probe) as store:

        async def is_at_end() -> bool:
            try:
                return (await store.read(name, []))[0] == await ends.end(name)
            except (LogFailed, StoreFailed):
                return False

        try:
            await until(is_at_end, f"{name} has caught up")
        finally:
            await ends.close()


# --- requests --------------------------------------------------------------------------------------------------------


def a_request(message: Message, request_id: str) -> Request[Message]:
    """Return a client's command as a web process makes it."""
    asker = Asker(request_id, zlib.crc32(repr(message).encode()), WEB)
    return Request(asker, int(time.time() * 1000), message)


async def ask(publisher: Publisher, partition: str, *messages: Message) -> list[str]:
    """Put clients' commands into the log; return their request ids."""
    requests = [a_request(message, uuid4().hex) for message in messages]
    await asyncio.gather(*[publisher.publish(partition, [encode(request)]) for request in requests])
    return [request.asker.request_id for request in requests]


async def told(replies: Replies, partition: str, request_ids: list[str]) -> dict[str, list[Outcome]]:
    """Return what the requests are told, once each has been told something and no more comes."""
    outcomes: dict[str, list[Outcome]] = {request_id: [] for request_id in request_ids}
    taken: list[Told] = []

    async def are_all_told() -> bool:
        taken.extend(await replies.take(partition))
        return {reply.request_id for reply in taken} >= set(request_ids)

    await until(are_all_told, f"{len(request_ids)} requests are told")
    for reply in [*taken, *await replies.take(partition)]:
        outcomes.setdefault(reply.request_id, []).append(reply.outcome)
    return outcomes
