"""Many runs, on all cores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from simulation.plants import PLANTS, Plant
from simulation.run import Verdict, simulate

CHUNK = 25
"""Seeds that a process takes at a time."""
SEEDS_PER_PLANT_MAX = 2_000


def verdicts(seeds: range) -> Iterator[list[Verdict]]:
    """Yield the verdicts on the seeds, a chunk at a time, from all cores."""
    chunks = [range(start, min(start + CHUNK, seeds.stop)) for start in range(seeds.start, seeds.stop, CHUNK)]
    with _pool() as pool:
        yield from pool.map(_verdicts, chunks)


def seeds_until_found(name: str, seeds_max: int = SEEDS_PER_PLANT_MAX) -> tuple[int, str] | None:
    """Return how many seeds it takes to find a planted bug, and what gives it away; None when none of them does."""
    for seed in range(seeds_max):
        with PLANTS[name].planted():
            violations = simulate(seed).violations
        if violations:
            return seed + 1, violations[0]
    return None


def found(plants: list[Plant]) -> Iterator[tuple[Plant, tuple[int, str] | None]]:
    """Yield each plant and what came of it, from all cores."""
    with _pool() as pool:
        yield from zip(plants, pool.map(seeds_until_found, [plant.name for plant in plants]), strict=True)


def _pool() -> ProcessPoolExecutor:
    """Return processes that inherit nothing: no coverage that slows them down, no logging of the tests."""
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


def _verdicts(seeds: range) -> list[Verdict]:
    return [_without_history(simulate(seed)) for seed in seeds]


def _without_history(verdict: Verdict) -> Verdict:
    verdict.history.clear()
    return verdict
