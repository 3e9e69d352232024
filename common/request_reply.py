"""A web process's side of the log: a request goes in, its outcome comes back.  HTTP is a client of the log.

Asking again with the same request id gives the same outcome without acting twice, so whatever is lost here (a send, a
reply, this process) is repeated by somebody: the publisher, the sweep below, the gateway, the client.

`ask` and `read` take a callback and are called in the event loop; they never block.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import structlog

from common import telemetry
from common.decision import Entity
from common.fold import OTHER_CALL, Codec, Result, result_key
from common.log import LogFailed
from common.messages import Asker, Message, Outcome, Reason, Refused, Request, Told, encode
from common.store import StoreFailed
from common.tasks import spawn
from common.watchdog import REPAIRS_MAX, STILL_ROUNDS_MAX, Pulse, Stuck, beat, note_repair

SWEEP_S = 0.1
"""How often overdue requests look for their result in the state."""
OVERDUE_S = 0.3
"""How long a request waits for its reply before it looks for its result."""
CATCH_UP_S = 0.002
CATCH_UP_MAX_S = 0.05
RETRY_S = 0.1
WATCH_S = 1.0
LAG_MAX = 10_000
"""Records that a partition may be behind before new commands for it are refused."""
MEMORY_SHARE_MAX = 0.9
"""How full a partition's Redis node may be before new commands for it are refused."""
UNSENT_MAX = 1_000
"""Commands that may wait for a partition's log, those included that nobody waits for any more: minutes of an outage."""

CROWDED = Refused(Reason.NOT_NOW, "the service is behind, or its memory is nearly full: ask again later")
"""503 and not 429: this may be the gateway's replay of a command that stands in the log already, and will act."""

logger = structlog.get_logger()

Tell = Callable[[Outcome], None]
Give = Callable[[Entity | None], None]


class Publisher(Protocol):
    """Delivers messages to partitions; common.log has the real one."""

    def publish(self, partition: str, messages: list[bytes]) -> asyncio.Future[int]:
        """Return the offset of the last message's record, once it is acknowledged."""
        ...


class Ends(Protocol):
    """Asks where partitions end; common.log has the real one."""

    async def end(self, partition: str) -> int:
        """Return the offset of the partition's next record to come."""
        ...


class Store(Protocol):
    """Reads partitions; common.store has the real one."""

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        """Return position and fields, as of the same moment."""
        ...

    async def memory_share(self, partition: str) -> float:
        """Return how much of its memory the partition's node uses, 0 to 1; 0 where there is no limit."""
        ...


class Replies(Protocol):
    """Our end of the reply lists; common.store has the real one."""

    async def take(self, partition: str) -> list[Told]:
        """Return the replies that have come; wait a while when there are none."""
        ...


class Network(msgspec.Struct, frozen=True):
    """All that a web process touches outside itself: the simulation has another one."""

    publisher: Publisher
    ends: Ends
    store: Store
    replies: Replies
    now_s: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class _Waiting:
    """A request on its way.  `offset` is where its command stands in the log, once that is known."""

    __slots__ = ("offset", "partition", "since_s", "tells")

    def __init__(self, partition: str, since_s: float, tell: Tell) -> None:
        self.partition = partition
        self.since_s = since_s
        self.tells = [tell]
        self.offset: int | None = None


class RequestReply:
    """All requests and reads that are waiting in this process."""

    def __init__(self, web_id: str, codec: Codec, network: Network) -> None:
        self.web_id = web_id
        self._codec = codec
        self._network = network
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._unsent: Counter[str] = Counter()
        self._reads: dict[str, list[tuple[str, Give]]] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._read_pulses: dict[str, Pulse] = {}
        self._read_repairs = 0
        self._answering: set[str] = set()
        self._crowded: set[str] = set()
        self._reached: dict[str, int] = {}
        self._store_heard_s: dict[str, float] = {}
        self._log_heard_s: dict[str, float] = {}

    def heard_s(self, partition: str) -> float:
        """Return until when both the partition's log and its store have answered, s since 1970; 0 if never."""
        return min(self._log_heard_s.get(partition, 0.0), self._store_heard_s.get(partition, 0.0))

    # --- requests

    def ask(self, partition: str, asker: Asker, message: Message, tell: Tell) -> None:
        """Put a command into the log; `tell` gets its outcome, once, unless it is forgotten before."""
        place = (asker.request_id, asker.fingerprint)
        waiting = self._waiting.get(place)
        if waiting is not None:
            waiting.tells.append(tell)
            return
        if partition in self._crowded or self._unsent[partition] >= UNSENT_MAX:
            tell(CROWDED)
            return
        now_s = self._network.now_s()
        waiting = self._waiting[place] = _Waiting(partition, now_s, tell)
        request = encode(Request(asker, int(now_s * 1000), message))
        self._unsent[partition] += 1
        sent = self._network.publisher.publish(partition, [request])
        sent.add_done_callback(lambda done: self._sent(waiting, done))

    def forget(self, asker: Asker, tell: Tell) -> None:
        """Patience is over: whoever waits here does not wait any more."""
        place = (asker.request_id, asker.fingerprint)
        waiting = self._waiting.get(place)
        if waiting is not None:
            waiting.tells = [kept for kept in waiting.tells if kept is not tell]
            if not waiting.tells:
                del self._waiting[place]

    def _sent(self, waiting: _Waiting, sent: asyncio.Future[int]) -> None:
        self._unsent[waiting.partition] -= 1
        if not sent.cancelled():
            waiting.offset = sent.result()
            self._log_heard_s[waiting.partition] = self._network.now_s()

    def _tell(self, request_id: str, fingerprint: int, outcome: Outcome) -> None:
        waiting = self._waiting.pop((request_id, fingerprint), None)
        if waiting is not None:
            for tell in waiting.tells:
                tell(outcome)

    async def take_replies(self, partition: str) -> None:
        """Wake the requests that a partition's replies are for, for ever."""
        while True:
            try:
                for told in await self._network.replies.take(partition):
                    self._tell(told.request_id, told.fingerprint, told.outcome)
                self._store_heard_s[partition] = self._network.now_s()
                beat()
            except StoreFailed as why:
                if partition not in self._answering:  # a store that answers nobody is not our fault
                    beat()
                telemetry.REPLIES_LOST.inc()
                logger.debug("no replies", partition=partition, why=str(why))
                await self._network.sleep(RETRY_S)

    async def sweep(self) -> None:
        """Let overdue requests look for their result, for ever: a lost reply costs this poll, not the answer."""
        while True:
            await self._network.sleep(SWEEP_S)
            beat()
            telemetry.WAITING.set(len(self._waiting))
            for partition, places in self._overdue().items():
                await self._look(partition, places)

    def _overdue(self) -> dict[str, list[tuple[str, int]]]:
        before_s = self._network.now_s() - OVERDUE_S
        overdue: dict[str, list[tuple[str, int]]] = {}
        for place, waiting in self._waiting.items():
            if waiting.offset is not None and waiting.since_s < before_s:
                overdue.setdefault(waiting.partition, []).append(place)
        return overdue

    async def _look(self, partition: str, places: list[tuple[str, int]]) -> None:
        """Tell those whose result stands in the state.  No result yet means nothing: the command may be pending."""
        try:
            _, values = await self._network.store.read(partition, [result_key(request_id) for request_id, _ in places])
        except StoreFailed as why:
            logger.debug("no results", partition=partition, why=str(why))
            return
        for (request_id, fingerprint), value in zip(places, values, strict=True):
            result = self._codec.entity(value)
            assert result is None or isinstance(result, Result)
            outcome = _known(result, fingerprint)
            if outcome is not None:
                telemetry.POLLED.inc()
                self._tell(request_id, fingerprint, outcome)

    # --- backpressure

    async def watch(self, partition: str) -> None:
        """Note, for ever, whether the partition can take more: what is taken has to be waited for."""
        while True:
            beat()
            self._mend_reads(partition)
            try:
                is_crowded = await self._is_crowded(partition)
            except (LogFailed, StoreFailed) as why:
                self._answering.discard(partition)
                logger.debug("cannot watch", partition=partition, why=str(why))
            else:
                (self._crowded.add if is_crowded else self._crowded.discard)(partition)
            await self._network.sleep(WATCH_S)

    async def _is_crowded(self, partition: str) -> bool:
        end = await self._network.ends.end(partition)
        self._log_heard_s[partition] = self._network.now_s()
        position, _ = await self._network.store.read(partition, [])
        self._answering.add(partition)
        # What is replayed was taken once: only what nobody has folded yet is a backlog.
        self._reached[partition] = max(self._reached.get(partition, 0), position)
        return (
            end - self._reached[partition] > LAG_MAX
            or await self._network.store.memory_share(partition) > MEMORY_SHARE_MAX
        )

    # --- reads

    def read(self, partition: str, key: str, give: Give) -> None:
        """Give the entity as it is after everything that anybody was told before this call."""
        self._reads.setdefault(partition, []).append((key, give))
        if partition not in self._reading:
            self._begin_reading(partition)

    def forget_read(self, partition: str, give: Give) -> None:
        """Patience is over: whoever has not been read for yet does not wait any more."""
        self._reads[partition] = [read for read in self._reads.get(partition, ()) if read[1] is not give]

    def _begin_reading(self, partition: str) -> None:
        self._read_pulses.setdefault(partition, Pulse())
        self._reading[partition] = spawn(self._read_all(partition))

    def _mend_reads(self, partition: str) -> None:
        """End a read that hangs: it holds up all that come after it, and whoever waits for it has lost patience."""
        reading = self._reading.get(partition)
        if reading is None or self._read_pulses[partition].still_rounds() < STILL_ROUNDS_MAX:
            return
        reading.cancel()
        self._read_repairs += 1
        if self._read_repairs > REPAIRS_MAX:
            raise Stuck(f"reads of {partition} stand still")
        note_repair(f"reads of {partition}", "they stand still")
        self._begin_reading(partition)

    async def _read_all(self, partition: str) -> None:
        """One round after the other: whoever comes during one waits for the next, all of them together."""
        while reads := self._reads.pop(partition, None):
            end = await self._end(partition)
            values = await self._read_from(partition, end, [key for key, _ in reads])
            for (_, give), value in zip(reads, values, strict=True):
                give(self._codec.entity(value))
        del self._reading[partition]

    async def _end(self, partition: str) -> int:
        while True:
            self._read_pulses[partition].beat()
            try:
                end = await self._network.ends.end(partition)
            except LogFailed as why:
                logger.debug("no log end", partition=partition, why=str(why))
                await self._network.sleep(RETRY_S)
            else:
                self._log_heard_s[partition] = self._network.now_s()
                return end

    async def _read_from(self, partition: str, end: int, keys: list[str]) -> list[bytes | None]:
        """Read once the partition's position has reached `end`: position and values are of the same moment."""
        pause_s = CATCH_UP_S
        while True:
            self._read_pulses[partition].beat()
            try:
                position, values = await self._network.store.read(partition, keys)
            except StoreFailed as why:
                logger.debug("no state", partition=partition, why=str(why))
                position, values = -1, []
            if position >= end:
                return values
            await self._network.sleep(pause_s)
            pause_s = min(2 * pause_s, CATCH_UP_MAX_S)


def _known(result: Result | None, fingerprint: int) -> Outcome | None:
    if result is None:
        return None
    return result.outcome if result.fingerprint == fingerprint else OTHER_CALL
