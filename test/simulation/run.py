"""One run from one seed: a shop opens, clients buy, everything breaks, everything is repaired; then it is judged."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

import structlog
from histories.model import Operation
from histories.recorder import Recorder
from simulation import loop
from simulation.clients import Client, Shop, buy, look_at_all, open_numbered_shop, open_shop
from simulation.judge import judge
from simulation.nemesis import Nemesis
from simulation.process import adopt, current
from simulation.scenario import RulesUpgrade, Upgrade, faulty, ignorant
from simulation.system import System

from common import batch_init, fold, snapshot, snapshotter, telemetry
from common.messages import Topology

SETTLE_POLL_S = 0.5
SETTLE_POLLS_MAX = 80
UPGRADED_BY_S = 5.0
LATE_MAX_S = (0.5, 3.0, 3.0, 20.0)
LOG_LOSS_SHARE = 0.04
TOPOLOGIES: tuple[Topology, ...] = (
    {"order": 1, "stock": 1, "payment": 1},
    {"order": 2, "stock": 2, "payment": 1},
    {"order": 1, "stock": 2, "payment": 2},
)
CALLS = ("send", "fetch", "end", "read", "apply", "reply", "fill", "restore", "trim")
RATES = (0.0, 0.01, 0.05, 0.2)


@dataclass
class Verdict:
    """What came of a run.  `violations` is empty when every invariant held."""

    seed: int
    violations: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    history: list[Operation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    calls: int = 0


class Simulation:
    """One run."""

    def __init__(self, seed: int, *, traces: bool = False) -> None:
        self.verdict = Verdict(seed)
        self._traces = traces
        self._random = Random(seed)

    def run(self) -> Verdict:
        """Return the verdict."""
        halted = patch.object(telemetry, "HALTED", _Halted(self._note_halt))
        with _logging_to(self.note if self._traces else None), _short_times(), halted:
            try:
                loop.run(self._live(), self._on_error)
            except (loop.Deadlock, loop.Endless) as why:
                self.verdict.violations.append(f"I7: {why!r}")
        return self.verdict

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        if self._traces:
            self.verdict.trace.append(f"{asyncio.get_running_loop().time():9.4f}  {what}")

    async def _live(self) -> None:
        asyncio.get_running_loop().set_task_factory(adopt)
        self._system = System(self._random, self._random.choice(TOPOLOGIES), self.note)
        self.verdict.injected = self._system.injected
        upgrade = self._upgrade()
        self._system.start()
        recorder = Recorder(_Clock().now)
        shop = Shop()
        clients = [
            Client(f"c{number}", self._random, self._system.gateway, recorder)
            for number in range(self._random.randint(2, 4))
        ]
        await self._open(clients[0], shop)
        await self._storm(clients, shop, upgrade)
        await self._settle(upgrade)
        await look_at_all(clients[0], shop)
        self.verdict.history = recorder.history()
        self.verdict.calls = len(self.verdict.history)
        self.verdict.violations += judge(self._system, self.verdict.history)

    def _upgrade(self) -> Upgrade | None:
        """Let one service in one of five seeds begin with other code."""
        change = self._random.choice((*12 * (None,), faulty, ignorant, RulesUpgrade))
        if change is None:
            return None
        if change is RulesUpgrade:
            self._system.injected["changed rules"] += 1
            return RulesUpgrade(self._system, self._random)
        self._system.injected[f"{change.__name__} code"] += 1
        upgrade = Upgrade(self._system, self._random)
        upgrade.begin(change(self._random))
        return upgrade

    async def _open(self, client: Client, shop: Shop) -> None:
        if self._random.random() < 0.15:
            await open_numbered_shop(client, shop, self._random)
        else:
            await open_shop(client, shop, self._random)

    async def _storm(self, clients: list[Client], shop: Shop, upgrade: Upgrade | None) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._random.uniform(2.0, 6.0)
        self._system.wire.rates = {call: self._random.choice(RATES) for call in CALLS}
        self._system.wire.late_max_s = self._random.choice(LATE_MAX_S)
        nemesis = Nemesis(self._system, self._random)
        if self._random.random() < LOG_LOSS_SHARE:
            loop.call_later(self._random.uniform(0.5, 4.0), nemesis.lose_log_tail)
        if upgrade:
            loop.call_later(self._random.uniform(1.0, 4.0), upgrade.deploy)
        if shop.items and shop.users:
            buying = [asyncio.ensure_future(buy(client, shop, self._random, until_s)) for client in clients]
            await nemesis.rage(until_s, self._random.choice((0.1, 0.4, 2.0)))
            nemesis.repair()
            await asyncio.wait(buying)
        nemesis.repair()

    async def _settle(self, upgrade: Upgrade | None) -> None:
        if upgrade:
            await asyncio.sleep(UPGRADED_BY_S)
            await upgrade.finish()
        for _ in range(SETTLE_POLLS_MAX):
            if self._system.is_settled():
                break
            await asyncio.sleep(SETTLE_POLL_S)
        if not self._system.lost:
            self.verdict.violations += [f"I7: {found}" for found in self._system.open()]

    def _note_halt(self, partition: str) -> None:
        process = current()
        if process is not None:
            self._system.note_halt(process, partition)

    def _on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.verdict.violations.append(f"a task failed: {context.get('message')}: {context.get('exception')!r}")


class _Halted:
    """Stands where the gauge of halted partitions is."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._partition = ""

    def labels(self, partition: str) -> _Halted:
        """Return it for a partition."""
        self._partition = partition
        return self

    def set(self, value: int) -> None:
        """Note what is set to 1."""
        if value:
            self._note(self._partition)


class _Clock:
    """The virtual time, and a little later each time: calls one after the other are never taken for concurrent."""

    def __init__(self) -> None:
        self._last_s = 0.0

    def now(self) -> float:
        self._last_s = max(self._last_s + 1e-7, asyncio.get_running_loop().time())
        return self._last_s


@contextlib.contextmanager
def _short_times() -> Iterator[None]:
    """What takes minutes and thousands in real life takes seconds and a few here."""
    with (
        patch.object(fold, "ATTEMPT_RETENTION_MS", 12_000),
        patch.object(fold, "COMMAND_AGE_MAX_MS", 2_000),
        patch.object(batch_init, "CHUNK_ENTITIES", 2),
        patch.object(snapshot, "CHUNK_BYTES", 300),
        patch.object(snapshotter, "LOOK_S", 0.2),
        patch.object(snapshotter, "PAUSE_S", 0.3),
    ):
        yield


@contextlib.contextmanager
def _logging_to(note: Any) -> Iterator[None]:
    def keep(_logger: object, method: str, event: structlog.typing.EventDict) -> str:
        if note is not None:
            note(f"{method}: {event.pop('event')} " + " ".join(f"{name}={value}" for name, value in event.items()))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[keep],
        wrapper_class=structlog.make_filtering_bound_logger(10 if note else 50),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def simulate(seed: int, *, traces: bool = False) -> Verdict:
    """Return the verdict on one seed."""
    return Simulation(seed, traces=traces).run()
