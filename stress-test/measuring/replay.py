"""Replay: how much faster than it was written a log is folded again, and how soon an emptied Redis is back.

`python -m measuring.replay <service> [snapshot]` folds as the service's snapshotter does, from the newest snapshot (or
the log's start) to where the store stands, takes a snapshot there if told to, and prints what that was, as JSON.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import requests
import uvloop
from prometheus_client import REGISTRY

from common import telemetry
from common.config import Settings, load
from common.decision import Machine
from common.fold import Record
from common.log import DeadLetterBox, Ends, Producer, Publisher, SnapshotTopics, Tail, inbox
from common.messages import partitions_of
from common.processor import World
from common.snapshot import Snapshots
from common.snapshotter import PAUSE_S, Snapshotter
from common.store import Store
from common.tasks import spare_garbage_collection
from local.profiles import HOST, SERVICES, Profile
from local.programs import service_environment
from local.redis_cluster import ask
from measuring import ROOT
from measuring.systems import System
from measuring.wrk import run_wrk

ENTITIES = 100_000
CONNECTIONS = 128
TAIL_S = 10
FOLD_TIMEOUT_S = 120
BACK_PATIENCE_S = 60
POLL_S = 0.05
LOOK_S = 0.005
BEGINNING_S = 0.5
Attempt = Callable[[], requests.Response]
READS = {"order": "/orders/find/0", "stock": "/stock/find/0", "payment": "/payment/find_user/0"}


@dataclass
class Replayed:
    """One service.  Rates are messages per second: written live, folded without outputs, folded again by its owner.

    `records` of the tail came behind the snapshot.  `back_s` is from the flush to the first read that succeeded.
    """

    service: str
    records: int
    live: float
    folded: float
    owner: float
    back_s: float

    @property
    def times_live(self) -> float:
        """Return how many times faster than live the fold without outputs is."""
        return self.folded / self.live


@dataclass
class Recovery:
    """All services; `checkout_s` is from the flush to the first checkout that succeeded."""

    services: list[Replayed] = field(default_factory=list)
    checkout_s: float = 0.0

    @property
    def back_s(self) -> float:
        """Return after how long everything was back."""
        return max(self.checkout_s, *(each.back_s for each in self.services))

    @property
    def times_live(self) -> float:
        """Return it of the slowest service."""
        return min(each.times_live for each in self.services)


def recover(system: System, profile: Profile) -> Recovery:
    """Take snapshots, check out behind them, fold that once more; then empty Redis, and wait until all is back.

    1. 100,000 entities a service, and a snapshot of each partition
    2. a run at 128 connections: the tail, at the live rate; the system's own snapshotters stand still from here on
    3. the same messages, folded without outputs
    4. FLUSHALL on all nodes; reads of each service and checkouts, again and again until one succeeds
    """
    system.supply.order_count = ENTITIES
    for path in (f"/stock/batch_init/{ENTITIES}/{ENTITIES}/1", f"/payment/batch_init/{ENTITIES}/{ENTITIES}"):
        system.supply.post(path)
    system.supply.post(f"/orders/batch_init/{ENTITIES}/{ENTITIES}/{ENTITIES}/1")
    fold_all(profile, "snapshot")
    with standing_still(system):
        return recover_tail(system, profile)


@contextmanager
def standing_still(system: System) -> Iterator[None]:
    """Stop the system's snapshotters for a while: they would take snapshots of the tail that is to be replayed."""
    pids = [pid for group, pids in system.groups().items() if group.endswith("-snapshotter") for pid in pids]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def recover_tail(system: System, profile: Profile) -> Recovery:
    """Make the tail, fold it once more, empty Redis."""
    before = messages(profile)
    result = run_wrk(system.gateway_url, CONNECTIONS, TAIL_S, range(ENTITIES - 1))
    seconds = result.duration_us / 1e6
    settled = settle(profile)
    live = {service: (settled[service] - before[service]) / seconds for service in SERVICES}
    folded = fold_all(profile)
    owners, back_s, checkout_s = empty(system, profile)
    services = [
        Replayed(
            service=service,
            records=int(folded[service]["records"]),
            live=live[service],
            folded=rate(folded[service]),
            owner=owners[service],
            back_s=back_s[service],
        )
        for service in SERVICES
    ]
    return Recovery(services, checkout_s)


def rate(folded: Mapping[str, float]) -> float:
    """Return messages per second."""
    return folded["messages"] / folded["seconds"]


def fold_all(profile: Profile, *words: str) -> dict[str, dict[str, float]]:
    """Fold each service once more, one after the other."""
    return {service: fold(profile, service, *words) for service in SERVICES}


def fold(profile: Profile, service: str, *words: str) -> dict[str, float]:
    """Run this module for `service`."""
    finished = subprocess.run(
        [sys.executable, "-m", "measuring.replay", service, *words],
        cwd=ROOT,
        env={**service_environment(profile), "PYTHONPATH": f"{ROOT}:{ROOT / 'stress-test'}"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=FOLD_TIMEOUT_S,
    )
    folded: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return folded


def messages(profile: Profile) -> dict[str, float]:
    """Return how many messages the processors of each service have folded so far."""
    return {service: sum(map(folded_by, profile.processor_ports(service))) for service in SERVICES}


def folded_by(port: int) -> float:
    """Return it of the processor whose metrics are at `port`."""
    lines = requests.get(f"http://{HOST}:{port}/metrics", timeout=5).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("checkout_batch_messages_sum"))


def settle(profile: Profile) -> dict[str, float]:
    """Wait until nothing is folded any more; return how many messages were."""
    counted = messages(profile)
    while True:
        time.sleep(1)
        before, counted = counted, messages(profile)
        if counted == before:
            return counted


def empty(system: System, profile: Profile) -> tuple[dict[str, float], dict[str, float], float]:
    """Empty Redis; return the owners' rates of replay, and after how long reads and a checkout succeeded."""
    watches = {service: Watch(profile, service) for service in SERVICES}
    for port in profile.redis_ports:
        ask(port, "FLUSHALL")
    for watch in watches.values():
        watch.start()
    back_s = all_back_s(attempts(system.gateway_url))
    for watch in watches.values():
        watch.stop()
    return {service: watch.rate for service, watch in watches.items()}, back_s, back_s.pop("checkout")


def attempts(url: str) -> dict[str, Attempt]:
    """Return a read of each service, and a checkout."""
    reads = {service: partial(requests.get, url + path, timeout=BACK_PATIENCE_S) for service, path in READS.items()}
    checkout = partial(requests.post, f"{url}/orders/checkout/{ENTITIES - 1}", timeout=BACK_PATIENCE_S)
    return {**reads, "checkout": checkout}


def all_back_s(calls: Mapping[str, Attempt]) -> dict[str, float]:
    """Make every call at once, again and again; return after how long each succeeded."""
    with ThreadPoolExecutor(len(calls)) as pool:
        back_s = dict(zip(calls, pool.map(partial(succeeds_after_s, time.monotonic()), calls.values()), strict=True))
    back = {name: seconds for name, seconds in back_s.items() if seconds is not None}
    if len(back) < len(calls):
        raise SystemExit(f"not a valid bench: {BACK_PATIENCE_S} s after Redis was emptied only {sorted(back)} are back")
    return back


def succeeds_after_s(since_s: float, call: Attempt) -> float | None:
    """Make a call until it succeeds; return how long after `since_s` that is, None when it takes too long."""
    while time.monotonic() - since_s < BACK_PATIENCE_S:
        with suppress(requests.RequestException):
            if call().ok:
                return time.monotonic() - since_s
        time.sleep(POLL_S)
    return None


class Watch(threading.Thread):
    """Looks how fast a service's processors fold, from the first new message to the last."""

    def __init__(self, profile: Profile, service: str) -> None:
        super().__init__(daemon=True)
        self._ports = profile.processor_ports(service)
        self._seen: list[tuple[float, float]] = []
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._is_over.wait(POLL_S):
            self._seen.append((time.monotonic(), sum(map(folded_by, self._ports))))

    def stop(self) -> None:
        """End it."""
        self._is_over.set()
        self.join()

    @property
    def rate(self) -> float:
        """Return messages per second; 0 when it was over between two looks."""
        moving = [seen for seen, after in zip(self._seen, self._seen[1:], strict=False) if after[1] > seen[1]]
        if not moving:
            return 0.0
        first, last = moving[0], self._seen[self._seen.index(moving[-1]) + 1]
        return (last[1] - first[1]) / (last[0] - first[0])


# --- the process that folds ------------------------------------------------------------------------------------------


class Counted(Tail):
    """A tail that knows how many records it brought since the last seek, and since when: loading is not folding."""

    records = 0
    since_s = 0.0

    def seek(self, offset: int) -> None:
        """Go on with the record at `offset`."""
        super().seek(offset)
        Counted.records, Counted.since_s = 0, 0.0

    async def poll(self, wait_s: float, records_max: int) -> list[Record]:
        """Return the next records."""
        found = await super().poll(wait_s, records_max)
        if found:
            Counted.since_s = Counted.since_s or time.monotonic()
        Counted.records += len(found)
        return found


async def fold_once(machine: Machine, settings: Settings, *, with_snapshot: bool) -> dict[str, float]:
    """Fold until every partition was compared with the store, and has a snapshot there if it is to have one."""
    producer, ends, store = Producer(settings), Ends(settings), Store(settings)
    started_s = time.time()
    world = World(
        tail=lambda partition: Counted(settings, inbox(partition), ends),
        publisher=Publisher(producer),
        store=store,
        dead_letters=DeadLetterBox(settings, machine.service, producer),
        snapshots=Snapshots(SnapshotTopics(settings, producer)),
        now_s=lambda: time.time() + (0 if time.time() - started_s < BEGINNING_S else PAUSE_S),
    )
    records_min = 1 if with_snapshot else sys.maxsize
    folding = asyncio.ensure_future(Snapshotter(machine, settings.topology, world, records_min).run())
    names = partitions_of(machine.service, settings.topology)
    await until("checkout_states_compared_total", names)
    seconds = time.monotonic() - Counted.since_s
    if with_snapshot:
        await until("checkout_snapshot_position", names)
    folding.cancel()
    await asyncio.gather(folding, return_exceptions=True)
    for each in (producer, ends, store):
        await each.close()
    folded = sum(seen("checkout_batch_messages_sum", name) for name in names)
    return {"records": Counted.records, "messages": folded, "seconds": seconds}


async def until(metric: str, names: list[str]) -> None:
    """Return when each of the partitions has it."""
    for name in names:
        while not seen(metric, name):  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(LOOK_S)


def seen(metric: str, partition: str) -> float:
    """Return a metric of this process, 0 while there is none."""
    return REGISTRY.get_sample_value(metric, {"partition": partition}) or 0.0


if __name__ == "__main__":
    telemetry.configure_logging("WARNING")
    spare_garbage_collection()
    MACHINE = import_module(f"{sys.argv[1]}.domain").MACHINE
    print(json.dumps(uvloop.run(fold_once(MACHINE, load(), with_snapshot="snapshot" in sys.argv))))
