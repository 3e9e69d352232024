"""Runs: one system, one number of connections, a few seconds; what it answered and what it used."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from measuring.processes import cpu_seconds
from measuring.systems import System
from measuring.wrk import run_wrk

# More than any system answers on two cores; a run that needs more orders says so.
RATE_MAX = 4_000
SETTLE_S = 0.5
# The broker's JIT compiler needs some twenty thousand requests; measured before that, it is half of all CPU time.
WARM_UP_CONNECTIONS = 64
WARM_UP_S = 12


@dataclass(frozen=True)
class Run:
    """What one run measured.  `faults` counts what should not have happened: a run with faults is worth nothing."""

    system: str
    connections: int
    answers: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    faults: dict[str, int]

    @property
    def cpu_ms_total(self) -> float:
        """Return the processor time that everything but the generator spent on one answer."""
        return sum(self.cpu_ms.values())


def warm_up(system: System) -> None:
    """Check out orders, and see that at least as many are paid as were answered with 2xx."""
    orders = system.supply.take(WARM_UP_S * RATE_MAX)
    result = run_wrk(system.gateway_url, WARM_UP_CONNECTIONS, WARM_UP_S, orders)
    system.supply.used(result.issued)
    if result.faults:
        raise SystemExit(f"{system.name}: not a valid bench: {result.faults} of {result.answers} answers")
    time.sleep(SETTLE_S)
    paid_count = system.supply.paid_count(orders[: result.issued])
    if paid_count < result.answers:
        raise SystemExit(f"{system.name}: {result.answers} checkouts answered with yes, but {paid_count} orders paid")


def measure(system: System, connections: int, seconds: int) -> Run:
    """Check out orders for `seconds` over `connections` connections."""
    orders = system.supply.take(seconds * RATE_MAX)
    before = cpu_seconds(system.groups())
    result = run_wrk(system.gateway_url, connections, seconds, orders)
    after = cpu_seconds(system.groups())
    system.supply.used(result.issued)
    time.sleep(SETTLE_S)
    answers = max(result.answers, 1)
    return Run(
        system=system.name,
        connections=connections,
        answers=result.answers,
        rate=result.answers / result.duration_us * 1e6,
        p50_ms=result.p50_us / 1000,
        p99_ms=result.p99_us / 1000,
        cpu_ms={group: (after[group] - before.get(group, 0.0)) / answers * 1000 for group in after},
        faults=result.faults,
    )


def median_run(runs: Iterable[Run]) -> Run:
    """Return the run that has the median of each figure of `runs`, and all their answers and faults."""
    same = list(runs)

    def median(figure: str) -> float:
        return float(statistics.median(getattr(run, figure) for run in same))

    return Run(
        system=same[0].system,
        connections=same[0].connections,
        answers=sum(run.answers for run in same),
        rate=median("rate"),
        p50_ms=median("p50_ms"),
        p99_ms=median("p99_ms"),
        cpu_ms={group: statistics.median(run.cpu_ms[group] for run in same) for group in same[0].cpu_ms},
        faults={name: sum(run.faults.get(name, 0) for run in same) for run in same for name in run.faults},
    )
