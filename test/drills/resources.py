"""What the processes use while the drills go on: memory and file descriptors over time, and how fast they grow.

A process that is killed begins anew, so its lives are looked at one by one: one slope for all lives of a kind of
process, by least squares, each life with a level of its own, and its first minutes left out: caches fill then.  What is
looked at is the least of every two minutes: what a failover needs for a moment is no leak.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import msgspec
import psutil

from local.status import MEGABYTE
from local.system import System

INTERVAL_S = 5.0
FILLING_S = 600.0
"""So long a process fills its caches, and a JVM its heap."""
FLOOR_S = 120.0
"""A leak does not go down again within so long."""
OBSERVED_S_MIN = 900.0
"""All lives of a kind together: what was seen for less time has no slope worth judging."""
HOUR_S = 3600.0


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A process and its children at one moment; PSS shares out what several processes map."""

    at: float
    name: str
    pid: int
    pss_mb: float
    descriptors: int

    @property
    def kind(self) -> str:
        """What it is one of: "order-web", "redis"."""
        return self.name.rstrip("0123456789").rstrip("-")


class Growth(msgspec.Struct, frozen=True):
    """How fast all processes of a kind grow, each.  The slopes are None where too little was seen of them."""

    kind: str
    observed_s: float
    pss_mb: float
    """At most, of one process."""
    descriptors: int
    mb_per_hour: float | None
    descriptors_per_hour: float | None


@contextmanager
def watched(system: System) -> Iterator[list[Sample]]:
    """Yield a list that grows by what every process uses, until the block ends."""
    samples: list[Sample] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(INTERVAL_S):
            samples.extend(look(system))

    watching = threading.Thread(target=watch, name="resources")
    watching.start()
    try:
        yield samples
    finally:
        is_over.set()
        watching.join()


def look(system: System) -> Iterator[Sample]:
    """Yield what every process that runs uses now."""
    for name, known in system.supervision.processes().items():
        pid = int(known["pid"])
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []
            pss = sum(process.memory_full_info().pss for process in family) / MEGABYTE
            descriptors = sum(process.num_fds() for process in family)
        except psutil.Error:
            continue
        if family:
            yield Sample(time.monotonic(), name, pid, pss, descriptors)


def growths(samples: Iterable[Sample]) -> list[Growth]:
    """Return how each kind of process grew, in the order in which they were seen first."""
    kinds: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.kind].append(sample)
    return [_growth(kind, same) for kind, same in kinds.items()]


def _growth(kind: str, samples: list[Sample]) -> Growth:
    lives = settled(samples)
    observed_s = sum(life[-1].at - life[0].at for life in lives)
    is_enough = observed_s >= OBSERVED_S_MIN
    memory = [floor((sample.at, sample.pss_mb) for sample in life) for life in lives]
    descriptors = [floor((sample.at, float(sample.descriptors)) for sample in life) for life in lives]
    return Growth(
        kind=kind,
        observed_s=observed_s,
        pss_mb=max(sample.pss_mb for sample in samples),
        descriptors=max(sample.descriptors for sample in samples),
        mb_per_hour=slope(memory) if is_enough else None,
        descriptors_per_hour=slope(descriptors) if is_enough else None,
    )


def settled(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return the samples by process, each in the order of time, without those of the time when it fills its caches."""
    lives: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        life = lives[sample.name, sample.pid]
        life.append(sample)
    late = ([sample for sample in life if sample.at >= life[0].at + FILLING_S] for life in lives.values())
    return [life for life in late if life]


def floor(line: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the least value of each FLOOR_S, by hour; `line` is values by second."""
    least: dict[int, float] = {}
    for at, value in line:
        number = int(at // FLOOR_S)
        least[number] = min(value, least.get(number, value))
    return [(number * FLOOR_S / HOUR_S, value) for number, value in least.items()]


def slope(lines: Iterable[Sequence[tuple[float, float]]]) -> float:
    """Return the one slope that fits all lines best, whatever their levels; 0 where nothing has a length."""
    across = along = 0.0
    for line in lines:
        x_mean, y_mean = fmean(x for x, _ in line), fmean(y for _, y in line)
        across += sum((x - x_mean) * (y - y_mean) for x, y in line)
        along += sum((x - x_mean) ** 2 for x, _ in line)
    return across / along if along else 0.0
