"""A short set of the drills on the profile `test`: whatever is lost, no request fails, and everything fits.

`make drills` has all of them, on the profile `ha`, and holds gaps against their bounds; noise would break that here.
This profile has one broker: while it is away requests wait for it, and those whose patience ends are told so.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from drills.drill import Plan, drill
from drills.faults import chosen
from drills.requirement import NOTHING_FAILS, Requirement
from drills.well import time_until_well

from local.system import System

PLAN = Plan(rate=40.0, seconds=7.0, seed=1, lead_s=3.0, tail_s=1.0, entities=150)
WAITED_FOR = Requirement(failures=frozenset({"503"}), is_503_late=True)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "requirement"),
    [
        ("web-kill-stock", NOTHING_FAILS),
        ("processor-kill-order", NOTHING_FAILS),
        ("redis-kill", NOTHING_FAILS),
        ("broker-kill-leader", WAITED_FOR),
    ],
)
def test_what_is_lost_under_load_costs_nobody_an_answer(system: System, name: str, requirement: Requirement) -> None:
    (fault,) = chosen(name)
    assert time_until_well(system) is not None

    result, _ = drill(system, replace(fault, requirement=requirement), PLAN, 0, lambda _step: None)

    assert result.missed == [], result.problems
    assert result.course.deaths.keys() == set(result.course.victims)
    assert result.outcome.measured.after.count > result.outcome.measured.before.count // 2
