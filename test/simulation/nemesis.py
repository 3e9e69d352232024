"""What goes wrong: everything between two events is drawn from the seed, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import TypeVarTuple

from simulation.log import SPOILT, beside, manifests_in
from simulation.process import Process
from simulation.system import ProcessorProcess, SnapshotterProcess, System

from common.fold import Record
from common.log import MANIFESTS, SNAPSHOTS
from common.messages import partitions_of

LEAST_S, MOST_S = 0.05, 2.5

Arguments = TypeVarTuple("Arguments")


class Nemesis:
    """Hits the system at random moments, and repairs what it broke."""

    def __init__(self, system: System, random: Random) -> None:
        self._system = system
        self._random = random
        self._loop = asyncio.get_running_loop()

    async def rage(self, until_s: float, pause_s: float) -> None:
        """Strike again and again until the time is over."""
        while self._loop.time() < until_s:
            await asyncio.sleep(self._random.expovariate(1 / pause_s))
            strike = self._random.choices(STRIKES, STRIKE_WEIGHTS)[0]
            name = strike_name(strike)
            self._system.note(f"nemesis: {name}")
            self._system.injected[name] += 1
            strike(self)

    def repair(self) -> None:
        """End every fault, and have everything run."""
        self._system.wire.rates.clear()
        self._system.log.is_down.clear()
        self._system.cluster.down.clear()
        for process in self._processes():
            process.thaw()
            self._system.cluster.undeceive(process)
        for service in self._system.topology:
            while len(self._system.members(service)) < 1:
                self._system.start_processor(service)
            if not any(web.service == service for web in self._system.gateway.webs):
                self._system.start_web(service)
            if not any(snapshotter.service == service for snapshotter in self._system.snapshotters):
                self._system.start_snapshotter(service)
            self._system.rebalance(service)

    # --- strikes

    def kill_processor(self) -> None:
        """Kill one; the group notices later, and it is started again."""
        process = self._any_processor()
        if process is not None:
            self._system.kill(process)
            self._later(self._system.rebalance, process.service)
            self._later(self._restart_processor, process.service)

    def kill_web(self) -> None:
        """Kill one; it is started again."""
        if self._system.gateway.webs:
            web = self._random.choice(self._system.gateway.webs)
            self._system.kill(web)
            self._later(self._system.start_web, web.service)

    def freeze_processor(self) -> None:
        """Stop one for a while: it wakes as a zombie, others own what it still thinks is its own."""
        process = self._any_processor()
        if process is not None and not process.is_frozen:
            process.freeze()
            self._later(self._system.rebalance, process.service)
            self._later(process.thaw)
            self._loop.call_later(2 * MOST_S, self._system.rebalance, process.service)

    def freeze_web(self) -> None:
        """Stop one for a while."""
        if self._system.gateway.webs:
            web = self._random.choice(self._system.gateway.webs)
            web.freeze()
            self._later(web.thaw)

    def kill_snapshotter(self) -> None:
        """Kill one; it is started again."""
        snapshotter = self._any_snapshotter()
        if snapshotter is not None:
            self._system.kill(snapshotter)
            self._later(self._system.start_snapshotter, snapshotter.service)

    def freeze_snapshotter(self) -> None:
        """Stop one for a while."""
        snapshotter = self._any_snapshotter()
        if snapshotter is not None:
            snapshotter.freeze()
            self._later(snapshotter.thaw)

    def start_snapshotter(self) -> None:
        """Start one beside the one that there is."""
        self._system.start_snapshotter(self._random.choice(list(self._system.topology)))

    def spoil_snapshot(self) -> None:
        """Lose a chunk of the newest snapshot; once a partition, for two that can be read are all that is promised."""
        partition = self._any_partition()
        if partition not in self._system.spoilt and self._spoil(partition):
            self._system.spoilt[partition] = self._loop.time()
            self._system.injected["snapshot spoilt"] += 1

    def own_twice(self) -> None:
        """Let two processors own one partition for a while."""
        partition = self._any_partition()
        service = partition.rpartition("-")[0]
        for process in self._system.members(service):
            process.assign(process.owned | {partition})
        self._later(self._system.rebalance, service)

    def rebalance(self) -> None:
        """Divide the partitions anew for no reason."""
        self._system.rebalance(self._random.choice(list(self._system.topology)))

    def fail_over(self) -> None:
        """Promote a replica that missed the last writes; some processes do not hear of it for a while."""
        number = self._any_primary()
        all_ = self._random.randrange(self._system.cluster.primaries[number].writes + 1)
        self._fail_over(number, self._random.choice((0, 1, 3, 8, 40, all_)))

    def fail_over_amid_a_restore(self) -> None:
        """Lose all that a primary has, and then a part of the first snapshot that is put there."""
        number = self._any_primary()
        self._system.cluster.empty(number)
        self._fail_over_if_restoring(number, self._loop.time() + MOST_S)

    def empty_primary(self) -> None:
        """Lose all that a primary has."""
        self._system.cluster.empty(self._any_primary())

    def store_outage(self) -> None:
        """Nobody reaches a primary."""
        number = self._any_primary()
        self._system.cluster.down.add(number)
        self._later(self._system.cluster.down.discard, number)

    def log_outage(self) -> None:
        """Nobody reaches a partition's leader."""
        partition = self._random.choice(list(self._system.log.records))
        self._system.log.is_down.add(partition)
        self._later(self._system.log.is_down.discard, partition)

    def break_connections(self) -> None:
        """Every connection to a partition's leader breaks."""
        self._break_connections(self._random.choice(list(self._system.log.records)))

    def lose_log_tail(self) -> None:
        """Lose acknowledged records, as Kafka never should, at a change of leader.  Who has folded them must halt.

        Every connection breaks: a tail that stayed connected would read on without noticing (decision 19).
        """
        partition = self._any_partition()
        count = self._random.randint(1, 5)
        if len(self._system.log.offered(partition)) > count:
            end = len(self._system.log.records[partition])
            self._system.lost[partition] = range(end - count, end)
            self._system.log.lose(partition, count)
            self._break_connections(partition)
            self._system.injected["lose log tail"] += 1

    # --- whom, and how

    def _break_connections(self, partition: str) -> None:
        self._system.log.epoch[partition] = self._system.log.epoch.get(partition, 0) + 1

    def _fail_over(self, number: int, missed: int) -> None:
        """Promote the replica; some processes do not hear of it for a while."""
        deceived = [process for process in self._processes() if self._random.random() < 0.3]
        self._system.cluster.fail_over(number, missed, deceived)
        for process in deceived:
            self._later(self._system.cluster.undeceive, process)

    def _fail_over_if_restoring(self, number: int, until_s: float) -> None:
        """Look again and again."""
        if self._system.cluster.primaries[number].temporaries:
            self._fail_over(number, self._random.randint(1, 3))
        elif self._loop.time() < until_s:
            self._loop.call_later(self._random.uniform(0.001, 0.01), self._fail_over_if_restoring, number, until_s)

    def _any_primary(self) -> int:
        return self._random.randrange(len(self._system.cluster.primaries))

    def _any_processor(self) -> ProcessorProcess | None:
        return self._random.choice(self._system.processors) if self._system.processors else None

    def _any_snapshotter(self) -> SnapshotterProcess | None:
        return self._random.choice(self._system.snapshotters) if self._system.snapshotters else None

    def _any_partition(self) -> str:
        service = self._random.choice(list(self._system.topology))
        return self._random.choice(partitions_of(service, self._system.topology))

    def _spoil(self, partition: str) -> bool:
        """Put another record in place of a chunk; return False if there is no snapshot."""
        manifests = manifests_in(self._system.log.offered(beside(partition, MANIFESTS)))
        if not manifests:
            return False
        offset, _ = self._random.choice(manifests[0].chunks)
        chunks = self._system.log.records[beside(partition, SNAPSHOTS)]
        chunks[offset] = Record(offset, chunks[offset].timestamp_ms, SPOILT)
        return True

    def _processes(self) -> list[Process]:
        return [*self._system.processors, *self._system.gateway.webs, *self._system.snapshotters]

    def _restart_processor(self, service: str) -> None:
        self._system.start_processor(service)
        self._system.rebalance(service)

    def _later(self, repair: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        self._loop.call_later(self._random.uniform(LEAST_S, MOST_S), repair, *arguments)


def strike_name(strike: Callable[[Nemesis], None]) -> str:
    """Return it in words."""
    return strike.__name__.replace("_", " ")


STRIKES = (
    Nemesis.kill_processor,
    Nemesis.kill_web,
    Nemesis.freeze_processor,
    Nemesis.freeze_web,
    Nemesis.own_twice,
    Nemesis.rebalance,
    Nemesis.fail_over,
    Nemesis.empty_primary,
    Nemesis.store_outage,
    Nemesis.log_outage,
    Nemesis.break_connections,
    Nemesis.kill_snapshotter,
    Nemesis.freeze_snapshotter,
    Nemesis.start_snapshotter,
    Nemesis.spoil_snapshot,
    Nemesis.fail_over_amid_a_restore,
)
STRIKE_WEIGHTS = (4, 3, 3, 1, 3, 1, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1)
