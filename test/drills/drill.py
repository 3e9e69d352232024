"""One drill: a load, a fault in the middle of it, and what is left to be said afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from drills.crowd import Crowd, crowd
from drills.faults import Fault
from drills.judge import audit, explain
from drills.logs import Logs
from drills.measure import Request, Span, failure_of, measure, requests_of, throughput
from drills.records import Record, load
from drills.requirement import Outcome, missed, of_controller
from drills.scene import Scene
from drills.schedule import ENTITIES, Load
from drills.well import time_until_well

from local.system import System

WARM_UP_S = 2.0
PROBLEMS_MAX = 40

Say = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How much of what; the seed says the rest."""

    rate: float
    seconds: float
    """Of load, at least."""
    seed: int
    lead_s: float = 4.0
    """Of the load before the fault, warm-up included: for what is measured before it."""
    tail_s: float = 2.0
    """Of the load after the system is well again."""
    entities: int = ENTITIES
    """So many users, and so many items."""


class Event(msgspec.Struct, frozen=True):
    """What was done to the system, so many seconds after the load began."""

    at_s: float
    text: str


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A request as it is drawn: seconds after the load began, seconds waited, and how it failed, if so."""

    due_s: float
    wait_s: float
    failure: str = ""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to the system, and how it took it."""

    victims: list[str]
    events: list[Event]
    fault_s: Span
    """From when to when it was done, after the load began."""
    deaths: dict[str, int]
    load_average: float
    logs: dict[str, str]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that a drill says."""

    fault: str
    what: str
    required: str
    number: int
    seed: str
    course: Course
    outcome: Outcome
    missed: list[str]
    points: list[Point]
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

    def course(self) -> Course:
        """Return what happened."""
        return Course(
            victims=sorted(self.scene.victims),
            events=[Event(at - self.start, text) for at, text in self.scene.notes],
            fault_s=Span(self.span.began - self.start, self.span.ended - self.start),
            deaths=self.deaths,
            load_average=self.load_average,
            logs=self.logs,
        )


def drill(system: System, fault: Fault, plan: Plan, number: int, say: Say) -> tuple[Result, list[Record]]:
    """Drill a fault; return what came of it, and every call.

    1. The clients make their town: users, items, orders.
    2. They ask at a steady rate.  After a while the fault happens, and they go on until everything is back.
    3. Nobody waits any more.
    4. They read all that they know, so that every answer can be held against it.
    5. The checker explains what they were told, the audit joins what there is.
    """
    scene = Scene(system)
    run = Run(scene, fault, plan, number)
    scene.random.seed(run.seed)
    path = system.profile.run / "drill.jsonl"
    how_much = Load(plan.rate, max(plan.seconds, fault.load_s_max), plan.entities)
    with crowd(system.gateway_url, run.seed, how_much, path) as clients:
        say("set-up")
        clients.hear("ready")
        under_load(run, clients, say)
        say("look")
        clients.look()
    records = load(path)
    path.unlink()
    say("check, audit")
    return result(run, records, outcome_of(run, records)), records


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
    time.sleep(max(run.plan.tail_s, run.start + run.plan.seconds - time.monotonic()))
    clients.enough()
    run.logs = logs.since()
    died = {name: count - deaths[name] for name, count in system.supervision.deaths().items()}
    run.deaths = {name: count for name, count in died.items() if count}


def outcome_of(run: Run, records: list[Record]) -> Outcome:
    """Return what is held against the requirement, once nobody uses the system any more."""
    requests = requests_of(records)
    return Outcome(
        measured=measure(records, run.span.began),
        explained=explain(records),
        audit=audit(run.scene.system),
        well_s=run.well_s,
        others_share=others_share(requests, run) if run.fault.touches else None,
        outlasted_s=max(run.span.ended - max(request.due for request in requests), 0.0),
    )


def result(run: Run, records: list[Record], outcome: Outcome) -> Result:
    """Return all that can be said of a drill."""
    requirement = of_controller(run.fault.requirement) if run.scene.hits_controller else run.fault.requirement
    return Result(
        fault=run.fault.name,
        what=run.fault.what,
        required=str(run.fault.requirement),
        number=run.number,
        seed=run.seed,
        course=run.course(),
        outcome=outcome,
        missed=missed(requirement, outcome),
        points=[point_of(request, run.start) for request in requests_of(records)],
        problems=problems(records, run.start),
    )


def others_share(requests: list[Request], run: Run) -> float:
    """Return the throughput of what the fault does not touch while it lasts, over what it was before."""
    others = [request for request in requests if not request.path.startswith(run.fault.touches)]
    before = throughput(others, Span(run.start + WARM_UP_S, run.span.began))
    return throughput(others, run.span) / before


def problems(records: list[Record], start: float) -> list[str]:
    """Return the calls of the load that failed, a line each, as many as people read."""
    failed = [record for record in records if record.number is not None and failure_of(record)]
    return [_line(record, start) for record in sorted(failed, key=lambda record: record.ended)[:PROBLEMS_MAX]]


def point_of(request: Request, start: float) -> Point:
    """Return a request as it is drawn."""
    return Point(request.due - start, request.wait_s, *request.failures[:1])


def _line(record: Record, start: float) -> str:
    began, ended = record.began - start, record.ended - start
    return f"{began:.3f}-{ended:.3f} {record.operation.invocation}: {record.answer} {record.problem}"
