"""The simulated system: log, store, web processes and processors, and who owns what."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
from simulation.log import SimulatedDeadLetterBox, SimulatedLog, SimulatedSender, SimulatedSnapshotLog, SimulatedTail
from simulation.process import Process, Wire
from simulation.store import Cluster, SimulatedStore
from simulation.web import Gateway, WebProcess

from common.decision import Machine
from common.fold import Header
from common.log import Publisher
from common.messages import Topology, partitions_of
from common.processor import Processor, World
from common.snapshot import Snapshots
from common.snapshotter import Snapshotter
from order.domain import MACHINE as ORDER
from payment.domain import MACHINE as PAYMENT
from stock.domain import MACHINE as STOCK

WEBS = 2
PROCESSORS = 2
PRIMARIES = 2
SNAPSHOT_RECORDS = (3, 10, 30)
CLOCK_ERROR_S = 0.8
REBALANCE_S = 0.4

_header = msgspec.msgpack.Decoder(Header)


class ProcessorProcess(Process):
    """One processor process."""

    def __init__(self, name: str, machine: Machine, system: System) -> None:
        super().__init__(name, system.clock_error_s())
        self.service = machine.service
        self.owned: set[str] = set()
        self._processor = Processor(machine, system.topology, _world(self, machine, system))

    def assign(self, names: set[str]) -> None:
        """Own exactly these partitions, as far as this process knows."""
        if not self.is_dead:
            self.owned = set(names)
            self.do(self._processor.assign, names)


class SnapshotterProcess(Process):
    """One snapshotter process."""

    def __init__(self, name: str, machine: Machine, system: System) -> None:
        super().__init__(name, system.clock_error_s())
        self.service = machine.service
        world = _world(self, machine, system)
        self.start(Snapshotter(machine, system.topology, world, system.snapshot_records).run())


def _world(process: Process, machine: Machine, system: System) -> World:
    sender = SimulatedSender(system.log, system.wire, process)
    return World(
        tail=lambda partition: SimulatedTail(system.log, system.wire, process, partition),
        publisher=Publisher(sender),
        store=SimulatedStore(system.cluster, system.wire, process),
        dead_letters=SimulatedDeadLetterBox(sender, system.log, machine.service),
        snapshots=Snapshots(SimulatedSnapshotLog(sender, system.log)),
        now_s=process.now_s,
        sleep=process.sleep,
    )


class System:
    """Everything that runs, and what happens to it."""

    def __init__(self, random: Random, topology: Topology, note: Callable[[str], None]) -> None:
        self.random = random
        self.topology = topology
        self.note = note
        self.injected: Counter[str] = Counter()
        self.wire = Wire(random, self.injected, note)
        self.log = SimulatedLog(topology, random)
        self.cluster = Cluster(PRIMARIES)
        self.gateway = Gateway(random, self.wire)
        self.machines = {machine.service: machine for machine in (ORDER, STOCK, PAYMENT)}
        self.processor_machines = dict(self.machines)
        self.processors: list[ProcessorProcess] = []
        self.snapshotters: list[SnapshotterProcess] = []
        self.snapshot_records = random.choice(SNAPSHOT_RECORDS)
        self.spoilt: dict[str, float] = {}
        self.halts: dict[str, None] = {}
        self.lost: dict[str, range] = {}
        self._started = 0
        self._generations: dict[str, int] = {}

    def clock_error_s(self) -> float:
        """Return by how much the next process's clock is wrong."""
        return self.random.uniform(-CLOCK_ERROR_S, CLOCK_ERROR_S)

    def start(self) -> None:
        """Start all processes."""
        for service in self.machines:
            for _ in range(WEBS):
                self.start_web(service)
            for _ in range(PROCESSORS):
                self.start_processor(service)
            self.start_snapshotter(service)
            self.rebalance(service)

    def start_web(self, service: str) -> None:
        """Start a web process, which never was there before."""
        web = WebProcess(
            self._name(f"{service}-web"), self.machines[service], self.topology, self.wire, self.clock_error_s()
        )
        web.connect(self.log, self.cluster)
        self.gateway.webs.append(web)

    def start_processor(self, service: str) -> None:
        """Start a processor, which owns nothing yet."""
        machine = self.processor_machines[service]
        self.processors.append(ProcessorProcess(self._name(f"{service}-processor"), machine, self))

    def start_snapshotter(self, service: str) -> None:
        """Start a snapshotter, with the processors' code or with what is to replace it."""
        machine = self.random.choice((self.machines[service], self.processor_machines[service]))
        self.snapshotters.append(SnapshotterProcess(self._name(f"{service}-snapshotter"), machine, self))

    def note_halt(self, process: Process, partition: str) -> None:
        """Remember that a snapshotter says that a state is not what its log makes."""
        if isinstance(process, SnapshotterProcess):
            self.halts[f"{process.name} halted at {partition}"] = None

    def members(self, service: str) -> list[ProcessorProcess]:
        """Return the processors that the group knows of."""
        alive = [process for process in self.processors if process.service == service and not process.is_dead]
        return [process for process in alive if not process.is_frozen]

    def rebalance(self, service: str) -> None:
        """Divide the partitions anew; each member hears of it in its own time, so that two own one for a while."""
        members = self.members(service)
        if not members:
            return
        generation = self._generations[service] = self._generations.get(service, 0) + 1
        shares: dict[int, set[str]] = {number: set() for number in range(len(members))}
        for partition in partitions_of(service, self.topology):
            shares[self.random.randrange(len(members))].add(partition)
        for number, member in enumerate(members):
            delay_s = self.random.uniform(0.0, REBALANCE_S)
            asyncio.get_running_loop().call_later(delay_s, self._tell, generation, member, shares[number])

    def _tell(self, generation: int, member: ProcessorProcess, share: set[str]) -> None:
        """Tell a member its share, unless it was told of a later generation already."""
        if generation == self._generations[member.service]:
            member.assign(share)

    def kill(self, process: Process, *, loses_buffers: bool | None = None) -> None:
        """Kill a process; what it has in its buffers is lost, or arrives later."""
        process.kill(loses_buffers=self.random.random() < 0.5 if loses_buffers is None else loses_buffers)
        self.processors = [processor for processor in self.processors if not processor.is_dead]
        self.snapshotters = [snapshotter for snapshotter in self.snapshotters if not snapshotter.is_dead]
        self.gateway.webs = [web for web in self.gateway.webs if not web.is_dead]

    def is_settled(self) -> bool:
        """Say whether every record is folded, nothing is open, and nothing is on its way."""
        return not self.wire.in_flight and not any(self.open())

    def open(self) -> list[str]:
        """Say what has not come to its end."""
        found = []
        for service in self.topology:
            for partition in partitions_of(service, self.topology):
                found += self._open(partition)
        return found

    def _open(self, partition: str) -> list[str]:
        position, (value,) = self.cluster.current(partition).read(partition, ["header"])
        end = len(self.log.records[partition])
        if position != end:
            return [f"{partition} stands at {position} of {end}"]
        counts = _header.decode(value).counts if value else {}
        return [f"{partition} has {counts[kind]} open {kind}" for kind in OPEN_KINDS if counts.get(kind)]

    def _name(self, kind: str) -> str:
        self._started += 1
        return f"{kind}-{self._started}"


OPEN_KINDS = ("Checkout", "Addition", "BatchInit")
