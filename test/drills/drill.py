"""One run: a fault in the middle of a load, and what is left to be said of it afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import msgspec
from drills.faults import Fault
from drills.logs import Logs
from drills.measure import Request, Span, Window, cut_out, failure_of, measure, requests_of, throughput
from drills.records import Record
from drills.requirement import Outcome, missed, of_controller
from drills.scene import Scene
from drills.schedule import ENTITIES
from drills.well import time_until_well

COMPARED_S = 2.0
"""So long before a fault the throughput is taken that the throughput under it is compared with."""
PROBLEMS_MAX = 40

Say = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How much of what; the seed says the rest."""

    rate: float
    seconds: float
    """Of a load, at least, however few faults are in it."""
    seed: int
    lead_s: float = 4.0
    """Of the load before the first fault, warm-up included: for what is measured before it."""
    tail_s: float = 2.0
    """Of the load after the system is well again, before the next fault or the end."""
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
    """All that is said of a run; what its whole series is judged by stands there."""

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
    """What is known of a run while the clients are at it; times are of time.monotonic."""

    scene: Scene
    fault: Fault
    number: int
    seed: str
    """What the dice of this run are made of."""
    span: Span = field(default_factory=lambda: Span(time.monotonic(), inf))
    """From when to when the fault was done."""
    well_s: float | None = None
    calm: float = 0.0
    """When everything was back, and nobody was kept waiting any more."""
    deaths: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    load_average: float = 0.0

    def course(self, start: float) -> Course:
        """Return what happened; `start` is when the load began."""
        return Course(
            victims=sorted(self.scene.victims),
            events=[Event(at - start, text) for at, text in self.scene.notes],
            fault_s=Span(self.span.began - start, self.span.ended - start),
            deaths=self.deaths,
            load_average=self.load_average,
            logs=self.logs,
        )


def perform(run: Run, tail_s: float, say: Say) -> None:
    """Let the fault happen; return when everything has been back for `tail_s`."""
    system = run.scene.system
    deaths, logs = system.supervision.deaths(), Logs(system.profile.logs)
    say("fault")
    began = time.monotonic()
    run.fault.inject(run.scene)
    run.span = Span(began, time.monotonic())
    say("recovery")
    run.well_s, run.load_average = time_until_well(system), os.getloadavg()[0]
    run.calm = time.monotonic()
    time.sleep(tail_s)
    run.logs = logs.since()
    died = {name: count - deaths[name] for name, count in system.supervision.deaths().items()}
    run.deaths = {name: count for name, count in died.items() if count}


def result(run: Run, window: Window, records: Sequence[Record], start: float) -> Result:
    """Return all that can be said of a run, given every call of its load; `start` is when that began."""
    requirement = of_controller(run.fault.requirement) if run.scene.hits_controller else run.fault.requirement
    requests = requests_of(records)
    outcome = Outcome(
        measured=measure(records, window),
        well_s=run.well_s,
        others_share=others_share(requests, run) if run.fault.touches else None,
        outlasted_s=max(run.span.ended - max(request.due for request in requests), 0.0),
    )
    return Result(
        fault=run.fault.name,
        what=run.fault.what,
        required=str(run.fault.requirement),
        number=run.number,
        seed=run.seed,
        course=run.course(start),
        outcome=outcome,
        missed=missed(requirement, outcome),
        points=[point_of(request, start) for request in cut_out(requests, window)],
        problems=problems([record for record in records if window.counts(record.ended)], start),
    )


def others_share(requests: list[Request], run: Run) -> float:
    """Return the throughput of what the fault does not touch while it lasts, over what it was before."""
    others = [request for request in requests if not request.path.startswith(run.fault.touches)]
    before = throughput(others, Span(run.span.began - COMPARED_S, run.span.began))
    return throughput(others, run.span) / before


def problems(records: Sequence[Record], start: float) -> list[str]:
    """Return the calls of the load that failed, a line each, as many as people read."""
    failed = [record for record in records if record.number is not None and failure_of(record)]
    return [_line(record, start) for record in sorted(failed, key=lambda record: record.ended)[:PROBLEMS_MAX]]


def point_of(request: Request, start: float) -> Point:
    """Return a request as it is drawn."""
    return Point(request.due - start, request.wait_s, *request.failures[:1])


def _line(record: Record, start: float) -> str:
    began, ended = record.began - start, record.ended - start
    return f"{began:.3f}-{ended:.3f} {record.operation.invocation}: {record.answer} {record.problem}"
