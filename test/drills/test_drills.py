"""A short set of the drills on the profile `test`: whatever is lost, no request fails, and everything fits.

`make drills` has all of them, on the profile `ha`, and holds gaps against their bounds; noise would break that here.
This profile has one broker: while it is away requests wait for it, and those whose patience ends are told so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from drills.drill import Plan, Result
from drills.faults import chosen
from drills.requirement import NOTHING_FAILS, Requirement
from drills.scene import Scene
from drills.series import Batch, series
from drills.well import time_until_well

from local.system import System

PLAN = Plan(rate=40.0, seconds=7.0, seed=1, lead_s=3.0, tail_s=1.0, entities=150)
WAITED_FOR = Requirement(failures=frozenset({"503"}), is_503_late=True)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "requirement"),
    [
        ("processor-kill-order", NOTHING_FAILS),
        ("redis-kill", NOTHING_FAILS),
        ("broker-kill-leader", WAITED_FOR),
    ],
)
def test_what_is_lost_under_load_costs_nobody_an_answer(system: System, name: str, requirement: Requirement) -> None:
    (fault,) = chosen(name)
    assert time_until_well(system) is not None

    found, _ = series(system, Batch(replace(fault, requirement=requirement), (0,)), PLAN, silent)

    assert found.inconsistencies == []
    assert_as_required(found.runs)


def test_web_processes_lost_one_after_the_other_cost_nobody_an_answer_whatever_breaks_off_then(system: System) -> None:
    (fault,) = chosen("web-kill-stock")
    injections = [fault.inject, fault.inject]

    def twice(scene: Scene) -> None:
        injections.pop()(scene)

    batch = Batch(replace(fault, inject=twice, requirement=NOTHING_FAILS), (0, 1, 2, 3))
    assert time_until_well(system) is not None

    found, _ = series(system, batch, PLAN, silent)

    assert found.inconsistencies == []
    assert [run.number for run in found.runs] == [0, 1]
    assert_as_required(found.runs)
    assert "pop from empty list" in found.broke_off


def assert_as_required(runs: Sequence[Result]) -> None:
    """Nothing was missed, who was meant died, and the load went on afterwards."""
    for run in runs:
        assert run.missed == [], run.problems
        assert run.course.deaths.keys() == set(run.course.victims)
        assert run.outcome.measured.after.count > run.outcome.measured.before.count // 2


def silent(number: int, step: str) -> None:
    """Show nothing of how it goes."""
