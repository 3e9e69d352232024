"""1,500 seeds without a violation; the same seed is the same run; every planted bug is found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simulation.many import found, verdicts
from simulation.nemesis import STRIKES, strike_name
from simulation.plants import PLANTS
from simulation.process import FATES
from simulation.run import CALLS, simulate

SEEDS = 1_500
PLANTED_AT_LEAST = 40
TRACED_SEED = 3
TEST = Path(__file__).parents[1]


@pytest.mark.slow
def test_no_seed_breaks_an_invariant() -> None:
    violations: list[str] = []
    injected: Counter[str] = Counter()
    calls = 0
    for chunk in verdicts(range(SEEDS)):
        for verdict in chunk:
            violations += [f"seed {verdict.seed}: {violation}" for violation in verdict.violations]
            injected += verdict.injected
            calls += verdict.calls
    assert violations == []
    assert calls > 30 * SEEDS
    expected = {*(f"{call} {fate}" for call in CALLS for fate in FATES), *(strike_name(strike) for strike in STRIKES)}
    assert expected <= injected.keys(), "a fault was never injected"
    assert min(injected[name] for name in ("restored from a snapshot", "log trimmed", "snapshot spoilt")) > SEEDS / 10


@pytest.mark.slow
def test_every_planted_bug_is_found() -> None:
    missed = [plant.name for plant, result in found(list(PLANTS.values())) if result is None]
    assert len(PLANTS) >= PLANTED_AT_LEAST
    assert missed == []


def test_a_snapshotter_says_that_a_state_is_not_what_its_log_makes() -> None:
    with PLANTS["owners fold by rules of their own"].planted():
        violations = simulate(TRACED_SEED).violations
    assert any("stock-snapshotter" in violation and "halted at stock" in violation for violation in violations)
    assert not any("the snapshot of" in violation for violation in violations)


def test_a_seed_replays_to_the_same_trace_whatever_python_hashes() -> None:
    traces = [_trace(hash_seed) for hash_seed in ("1", "2")]
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 100


def test_different_seeds_are_different_runs() -> None:
    assert simulate(1).history != simulate(2).history


def _trace(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TEST)}
    command = [sys.executable, "-m", "simulation", "run", "--seed", str(TRACED_SEED)]
    finished = subprocess.run(
        command, capture_output=True, check=True, text=True, cwd=TEST.parent, env=environment, timeout=60
    )
    return finished.stdout
