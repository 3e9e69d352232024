"""A process that can be killed and frozen at any await, and the wire between it and the log and the store."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH_S = 1_700_000_000.0
_process: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Lost(Exception):
    """No answer: what was asked may have happened, may happen yet, or never."""


class Process:
    """One operating system process: its tasks, whether it lives, and how its clock is wrong."""

    def __init__(self, name: str, clock_error_s: float = 0.0) -> None:
        self.name = name
        self.is_dead = False
        self.loses_buffers = False
        self.died = asyncio.Event()
        self.tasks: dict[asyncio.Task[Any], None] = {}  # not a set: its order would be another one in each run
        self._running = asyncio.Event()
        self._running.set()
        self._clock_error_s = clock_error_s
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)

    @property
    def is_frozen(self) -> bool:
        """Say whether it has been stopped and not continued."""
        return not self._running.is_set()

    def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` inside the process: the tasks that it spawns die with it."""
        return self._context.run(function, *arguments)

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Begin a task of this process."""
        self.do(asyncio.get_running_loop().create_task, work)

    def kill(self, *, loses_buffers: bool) -> None:
        """End every task where it stands; what was sent arrives, unless it is still in the process's buffers."""
        self.is_dead, self.loses_buffers = True, loses_buffers
        self.died.set()
        for task in list(self.tasks):
            task.cancel()

    def freeze(self) -> None:
        """Stop it: it notices nothing, and goes on later as if no time had passed."""
        self._running.clear()

    def thaw(self) -> None:
        """Continue it."""
        self._running.set()

    async def gate(self) -> None:
        """Wait while the process is frozen."""
        if not self._running.is_set():
            await self._running.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep, and oversleep while frozen."""
        await asyncio.sleep(seconds)
        await self.gate()

    def now_s(self) -> float:
        """Return the process's wall clock, s since 1970."""
        return EPOCH_S + asyncio.get_running_loop().time() + self._clock_error_s


def current() -> Process | None:
    """Return the process that this code runs in."""
    return _process.get(None)


def adopt(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
    """Make a task, as a loop's task factory; it belongs to the process that makes it."""
    task = asyncio.Task(work, loop=loop, **options)
    process = current()
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(process.tasks.pop)
    return task


# --- the wire --------------------------------------------------------------------------------------------------------


class Fate(StrEnum):
    """What becomes of one call."""

    OK = "ok"
    LOST = "lost"
    UNANSWERED = "unanswered"
    LATE = "late"
    TWICE = "twice"
    SLOW = "slow"


FATES = tuple(fate for fate in Fate if fate is not Fate.OK)


@dataclass
class Wire:
    """Carries calls to the log and to the store.  `rates` has the share of calls that go wrong, by kind of call."""

    random: Random
    injected: Counter[str]
    note: Callable[[str], None]
    late_max_s: float = 3.0
    timeout_s: float = 0.5
    rates: dict[str, float] = field(default_factory=dict)
    in_flight: int = 0

    async def call(self, process: Process, kind: str, effect: Callable[[], T]) -> T:
        """Return what `effect` returns at the other end, or raise what it raises; raise Lost without an answer."""
        await process.gate()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        parcel = _Parcel(self, process, effect, answer)
        self._send(parcel, self._fate(kind))
        result = await answer
        await process.gate()
        return result

    def latency_s(self) -> float:
        """Return how long one way takes."""
        return self.random.uniform(0.0002, 0.003)

    def fails(self, kind: str) -> bool:
        """Draw whether a call of this kind goes wrong."""
        rate = self.rates.get(kind, 0.0)
        return rate > 0.0 and self.random.random() < rate

    def _fate(self, kind: str) -> Fate:
        if not self.fails(kind):
            return Fate.OK
        fate = self.random.choice(FATES)
        self.injected[f"{kind} {fate}"] += 1
        self.note(f"fault: {kind} {fate}")
        return fate

    def _send(self, parcel: _Parcel, fate: Fate) -> None:
        there_s = self.latency_s()
        timeout_s = self.random.uniform(0.01, self.timeout_s)
        match fate:
            case Fate.OK:
                parcel.deliver_in(there_s, answers=True)
            case Fate.SLOW:
                slow_s = self.random.uniform(0.05, self.timeout_s)
                parcel.back_s = self.random.choice((there_s, slow_s))
                parcel.deliver_in(there_s + slow_s - parcel.back_s, answers=True)
            case Fate.TWICE:
                parcel.deliver_in(there_s, answers=False)
                parcel.deliver_in(there_s + self.random.uniform(0.0, 0.05), answers=True)
            case Fate.LOST:
                parcel.fail_in(timeout_s)
            case Fate.UNANSWERED:
                parcel.deliver_in(there_s, answers=False)
                parcel.fail_in(there_s + timeout_s)
            case Fate.LATE:
                parcel.fail_in(timeout_s)
                parcel.deliver_in(timeout_s + self.random.uniform(0.0, self.late_max_s), answers=False)


class _Parcel:
    """One call on its way.  It arrives whatever becomes of its sender."""

    def __init__(self, wire: Wire, process: Process, effect: Callable[[], object], answer: asyncio.Future[Any]) -> None:
        self._wire = wire
        self._process = process
        self._effect = effect
        self._answer = answer
        self._loop = answer.get_loop()
        self.back_s = wire.latency_s()

    def deliver_in(self, seconds: float, *, answers: bool) -> None:
        """Have the effect happen after so many seconds."""
        self._wire.in_flight += 1
        self._loop.call_later(seconds, self._deliver, answers)

    def fail_in(self, seconds: float) -> None:
        """Tell the caller after so many seconds that nothing is known."""
        self._loop.call_later(seconds, self._settle, Lost(), None)

    def _deliver(self, answers: bool) -> None:  # noqa: FBT001 - call_later takes no keywords
        self._wire.in_flight -= 1
        if self._process.loses_buffers:
            return
        error: Exception | None = None
        result = None
        try:
            result = self._effect()
        except Exception as why:  # noqa: BLE001 - it is the other end that raised: the caller gets it
            error = why
        if answers:
            self._loop.call_later(self.back_s, self._settle, error, result)

    def _settle(self, error: Exception | None, result: object) -> None:
        if self._answer.done():
            return
        if error is not None:
            self._answer.set_exception(error)
        else:
            self._answer.set_result(result)
