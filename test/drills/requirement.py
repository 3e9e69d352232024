"""What is required of a drill, and whether it was so."""

from __future__ import annotations

import msgspec
from drills.judge import Audit, Explained
from drills.measure import Measured
from msgspec.structs import replace

PATIENCE_S = 19.0
"""What a service waits before it says 503, a little less."""


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """Beyond what is always required: no inconsistency, no wrong answer, a yes or a no for everybody with a key."""

    failures: frozenset[str] = frozenset()
    """What may happen to a call: "cut", "503"; nothing else may, and none of it means 0 failed requests."""
    gap_s_max: float | None = None
    well_s_max: float = 60.0
    """All processes, replicas and partitions are back so long after the fault was over."""
    is_503_late: bool = False
    """A 503 is said only after the services' patience."""
    controller_gap_s_max: float | None = None
    """The same where the broker that is hit happens to be the active controller too."""
    others_share_min: float | None = None
    """Throughput of what the fault does not touch, over what it was before."""

    def __str__(self) -> str:
        words = ["0 failed" if not self.failures else f"only {', '.join(sorted(self.failures))}"]
        words += [f"gap <= {self.gap_s_max:g} s"] if self.gap_s_max is not None else []
        words += [f"{self.controller_gap_s_max:g} s if it is the controller"] if self.controller_gap_s_max else []
        words += ["503 past patience"] if self.is_503_late else []
        words += [f"throughput of the others >= {self.others_share_min:g}"] if self.others_share_min else []
        return ", ".join(words)


def of_controller(requirement: Requirement) -> Requirement:
    """Return what is required where the active controller is hit."""
    return replace(requirement, gap_s_max=requirement.controller_gap_s_max or requirement.gap_s_max)


NOTHING_FAILS = Requirement()
CLIENTS_ASK_AGAIN = Requirement(failures=frozenset({"cut", "502", "503", "504"}))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run.  `well_s` is None if the system was not well again in time."""

    measured: Measured
    well_s: float | None
    others_share: float | None
    """None where it is not measured."""
    outlasted_s: float
    """How long the fault went on after the last call was due: what happened then, nobody felt."""


def missed(requirement: Requirement, outcome: Outcome) -> list[str]:
    """Return what is not as required, a phrase each; nothing if all is."""
    measured = outcome.measured
    failed = {name: count for name, count in measured.failures.items() if name not in requirement.failures}
    phrases = [f"{count} x {name}" for name, count in failed.items()]
    if measured.unanswered:
        phrases.append(f"{measured.unanswered} with a key never answered")
    if outcome.outlasted_s > 0:
        phrases.append(f"the load ended {outcome.outlasted_s:.0f} s before the fault did: not measured")
    return [*phrases, *_too_late(requirement, outcome)]


def inconsistencies(explained: Explained, audit: Audit) -> list[str]:
    """Return what does not fit together, or may not."""
    phrases = [f"{len(explained.violations)} answers cannot be explained"] * bool(explained.violations)
    phrases += [f"{len(explained.undecided)} undecided"] * bool(explained.undecided)
    return phrases + [f"audit: {audit}"] * (not audit.is_clean)


def _too_late(requirement: Requirement, outcome: Outcome) -> list[str]:
    measured, phrases = outcome.measured, []
    if requirement.gap_s_max is not None and measured.gap_s > requirement.gap_s_max:
        phrases.append(f"gap {measured.gap_s:.1f} s > {requirement.gap_s_max:g} s")
    if outcome.well_s is None or outcome.well_s > requirement.well_s_max:
        phrases.append(f"not well within {requirement.well_s_max:g} s")
    if requirement.is_503_late and (measured.soonest_503_s or PATIENCE_S) < PATIENCE_S:
        phrases.append(f"503 after {measured.soonest_503_s:.1f} s")
    if (outcome.others_share or 0.0) < (requirement.others_share_min or 0.0):
        phrases.append(f"throughput of the others {outcome.others_share:.2f} < {requirement.others_share_min:g}")
    return phrases
