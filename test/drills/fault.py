"""A fault: what it is, what is done, what is required."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drills.requirement import NOTHING_FAILS, Requirement
from drills.scene import Scene
from msgspec.structs import replace

Inject = Callable[[Scene], object]
"""Does it, and returns when nothing more is done to the system; what died comes back by itself."""
TOGETHER_MAX = 20
"""What does not fit together is looked for among so many, and so many have no result if their clients end."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`touches` are the beginnings of the paths that suffer by it; the throughput of all others is compared."""

    name: str
    what: str
    inject: Inject
    requirement: Requirement
    load_s_max: float = 90.0
    """The load ends when the system is well again, but not later; so long for each run under it."""
    together_max: int = TOGETHER_MAX
    """So many runs of it can be under one load."""
    touches: tuple[str, ...] = ()
    needs_relays: bool = False
    """It happens between two processes: on the profile `net`."""


def within(gap_s: float) -> Requirement:
    """Return that nothing fails, and nobody waits longer."""
    return replace(NOTHING_FAILS, gap_s_max=gap_s)


WEB_GONE = within(2.0)
PROCESSOR_GONE = within(3.5)
REDIS_GONE = within(4.0)
BROKER_GONE = replace(NOTHING_FAILS, gap_s_max=4.5, controller_gap_s_max=7.0)
