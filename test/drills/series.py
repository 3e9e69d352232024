"""A series: one fault, several times under one load, and one verdict on whether everything fits together."""

from __future__ import annotations

import subprocess
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from traceback import format_exc

import msgspec
from drills.crowd import Crowd, crowd
from drills.drill import Plan, Result, Run, perform, result
from drills.fault import Fault
from drills.judge import Audit, Explained, audit, explain
from drills.measure import windows
from drills.records import Record, load
from drills.requirement import inconsistencies
from drills.scene import Scene
from drills.schedule import Load
from drills.well import time_until_well

from local.system import System

BREAKS_OFF = (AssertionError, LookupError, OSError, RuntimeError, subprocess.SubprocessError, xmlrpc.client.Error)
"""What a run may end with instead of a result: who was to be hit was not there, or did not answer."""

CALM_TIMEOUT_S = 20.0
"""How long a fault waits for clients to be served as before the first one.  A machine may have got slower meanwhile."""
WAIT_LEAST_S = 0.5
"""Nobody is kept waiting if no client waits longer."""
CALM_POLL_S = 0.25

Say = Callable[[int, str], None]
"""Hears the number of the run, and what is done."""


class BrokenOff(Exception):
    """A series without a result, of which so many runs were begun."""

    def __init__(self, begun: int) -> None:
        super().__init__(f"{begun} runs were begun")
        self.begun = begun


@dataclass(frozen=True)
class Batch:
    """The runs of a fault that are to be made under one load, by their numbers."""

    fault: Fault
    numbers: tuple[int, ...]

    @property
    def load_s_max(self) -> float:
        """How long the load goes on at most, if every run takes as long as it may."""
        return self.fault.load_s_max * len(self.numbers)

    def after(self, begun: int) -> Batch:
        """Return what is left when so many runs were begun."""
        return Batch(self.fault, self.numbers[begun:])


def batches(faults: Iterable[Fault], runs: int, together: int) -> list[Batch]:
    """Return so many runs of each fault, no more of them together than the fault allows."""
    return [batch for fault in faults for batch in _batches(fault, runs, min(together, fault.together_max))]


def _batches(fault: Fault, runs: int, together: int) -> Iterator[Batch]:
    for first in range(0, runs, together):
        yield Batch(fault, tuple(range(first, min(first + together, runs))))


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What came of runs that had one load, by which they are all explained and audited at once.

    `broke_off` is what the last run that was begun ended with, if it has no result.
    """

    runs: list[Result]
    explained: Explained
    audit: Audit
    seconds: float
    """From the making of the town to the audit's end."""
    broke_off: str = ""

    @property
    def name(self) -> str:
        """What files about it are called."""
        return f"{self.runs[0].fault}-{self.numbers}"

    @property
    def numbers(self) -> str:
        """The first run's, and the last one's if there are several."""
        return "-".join(str(number) for number in dict.fromkeys((self.runs[0].number, self.runs[-1].number)))

    @property
    def begun(self) -> int:
        """How many runs were begun."""
        return len(self.runs) + bool(self.broke_off)

    @property
    def inconsistencies(self) -> list[str]:
        """What does not fit together, a phrase each; whichever run it comes from, it is said once."""
        return inconsistencies(self.explained, self.audit)

    @property
    def is_as_required(self) -> bool:
        """Tell whether nothing is missed by any run, nor by all together."""
        return not self.inconsistencies and not any(run.missed for run in self.runs)


@dataclass
class Sitting:
    """A series while its clients are at it; times are of time.monotonic."""

    system: System
    batch: Batch
    plan: Plan
    say: Say
    start: float = 0.0
    runs: list[Run] = field(default_factory=list)
    """Those that were begun."""
    broke_off: str = ""

    def records(self) -> list[Record]:
        """Let all of it happen; return every call."""
        path = self.system.profile.run / "drill.jsonl"
        how_much = Load(self.plan.rate, max(self.plan.seconds, self.batch.load_s_max), self.plan.entities)
        with crowd(self.system.gateway_url, self._seed(self.batch.numbers[0]), how_much, path) as clients:
            self.tell("set-up")
            clients.hear("ready")
            self._under_load(clients)
            self.tell("look")
            clients.look()
        records = load(path)
        path.unlink()
        return records

    def results(self, records: Sequence[Record]) -> list[Result]:
        """Return what came of each run that has a result."""
        parts = windows([run.span.began for run in self.runs], [run.calm for run in self.runs])
        ended = self.runs[:-1] if self.broke_off else self.runs
        return [result(run, part, records, self.start) for run, part in zip(ended, parts, strict=False)]

    def tell(self, step: str) -> None:
        """Say what is done now, in or after the run that was begun last."""
        self.say(self.runs[-1].number if self.runs else self.batch.numbers[0], step)

    def _under_load(self, clients: Crowd) -> None:
        self.tell("load")
        self.start = clients.go()
        time.sleep(self.plan.lead_s)
        usual_s = max(clients.longest_wait_s(), WAIT_LEAST_S)
        self._run(self.batch.numbers[0])
        for number in self.batch.numbers[1:]:
            if not self._is_over(clients, usual_s):
                break
            self._run(number)
        time.sleep(max(self.start + self.plan.seconds - time.monotonic(), 0.0))
        clients.enough()

    def _run(self, number: int) -> None:
        seed = self._seed(number)
        run = Run(Scene(self.system, Random(seed)), self.batch.fault, number, seed)
        self.runs.append(run)
        try:
            perform(run, self.plan.tail_s, self.tell)
        except BREAKS_OFF:
            # What the runs before it came to is still to be seen, if that can be asked.
            if len(self.runs) == 1 or time_until_well(self.system) is None:
                raise
            self.broke_off = format_exc()

    def _is_over(self, clients: Crowd, usual_s: float) -> bool:
        """Wait until the next run can begin; False if it cannot.  What was well too soon is looked at once more."""
        if self.broke_off or self.runs[-1].well_s is None:
            return False
        self._wait_until_calm(clients, usual_s)
        return time_until_well(self.system) is not None

    def _wait_until_calm(self, clients: Crowd, usual_s: float) -> None:
        """Wait until nobody is kept waiting by the fault before, which is not over when everything is back."""
        deadline = time.monotonic() + CALM_TIMEOUT_S
        while clients.longest_wait_s() > usual_s and time.monotonic() < deadline:
            time.sleep(CALM_POLL_S)
        self.runs[-1].calm = max(self.runs[-1].calm, time.monotonic() - self.plan.tail_s)

    def _seed(self, number: int) -> str:
        return f"{self.plan.seed}/{self.batch.fault.name}/{number}"


def series(system: System, batch: Batch, plan: Plan, say: Say) -> tuple[Series, list[Record]]:
    """Let a fault happen several times; return what came of it, and every call, or raise BrokenOff.

    1. The clients make their town: users, items, orders.
    2. They ask at a steady rate.  After a while the fault happens, and they go on until everything is back; when nobody
       waits longer than before it happens again, to others.  The series ends early when the system does not come back,
       or when a run breaks off.
    3. Nobody waits any more.
    4. They read all that they know, so that every answer can be held against it.
    5. The checker explains what they were told, the audit joins what there is.
    """
    sitting, began = Sitting(system, batch, plan, say), time.monotonic()
    try:
        records = sitting.records()
        sitting.tell("check")
        explained = explain(records)
        sitting.tell("audit")
        audited = audit(system)
    except BREAKS_OFF as why:
        raise BrokenOff(len(sitting.runs)) from why
    found = Series(
        runs=sitting.results(records),
        explained=explained,
        audit=audited,
        seconds=time.monotonic() - began,
        broke_off=sitting.broke_off,
    )
    return found, records
