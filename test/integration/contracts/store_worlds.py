"""The simulated store and the real one, behind one interface."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol, Self

from e2e import faults
from integration.contracts.worlds import a_wire, contract
from integration.probe import APPLY, a_probe, a_store, hash_of
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from simulation.process import Fate, Process
from simulation.store import Cluster, SimulatedReplies, SimulatedStore

from common.fold import Folded
from common.processor import Store as Moving
from common.request_reply import Replies as Taking
from common.store import REPLY_LIFE_MS, Replies
from local.system import System

FROZEN_S = 1.2
"""Longer than a call may take, shorter than it takes to be replaced."""
OUTAGE_MS = 3_000
PRIMARIES = 3


class StoreWorld(Protocol):
    """A cluster, and a partition that has no state in it."""

    partition: str

    async def store(self) -> Moving:
        """Return a client of its own."""
        ...

    async def replies(self, web_id: str) -> Taking:
        """Return a web process's end of the reply lists."""
        ...

    async def empty(self) -> None:
        """Let the partition's primary lose everything."""

    def forgetting(self) -> AbstractAsyncContextManager[None]:
        """When the block ends, promote a replica that has heard of nothing since it began."""
        ...

    def answers_lost(self) -> AbstractAsyncContextManager[None]:
        """Let the primary do what it is told, and the first answer of the block be lost."""
        ...

    async def apply_while_replaced(self, folded: Folded) -> None:
        """Promote a replica that misses nothing; then let an apply without replies reach the old primary only."""

    def outage(self) -> AbstractAsyncContextManager[None]:
        """Let the primary answer nobody, and not be replaced either."""
        ...


class SimulatedStoreWorld:
    """On the double."""

    partition = "probe-0"

    def __init__(self) -> None:
        self._wire = a_wire()
        self._process = Process("probe")
        self._cluster = Cluster(PRIMARIES)
        self._number = self._cluster.number_of(self.partition)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Virtual connections need not be closed."""

    async def store(self) -> Moving:
        return SimulatedStore(self._cluster, self._wire, self._process)

    async def replies(self, web_id: str) -> Taking:
        return SimulatedReplies(self._cluster, self._wire, self._process, web_id)

    async def empty(self) -> None:
        self._cluster.empty(self._number)

    @asynccontextmanager
    async def forgetting(self) -> AsyncIterator[None]:
        before = self._cluster.current(self.partition).writes
        yield
        missed = self._cluster.current(self.partition).writes - before
        self._cluster.fail_over(self._number, missed, [])

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        self._wire.fate = Fate.UNANSWERED
        yield
        self._wire.fate = Fate.OK

    async def apply_while_replaced(self, folded: Folded) -> None:
        zombie = Process("zombie")
        self._cluster.fail_over(self._number, 0, [zombie])
        await SimulatedStore(self._cluster, a_wire(), zombie).apply(self.partition, folded, with_replies=False)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self._cluster.down.add(self._number)
        yield
        self._cluster.down.clear()


class RealStoreWorld:
    """On a Redis Cluster: a hash of its own, on nodes that others use too."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._clients = AsyncExitStack()
        self._settings = a_probe(system)
        self.partition = self._settings.first

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._find_nodes)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._clients.aclose()

    async def store(self) -> Moving:
        return await self._clients.enter_async_context(a_store(self._settings))

    async def replies(self, web_id: str) -> Taking:
        replies = Replies(self._settings, web_id)
        self._clients.push_async_callback(replies.close)
        return replies

    async def empty(self) -> None:
        await asyncio.to_thread(self._node(self._primary).flushall)

    @asynccontextmanager
    async def forgetting(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._part_from_primary)
        try:
            yield
            await asyncio.to_thread(self._promote)
        finally:
            await asyncio.to_thread(self._make_whole)

    @asynccontextmanager
    async def answers_lost(self) -> AsyncIterator[None]:
        """Freeze the primary: a call times out, is repeated, and when it wakes it meets both."""
        pid = await asyncio.to_thread(self._freeze)
        thaw = asyncio.get_running_loop().call_later(FROZEN_S, os.kill, pid, signal.SIGCONT)
        try:
            yield
        finally:
            thaw.cancel()
            os.kill(pid, signal.SIGCONT)
        await asyncio.to_thread(self._make_whole)

    async def apply_while_replaced(self, folded: Folded) -> None:
        """Freeze the primary, and send it the apply: it finds it when it wakes, before or after it hears the news."""
        host, port = self._address(self._primary)
        async with AsyncRedis(host=host, port=port) as zombie:
            await zombie.ping()
            pid = await asyncio.to_thread(self._freeze)
            try:
                late = asyncio.ensure_future(_apply(zombie, self.partition, folded))
                await asyncio.to_thread(self._promote)
            finally:
                os.kill(pid, signal.SIGCONT)
            await asyncio.wait({late})
            late.exception()  # it may have heard the news first
        await asyncio.to_thread(self._make_whole)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        primary = self._node(self._primary)
        await asyncio.to_thread(primary.execute_command, "CLIENT", "PAUSE", OUTAGE_MS, "ALL")
        yield
        await asyncio.to_thread(primary.ping)

    # --- nodes: these block

    def _find_nodes(self) -> None:
        faults.wait_for_redis(self._system)
        faults.wait_until(self._are_found, f"it is known who has {self.partition}")

    def _are_found(self) -> bool:
        with suppress(LookupError):  # soon after a failover a node does not know whose replica another one is
            self._primary = faults.primary_of(self._system, self.partition)
            self._replica = faults.replica_of(self._system, self.partition)
            following = self._node(self._replica).info("replication")
            return following.get("master_port") == self._address(self._primary)[1]
        return False

    def _address(self, name: str) -> tuple[str, int]:
        return self._system.redis_nodes[int(name.removeprefix("redis-"))]

    def _node(self, name: str) -> Redis:
        return faults.redis(self._system, name)

    def _freeze(self) -> int:
        self._wait_until_followed()
        return self._system.kill(self._primary, signal.SIGSTOP)

    def _wait_until_followed(self) -> None:
        """Wait until the replica has heard of all that the primary has done so far."""
        primary, replica = self._node(self._primary), self._node(self._replica)
        offset = primary.info("replication")["master_repl_offset"]
        faults.wait_until(
            lambda: replica.info("replication")["slave_repl_offset"] >= offset, f"{self._replica} has followed"
        )

    def _part_from_primary(self) -> None:
        """Let the replica hear of nothing any more: it is thrown out, and comes back with a wrong password."""
        self._wait_until_followed()
        replica = self._node(self._replica)
        replica.config_set("masteruser", "nobody")
        replica.config_set("masterauth", "wrong")
        self._node(self._primary).execute_command("CLIENT", "KILL", "TYPE", "replica")
        faults.wait_until(
            lambda: replica.info("replication")["master_link_status"] == "down", f"{self._replica} is cut off"
        )

    def _promote(self) -> None:
        """Ask nobody: it announces itself, and who thinks to be primary hears of it."""
        replica = self._node(self._replica)
        replica.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        faults.wait_until(lambda: replica.info("replication")["role"] == "master", f"{self._replica} is promoted")

    def _make_whole(self) -> None:
        replica = self._node(self._replica)
        replica.config_set("masteruser", "")
        replica.config_set("masterauth", "")
        self._find_nodes()


async def _apply(redis: AsyncRedis, partition: str, folded: Folded) -> None:
    """Do what the store does, on one connection to one node, without repeating anything."""
    pairs = [part for pair in folded.changes.items() for part in pair]
    numbers = [folded.start, folded.end, REPLY_LIFE_MS, len(folded.changes), 0]
    await redis.eval(APPLY, 1, hash_of(partition), *numbers, *pairs)


store_contract = contract(SimulatedStoreWorld, RealStoreWorld)
