"""Watchdogs: what stands still is noticed, begun anew, and if that does not help, the process ends to be started again.

Whoever makes progress says `beat`; whoever watches counts its own rounds without one.  No clock is compared, so a
process that was stopped and continued (SIGSTOP, a machine that slept) is not taken for one that stands still.

A beat says that something came to its end, well or badly.  A broker or a Redis that is down gives errors, not silence,
and starting again would not bring it back.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from common import telemetry
from common.tasks import CRASHED

ROUND_S = 1.0
STILL_ROUNDS_MAX = 30
"""Rounds without a beat before work is begun anew: several times what any call to Kafka or Redis may take."""
REPAIRS_MAX = 2
HEALTHY_ROUNDS = 600
"""Work that went on for so long was repaired: whatever comes later is another fault."""
LOOP_ROUNDS_MAX = 20
"""Rounds without an answer before an event loop that stands still ends its process."""
LOOP_LAG_ROUNDS = 3
"""Rounds without an answer before the process says that it is not ready."""

logger = structlog.get_logger()

Work = Callable[[], Coroutine[Any, Any, None]]
Sleep = Callable[[float], Awaitable[None]]


class Stuck(Exception):
    """Nothing that this process did to itself has helped."""


class Pulse:
    """Counts beats, and how many rounds in a row have been without one."""

    __slots__ = ("_seen", "_still", "beats", "is_resting", "rounds")

    def __init__(self) -> None:
        self.beats = 0
        self.rounds = 0
        self.is_resting = False
        self._seen = -1
        self._still = 0

    def beat(self) -> None:
        """Say that something moves."""
        self.beats += 1
        self.is_resting = False

    def still_rounds(self) -> int:
        """End a round; return how many rounds in a row have now been without a beat.  Who rests is excused."""
        is_still = self.beats == self._seen and not self.is_resting
        self._still = self._still + 1 if is_still else 0
        self._seen = self.beats
        self.rounds += 1
        return self._still


_pulse: contextvars.ContextVar[Pulse] = contextvars.ContextVar("pulse")


def beat() -> None:
    """Say that the work of this task makes progress."""
    pulse = _pulse.get(None)
    if pulse is not None:
        pulse.beat()


def rest() -> None:
    """Until the next beat this work waits for something that may take for ever, and that others watch."""
    pulse = _pulse.get(None)
    if pulse is not None:
        pulse.is_resting = True


async def nurse(name: str, work: Work, sleep: Sleep = asyncio.sleep) -> None:
    """Do `work` to its end, in a task of its own; raise what it raises.

    When it stands still, cancel it and begin it anew; raise Stuck when that does not help.  Whoever is cancelled may
    take a while to end, or never: it must share nothing with its successor.
    """
    repairs = 0
    while True:
        pulse = Pulse()
        task = _begin(work, pulse)
        if await _has_ended(task, pulse, sleep):
            return task.result()
        task.cancel()
        repairs = 1 if pulse.rounds > HEALTHY_ROUNDS else repairs + 1
        if repairs > REPAIRS_MAX:
            raise Stuck(f"{name} stands still, and has been begun anew {REPAIRS_MAX} times")
        note_repair(name, "it stands still")


def note_repair(what: str, why: str) -> None:
    """Count and log that something of this process was replaced."""
    telemetry.REPAIRS.labels(what).inc()
    logger.warning("repaired", what=what, why=why)


def _begin(work: Work, pulse: Pulse) -> asyncio.Task[None]:
    context = contextvars.copy_context()
    context.run(_pulse.set, pulse)
    return asyncio.get_running_loop().create_task(work(), context=context)


async def _has_ended(task: asyncio.Task[None], pulse: Pulse, sleep: Sleep) -> bool:
    """Return True when the task has ended, False when it stands still."""
    try:
        while pulse.still_rounds() < STILL_ROUNDS_MAX:
            await _round(task, sleep)
            if task.done():
                return True
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})  # it tidies up
        raise
    return False


async def _round(task: asyncio.Task[None], sleep: Sleep) -> None:
    """Wait for a round, less if the task ends."""
    over = asyncio.ensure_future(sleep(ROUND_S))
    try:
        await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.cancel()


# --- the event loop --------------------------------------------------------------------------------------------------


class LoopWatch:
    """Asks an event loop, round by round, from a thread of its own, whether it still turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._give_up = give_up or _end_process
        self._unanswered = 0

    @property
    def is_answering(self) -> bool:
        """Say whether the loop turns, and does not lag by seconds."""
        return self._unanswered < LOOP_LAG_ROUNDS

    def start(self) -> None:
        """Begin to ask; the thread ends with the loop or with the process."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while not self._loop.is_closed():
            asked_s = time.monotonic()
            if not self._ask():
                return
            telemetry.LOOP_LAG_SECONDS.set(time.monotonic() - asked_s)
            time.sleep(ROUND_S)

    def _ask(self) -> bool:
        """Return True when the loop answers, False when there is nothing to ask any more."""
        answered = threading.Event()
        try:
            self._loop.call_soon_threadsafe(answered.set)
        except RuntimeError:  # closed meanwhile
            return False
        while not answered.wait(ROUND_S):
            self._unanswered += 1
            if self._unanswered >= LOOP_ROUNDS_MAX:
                self._give_up()
                return False
        self._unanswered = 0
        return True


def _end_process() -> None:
    """Show where every thread stands, and end.  On stderr: the loop may be waiting for whoever reads stdout."""
    line = {"event": "crash", "level": "critical", "why": f"the event loop stood still for {LOOP_ROUNDS_MAX} s"}
    faulthandler.dump_traceback(all_threads=True)
    os.write(2, msgspec.json.encode(line) + b"\n")
    os._exit(CRASHED)
