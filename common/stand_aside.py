"""A processor that cannot reach its store gives its partitions to others, until it can.

Kafka takes a partition from a member that Kafka does not hear.  A member that is cut off from Redis alone sends its
heartbeats all the same, and would keep for ever what it cannot apply.

Nobody is asked whether the store is down or only out of reach.  If it is down, all stand aside, and whoever reaches it
first takes over: as quick as if they had waited, but for one rebalance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from common.processor import Processor, Store
from common.store import StoreFailed
from common.tasks import spawn
from common.watchdog import note_repair

LOOK_S = 0.25

Sleep = Callable[[float], Awaitable[None]]


class Member(Protocol):
    """Membership of the service's group; common.log has the real one."""

    async def run(self) -> None:
        """Stay a member until cancelled, then leave, so that others take over at once."""


async def own_within_reach(member: Member, processor: Processor, store: Store, sleep: Sleep = asyncio.sleep) -> None:
    """Take part in the service's group, but not while the store of an owned partition is out of reach; for ever."""
    while True:
        out_of_reach = await _own(member, processor, sleep)
        note_repair("membership", f"the store of {', '.join(out_of_reach)} is out of reach: others take over")
        processor.assign(set())
        while not await _reaches(store, out_of_reach):
            await sleep(LOOK_S)


async def _own(member: Member, processor: Processor, sleep: Sleep) -> list[str]:
    """Be a member until the store is out of reach; return for which partitions."""
    membership = spawn(member.run())
    try:
        while not (out_of_reach := processor.out_of_reach()):
            await sleep(LOOK_S)
    finally:
        membership.cancel()
        await asyncio.wait({membership})
    return out_of_reach


async def _reaches(store: Store, partitions: list[str]) -> bool:
    try:
        for partition in partitions:
            await store.read(partition, [])
    except StoreFailed:
        return False
    return True
