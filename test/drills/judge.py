"""Whether everything fits together: what the checker says of the clients' answers, the audit of what there is."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from drills.cluster import Cluster
from drills.records import Record
from histories.checker import check

from local.profiles import REPOSITORY
from local.system import System

AUDIT_TIMEOUT_S = 1800


class Explained(msgspec.Struct, frozen=True):
    """What the checker makes of a history: nothing but explanations, if all is well."""

    violations: list[str] = []
    """Answers that no order of the calls explains."""
    undecided: list[str] = []
    """What would take too long to tell."""


class Audit(msgspec.Struct, frozen=True):
    """What `python -m audit --json` says; `cannot_tell` is why it says nothing."""

    is_clean: bool
    findings: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    cannot_tell: str = ""

    def __str__(self) -> str:
        """Return the findings in a line, nothing if there are none."""
        findings = Counter(f"{finding['invariant']} {finding['kind']}" for finding in self.findings)
        return ", ".join(f"{count} x {kind}" for kind, count in findings.items()) or self.cannot_tell


def explain(records: Iterable[Record]) -> Explained:
    """Check the history that the records are."""
    found = check(record.operation for record in records)
    told: dict[str, list[str]] = {"broken": [], "undecided": []}
    for violation in found:
        told[violation.kind].append(str(violation))
    return Explained(told["broken"], told["undecided"])


def audit(system: System) -> Audit:
    """Audit a system that nobody uses any more."""
    told, why_not = system.audit() if isinstance(system, Cluster) else _audit(system)
    try:
        return msgspec.json.decode(told, type=Audit)
    except msgspec.DecodeError:
        return Audit(is_clean=False, cannot_tell=why_not[-2000:])


def _audit(system: System) -> tuple[str, str]:
    command = [sys.executable, "-m", "audit", system.profile.name, "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
    return done.stdout, done.stderr
