"""A soak: one load for long, a single fault every now and then, and nothing may fail, be lost or leak."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from pathlib import Path
from random import Random

import msgspec
from drills.chapters import Chapters
from drills.drill import Event, Point, Say, point_of, problems
from drills.faults import chosen
from drills.judge import Audit, Explained, audit
from drills.measure import Request, Span, silence_s
from drills.requirement import inconsistencies
from drills.resources import Growth, Sample, growths, watched
from drills.scene import Scene
from drills.well import time_until_well

from local.system import System

KINDS = (
    *("web-kill", "web-freeze", "processor-kill", "processor-freeze", "redis-kill", "redis-freeze"),
    *("broker-kill", "broker-freeze", "gateway-kill"),
)
"""One is drawn, then one of the faults whose names begin so."""
PAUSE_S = (20.0, 40.0)
"""From one fault's begin to the next, if the system is well by then."""
NONE = "before any fault"
MB_PER_HOUR_MAX = 60.0
"""Half an hour cannot tell less from a high-water mark that a failover left."""
DESCRIPTORS_PER_HOUR_MAX = 20.0
REDIS = "redis"
"""Grows with what there is: results are kept for a day."""
SNAPSHOTTER = "-snapshotter"
COPY_MAX = 3.0
"""So many times what all Redis primaries grow by together a snapshotter may grow by: it holds its data as well, as
Python objects."""


class Plan(msgspec.Struct, frozen=True):
    """How much for how long; the seed says which faults, and who is hit."""

    minutes: float
    rate: float
    seed: int


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One fault that was done to the system; times are of time.monotonic."""

    fault: str
    span: Span
    allowed: frozenset[str] = frozenset()
    """What may happen to a call: nothing where the requirement is 0 failed requests."""
    well_s: float | None = 0.0
    notes: Sequence[tuple[float, str]] = ()


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A fault, and what clients felt from it to the next one; times are seconds after the load began."""

    fault: str
    fault_s: Span
    events: list[Event]
    gap_s: float
    well_s: float | None
    failures: dict[str, int]
    forbidden: dict[str, int]
    """Those of them that must not be."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All that a soak says."""

    plan: Plan
    requests: int
    unanswered: int
    incidents: list[Incident]
    explained: Explained
    audit: Audit
    growths: list[Growth]
    samples: list[Sample]
    points: list[Point]
    problems: list[str]

    @property
    def missed(self) -> list[str]:
        """What is not as required, a phrase each; nothing if all is."""
        failed = [f"{each.fault}: {many} x {name}" for each in self.incidents for name, many in each.forbidden.items()]
        unwell = [f"{each.fault}: not well again" for each in self.incidents if each.well_s is None]
        unanswered = [f"{self.unanswered} with a key never answered"] * bool(self.unanswered)
        return [*failed, *unwell, *unanswered, *inconsistencies(self.explained, self.audit), *leaks(self.growths)]


def soak(system: System, plan: Plan, folder: Path, say: Say) -> Result:
    """Load the system for some minutes, fault after fault; what cannot be explained is kept in `folder`.

    1. Clients ask all the time; all processes are watched.
    2. Every now and then one fault happens, once the system is well again after the one before.
    3. The last clients have their answers, and everything they know is read once more.
    4. The checker has explained what each crowd was told; the audit joins what there is.
    """
    chapters = Chapters(system.gateway_url, str(plan.seed), plan.rate, folder)
    with watched(system) as samples:
        strikes, explained = _strike_under_load(system, plan, chapters, say)
    say("audit")
    start = strikes[0].span.began
    return Result(
        plan=plan,
        requests=len(chapters.requests),
        unanswered=sum(request.has_key and not request.is_answered for request in chapters.requests),
        incidents=incidents(strikes, chapters.requests),
        explained=explained,
        audit=audit(system),
        growths=growths(samples),
        samples=[msgspec.structs.replace(sample, at=sample.at - start) for sample in samples],
        points=[point_of(request, start) for request in chapters.requests],
        problems=problems(chapters.failed, start),
    )


def _strike_under_load(system: System, plan: Plan, chapters: Chapters, say: Say) -> tuple[list[Strike], Explained]:
    """Let faults happen while clients ask; return them, and what the checker makes of what the clients were told."""
    with ThreadPoolExecutor(1) as background:
        asking = background.submit(chapters.write)
        try:
            strikes = list(_strikes(system, plan, _begun(chapters, asking), asking, say))
        finally:
            chapters.stop()
        say("look, check")
        return strikes, together(asking.result())


def _begun(chapters: Chapters, asking: Future[list[Explained]]) -> float:
    """Wait until the clients ask; return when they began."""
    while not chapters.has_begun.wait(1.0):
        if asking.done():
            asking.result()
    return time.monotonic()


def _strikes(system: System, plan: Plan, start: float, asking: Future[list[Explained]], say: Say) -> Iterator[Strike]:
    """Let faults happen until the time is over, or the clients have ended; at first nothing does."""
    random, until = Random(plan.seed), start + plan.minutes * 60
    yield Strike(fault=NONE, span=Span(start, start))
    due = start + random.uniform(*PAUSE_S)
    while due < until and not asking.done():
        time.sleep(max(due - time.monotonic(), 0.0))
        due = time.monotonic() + random.uniform(*PAUSE_S)
        name = random.choice(chosen(random.choice(KINDS))).name
        strike = _strike(system, name, random.getrandbits(64))
        minutes, well = (
            (strike.span.began - start) / 60,
            "not well" if strike.well_s is None else f"{strike.well_s:.1f} s",
        )
        say(f"{minutes:5.1f} min: {name}, well again after {well}: {'; '.join(text for _, text in strike.notes)}")
        yield strike
    time.sleep(max(until - time.monotonic(), 0.0))


def _strike(system: System, name: str, seed: int) -> Strike:
    """Let a fault happen; return when the system is well again."""
    (fault,), scene = chosen(name), Scene(system, Random(seed))
    began = time.monotonic()
    fault.inject(scene)
    return Strike(
        fault=name,
        span=Span(began, time.monotonic()),
        allowed=fault.requirement.failures,
        well_s=time_until_well(system),
        notes=scene.notes,
    )


def incidents(strikes: Sequence[Strike], requests: Sequence[Request]) -> list[Incident]:
    """Return what clients felt of each fault; the first one is when the load began."""
    start = strikes[0].span.began
    ends = [*(strike.span.began for strike in strikes[1:]), inf]
    return [_incident(strike, until, requests, start) for strike, until in zip(strikes, ends, strict=True)]


def _incident(strike: Strike, until: float, requests: Sequence[Request], start: float) -> Incident:
    began = strike.span.began
    felt = [request for request in requests if request.ended >= began and request.due < until]
    failures = Counter(failure for request in felt if request.ended < until for failure in request.failures)
    return Incident(
        fault=strike.fault,
        fault_s=Span(began - start, strike.span.ended - start),
        events=[Event(at - start, text) for at, text in strike.notes],
        gap_s=max([silence_s(requests, began, until), *(request.wait_s for request in felt)]),
        well_s=strike.well_s,
        failures=dict(failures),
        forbidden={name: many for name, many in failures.items() if name not in strike.allowed},
    )


def together(chapters: Sequence[Explained]) -> Explained:
    """Return what the checker makes of all chapters."""
    return Explained(
        [told for chapter in chapters for told in chapter.violations],
        [told for chapter in chapters for told in chapter.undecided],
    )


def leaks(growths: Sequence[Growth], primaries: int = 3) -> list[str]:
    """Return which processes grow faster than they may."""
    memory = [each for each in growths if (each.mb_per_hour or 0.0) > _mb_per_hour_max(each, growths, primaries)]
    descriptors = [each for each in growths if (each.descriptors_per_hour or 0.0) > DESCRIPTORS_PER_HOUR_MAX]
    return [
        *(f"{each.kind} grows by {each.mb_per_hour:.0f} MB an hour" for each in memory),
        *(f"{each.kind} opens {each.descriptors_per_hour:.0f} descriptors an hour" for each in descriptors),
    ]


def _mb_per_hour_max(growth: Growth, growths: Sequence[Growth], primaries: int) -> float:
    if growth.kind == REDIS:
        return inf
    if not growth.kind.endswith(SNAPSHOTTER):
        return MB_PER_HOUR_MAX
    data = sum(max(each.mb_per_hour or 0.0, 0.0) for each in growths if each.kind == REDIS) * primaries
    return MB_PER_HOUR_MAX + COPY_MAX * data
