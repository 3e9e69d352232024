"""What goes wrong: everything between two events is drawn from the seed, and counted."""

from __future__ import annotations

import asyncio
from random import Random

from simulation.process import Process
from simulation.system import ProcessorProcess, System

from common.messages import partitions_of

LEAST_S, MOST_S = 0.05, 2.5


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
            name = strike.__name__.replace("_", " ")
            self._system.note(f"nemesis: {name}")
            self._system.injected[name] += 1
            strike(self)

    def repair(self) -> None:
        """End every fault, and have everything run."""
        self._system.wire.rates.clear()
        self._system.log.is_down.clear()
        self._system.cluster.down.clear()
        for process in (*self._system.processors, *self._system.gateway.webs):
            process.thaw()
            self._system.cluster.undeceive(process)
        for service in self._system.topology:
            while len(self._system.members(service)) < 1:
                self._system.start_processor(service)
            if not any(web.service == service for web in self._system.gateway.webs):
                self._system.start_web(service)
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

    def own_twice(self) -> None:
        """Let two processors own one partition for a while."""
        service = self._random.choice(list(self._system.topology))
        partition = self._random.choice(partitions_of(service, self._system.topology))
        for process in self._system.members(service):
            process.assign(process.owned | {partition})
        self._later(self._system.rebalance, service)

    def rebalance(self) -> None:
        """Divide the partitions anew for no reason."""
        self._system.rebalance(self._random.choice(list(self._system.topology)))

    def fail_over(self) -> None:
        """Promote a replica that missed the last writes; some processes do not hear of it for a while."""
        number = self._random.randrange(len(self._system.cluster.primaries))
        missed = self._random.choice((0, 1, 3, 8, 40))
        deceived = [process for process in self._processes() if self._random.random() < 0.3]
        self._system.cluster.fail_over(number, missed, deceived)
        for process in deceived:
            self._later(self._system.cluster.undeceive, process)

    def empty_primary(self) -> None:
        """Lose all that a primary has."""
        self._system.cluster.empty(self._random.randrange(len(self._system.cluster.primaries)))

    def store_outage(self) -> None:
        """Nobody reaches a primary."""
        number = self._random.randrange(len(self._system.cluster.primaries))
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
        partition = self._random.choice([name for name in self._system.log.records if "dead" not in name])
        count = self._random.randint(1, 5)
        if len(self._system.log.records[partition]) > count:
            end = len(self._system.log.records[partition])
            self._system.lost[partition] = range(end - count, end)
            self._system.log.lose(partition, count)
            self._break_connections(partition)
            self._system.injected["lose log tail"] += 1

    # --- whom, and how

    def _break_connections(self, partition: str) -> None:
        self._system.log.epoch[partition] = self._system.log.epoch.get(partition, 0) + 1

    def _any_processor(self) -> ProcessorProcess | None:
        return self._random.choice(self._system.processors) if self._system.processors else None

    def _processes(self) -> list[Process]:
        return [*self._system.processors, *self._system.gateway.webs]

    def _restart_processor(self, service: str) -> None:
        self._system.start_processor(service)
        self._system.rebalance(service)

    def _later(self, repair: object, *arguments: object) -> None:
        self._loop.call_later(self._random.uniform(LEAST_S, MOST_S), repair, *arguments)  # type: ignore[arg-type]


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
)
STRIKE_WEIGHTS = (4, 3, 3, 1, 3, 1, 4, 1, 1, 1, 1)
