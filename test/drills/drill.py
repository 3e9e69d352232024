"""One drill: a load, a fault in the middle of it, and what is left to be said afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from drills.crowd import Crowd, crowd
from drills.faults import Fault
from drills.logs import Logs
from drills.measure import Measured, Request, Span, failure_of, measure, requests_of, throughput
from drills.records import Record, load
from drills.requirement import Outcome, missed, of_controller
from drills.scene import Scene
from drills.well import time_until_well
from histories.checker import check

from local.profiles import REPOSITORY
from local.system import System

WARM_UP_S = 2.0
AUDIT_TIMEOUT_S = 300
PROBLEMS_MAX = 40

Say = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How much of what; the seed says the rest."""

    rate: float
    seconds: float
    seed: int
    lead_s: float = 6.0
    """Of the load before the fault, warm-up included: for what is measured before it."""


class Event(msgspec.Struct, frozen=True):
    """What was done to the system, so many seconds after the load began."""

    at_s: float
    text: str


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A request as it is drawn: seconds after the load began, seconds waited, and how it failed, if so."""

    due_s: float
    wait_s: float
    failure: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that a drill says."""

    fault: str
    what: str
    required: str
    number: int
    seed: str
    victims: list[str]
    events: list[Event]
    fault_s: Span
    """From when to when it was done."""
    measured: Measured
    missed: list[str]
    violations: list[str]
    undecided: int
    audit: dict[str, Any]
    well_s: float | None
    others_share: float | None
    deaths: dict[str, int]
    load_average: float
    points: list[Point]
    logs: dict[str, str]
    problems: list[str]

    @property
    def name(self) -> str:
        """What files about it are called."""
        return f"{self.fault}-{self.number}"


@dataclass
class Run:
    """What is known of a drill while the clients are at it."""

    scene: Scene
    fault: Fault
    plan: Plan
    number: int
    start: float = 0.0
    span: Span = field(default_factory=lambda: Span(0.0, 0.0))
    well_s: float | None = None
    deaths: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    load_average: float = 0.0

    @property
    def seed(self) -> str:
        """What the dice of this run are made of."""
        return f"{self.plan.seed}/{self.fault.name}/{self.number}"


def drill(system: System, fault: Fault, plan: Plan, number: int, say: Say) -> tuple[Result, list[Record]]:
    """Drill a fault; return what came of it, and every call.

    1. The clients make their town: users, items, orders.
    2. They ask at a steady rate.  After a while the fault happens, and they go on.
    3. Everything is back, and nobody waits any more.
    4. They read all that they know, so that every answer can be held against it.
    5. The checker explains what they were told, the audit joins what there is.
    """
    scene = Scene(system)
    run = Run(scene, fault, plan, number)
    scene.random.seed(run.seed)
    path = system.profile.run / "drill.jsonl"
    seconds = max(plan.seconds, fault.load_s_min)
    with crowd(system.gateway_url, run.seed, plan.rate, seconds, path) as clients:
        say("set-up")
        clients.hear("ready")
        under_load(run, clients, say)
        say("look")
        clients.look()
    records = load(path)
    path.unlink()
    say("check, audit")
    return result(run, records), records


def under_load(run: Run, clients: Crowd, say: Say) -> None:
    """Let the fault happen in the middle of a load; return when the load has ended and everything is back."""
    system = run.scene.system
    deaths = system.supervision.deaths()
    say("load")
    run.start = clients.go()
    time.sleep(run.plan.lead_s)
    say("fault")
    logs = Logs(system.profile.logs)
    began = time.monotonic()
    run.fault.inject(run.scene)
    run.span = Span(began, time.monotonic())
    say("recovery")
    run.well_s, run.load_average = time_until_well(system), os.getloadavg()[0]
    clients.hear("done")
    run.logs = logs.since()
    run.deaths = {name: count - deaths[name] for name, count in system.supervision.deaths().items()}


def result(run: Run, records: list[Record]) -> Result:
    """Return all that can be said of a drill."""
    measured, requests = measure(records, run.span.began), requests_of(records)
    found, audit = check(record.operation for record in records), audited(run.scene.system)
    broken = [violation for violation in found if violation.kind == "broken"]
    share = others_share(requests, run) if run.fault.touches else None
    requirement = of_controller(run.fault.requirement) if run.scene.hits_controller else run.fault.requirement
    outcome = Outcome(
        measured=measured,
        violations=len(broken),
        audit=told_by(audit),
        well_s=run.well_s,
        others_share=share,
        outlasted_s=max(run.span.ended - max(request.due for request in requests), 0.0),
    )
    return Result(
        fault=run.fault.name,
        what=run.fault.what,
        required=str(run.fault.requirement),
        number=run.number,
        seed=run.seed,
        victims=sorted(run.scene.victims),
        events=[Event(at - run.start, text) for at, text in run.scene.notes],
        fault_s=Span(run.span.began - run.start, run.span.ended - run.start),
        measured=measured,
        missed=missed(requirement, outcome),
        violations=[str(violation) for violation in broken],
        undecided=len(found) - len(broken),
        audit=audit,
        well_s=run.well_s,
        others_share=share,
        deaths={name: count for name, count in run.deaths.items() if count},
        load_average=run.load_average,
        points=[Point(request.due - run.start, request.wait_s, *request.failures[:1]) for request in requests],
        logs=run.logs,
        problems=problems(records, run.start),
    )


def others_share(requests: list[Request], run: Run) -> float:
    """Return the throughput of what the fault does not touch while it lasts, over what it was before."""
    others = [request for request in requests if not request.path.startswith(run.fault.touches)]
    before = throughput(others, Span(run.start + WARM_UP_S, run.span.began))
    return throughput(others, run.span) / before


def audited(system: System) -> dict[str, Any]:
    """Return what `python -m audit --json` says, or why it says nothing."""
    command = [sys.executable, "-m", "audit", system.profile.name, "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
    try:
        report: dict[str, Any] = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError:
        return {"is_clean": False, "cannot_tell": done.stderr[-2000:]}
    return report


def told_by(audit: dict[str, Any]) -> str:
    """Return an audit's findings in a line, nothing if it is clean."""
    if audit["is_clean"]:
        return ""
    findings = Counter(f"{finding['invariant']} {finding['kind']}" for finding in audit.get("findings", ()))
    return ", ".join(f"{count} x {kind}" for kind, count in findings.items()) or audit["cannot_tell"]


def problems(records: list[Record], start: float) -> list[str]:
    """Return the calls of the load that failed, a line each, as many as people read."""
    failed = [record for record in records if record.number is not None and failure_of(record)]
    return [_line(record, start) for record in sorted(failed, key=lambda record: record.ended)[:PROBLEMS_MAX]]


def _line(record: Record, start: float) -> str:
    began, ended = record.began - start, record.ended - start
    return f"{began:.3f}-{ended:.3f} {record.operation.invocation}: {record.answer} {record.problem}"
