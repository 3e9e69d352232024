"""A web process: Flask's threads ask and wait, one background thread with an event loop does all I/O."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from uuid import uuid4

import msgspec
import structlog
import uvloop

from common.config import ConfigError, Settings
from common.decision import Entity, Machine, key
from common.fold import Codec
from common.log import Ends, Producer, Publisher, wait_for_log
from common.messages import Asker, Message, Outcome, partition_of, partitions_of
from common.request_reply import Network, RequestReply
from common.store import Replies, Store
from common.tasks import crash_on_error, spawn
from common.watchdog import LoopWatch, Work, nurse
from common.worker import draining

UNHEARD_READY_S = 3.0
"""How long a partition's log and replies may be silent before this process says that it is not ready.

Then the gateway prefers others.  Where none is ready, it sends requests here all the same, and they wait."""
OTHERS_READY_S = 2.0
"""How long others have to have been ready meanwhile, without a break, before they should take its requests.  What is
silent to all of them, a failover or an overload, makes none of them ready by then."""
LISTENS_S = 1.0
"""How often whoever waits makes sure that somebody still listens: when the gateway asks another process, it hangs up
here, and the place is free again."""
HEALTH_THREADS = 8
"""Threads that are kept free of waiting requests."""
STOP_TIMEOUT_S = 2.0
CANNOT_BOOT = 3
"""Exit status that tells gunicorn not to start another worker: it would end the same way."""

logger = structlog.get_logger()
E = TypeVar("E", bound=Entity)
T = TypeVar("T")


class OutcomeUnknown(Exception):
    """No answer in time.  The request was carried out, or will be, or never: asking again with the same id tells."""


class TooBusy(Exception):
    """Too many requests are waiting; this one was not even tried."""


class Listener(msgspec.Struct, frozen=True):
    """Whoever waits for an answer: how long at most, and what says whether they have hung up."""

    patience_ms: int
    is_gone: Callable[[], bool]


class Others:
    """What the gateway tells of the service's other processes each time that it asks this one for its health."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._since_s: float | None = None

    def note(self, *, are_ready: bool) -> None:
        """Note whether there are others that are ready."""
        if not are_ready:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = self._now_s()

    @property
    def are_reliable(self) -> bool:
        """Say whether there have been others that are ready for a while, without a break."""
        return self._since_s is not None and self._now_s() - self._since_s > OTHERS_READY_S


class Web:
    """What routes need: `ask` and `find`, for any thread."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self._settings = settings
        self._service = machine.service
        self._partitions = partitions_of(machine.service, settings.topology)
        self._codec = Codec(machine)
        self._calls: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._seats = threading.Semaphore(settings.threads - HEALTH_THREADS)
        self._loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._loop_watch = LoopWatch(self._loop)
        self._started = threading.Event()
        self.others = Others()

    def start(self) -> None:
        """Start the background thread, and return when it can take requests."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        self._started.wait()
        self._loop_watch.start()
        atexit.register(self._stop)

    def _stop(self) -> None:
        """End the background thread before the interpreter ends: uvloop, still running, would crash (SIGSEGV)."""
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(STOP_TIMEOUT_S)

    def ask(self, entity_id: str, asker: Asker, command: Message, listener: Listener) -> Outcome:
        """Return the command's outcome; raise OutcomeUnknown when nobody waits for it any more."""
        partition = partition_of(self._service, entity_id, self._settings.topology)
        box: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        tell = box.put
        try:
            return self._wait(box, lambda: self._requests.ask(partition, asker, command, tell), listener)
        except OutcomeUnknown:
            self._call(lambda: self._requests.forget(asker, tell))
            raise

    def find(self, kind: type[E], entity_id: str, listener: Listener) -> E | None:
        """Return the entity as it is after everything that anybody was told before this call; waits as `ask` does."""
        partition = partition_of(self._service, entity_id, self._settings.topology)
        box: queue.SimpleQueue[Entity | None] = queue.SimpleQueue()
        give = box.put
        try:
            read = partial(self._requests.read, partition, key(kind, entity_id), give)
            entity = self._wait(box, read, listener)
        except OutcomeUnknown:
            self._call(lambda: self._requests.forget_read(partition, give))
            raise
        assert entity is None or isinstance(entity, kind)
        return entity

    def asker(self, request_id: str, fingerprint: int, *, is_client_key: bool) -> Asker:
        """Return who asks: a request that this process waits for."""
        return Asker(request_id, fingerprint, self._requests.web_id, is_client_key)

    @property
    def is_ready(self) -> bool:
        """Say whether requests can be served: not stopping, loop turning, every partition's log and store heard."""
        return self._silent_s < UNHEARD_READY_S and self._loop_watch.is_answering and not draining.is_set()

    @property
    def is_cut_off(self) -> bool:
        """Say whether log or store are silent to this process, and not to others: they should take what waits here."""
        return self._silent_s > UNHEARD_READY_S and self.others.are_reliable and not draining.is_set()

    @property
    def _silent_s(self) -> float:
        return time.time() - min(self._requests.heard_s(name) for name in self._partitions)

    # --- threads

    def _wait(self, box: queue.SimpleQueue[T], call: Callable[[], None], listener: Listener) -> T:
        if not self._seats.acquire(blocking=False):
            raise TooBusy
        self._call(call)
        try:
            return taken(box, listener)
        finally:
            self._seats.release()

    def _call(self, call: Callable[[], None]) -> None:
        """Have the loop make the call; one wake-up serves all calls that have come until it runs."""
        self._calls.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._make_calls)

    def _make_calls(self) -> None:
        self._scheduled = False
        while self._calls:
            self._calls.popleft()()

    # --- the background thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(crash_on_error)
        self._serving = self._loop.create_task(self._serve())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._serving)
        except ConfigError as why:
            logger.critical("cannot start", why=str(why))
            os._exit(CANNOT_BOOT)

    async def _serve(self) -> None:
        web_id = f"{os.uname().nodename}-{os.getpid()}-{uuid4().hex[:8]}"
        network = Network(
            publisher=Publisher(Producer(self._settings)),
            ends=Ends(self._settings),
            store=Store(self._settings),
            replies=Replies(self._settings, web_id),
        )
        self._requests = RequestReply(web_id, self._codec, network)
        self._started.set()
        await wait_for_log(self._settings)
        await asyncio.gather(*(spawn(nurse(name, work)) for name, work in self._work().items()))

    def _work(self) -> dict[str, Work]:
        takers = {f"replies of {name}": partial(self._requests.take_replies, name) for name in self._partitions}
        watchers = {f"watch of {name}": partial(self._requests.watch, name) for name in self._partitions}
        return {**takers, **watchers, "sweep": self._requests.sweep}


def taken(box: queue.SimpleQueue[T], listener: Listener) -> T:
    """Return what comes into the box; raise OutcomeUnknown when patience is over, or nobody listens any more."""
    deadline = time.monotonic() + listener.patience_ms / 1000
    while True:
        left_s = max(deadline - time.monotonic(), 0.0)
        try:
            return box.get(timeout=min(left_s, LISTENS_S))
        except queue.Empty:
            if left_s <= LISTENS_S or listener.is_gone():
                raise OutcomeUnknown from None
