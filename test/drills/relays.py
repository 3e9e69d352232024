"""The profile `net`: every connection to a broker or a Redis node passes a relay, which knows who speaks to whom.

    system = RelayedSystem("net")
    with system.relayed():
        system.up()
        with system.network.cut(ways(["order-web-0"], ["kafka-1"]), resets=False):
            ...

Only what passes Kafka's and Redis' ports can be cut; the gateway and the drill's own questions never are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import relay
import uvloop

from local import preflight
from local.profiles import Profile
from local.system import System

ANSWER_TIMEOUT_S = 30.0
NOBODY = ""
"""Who is no process of the system."""

Caller = tuple[int, int]
"""A connection, as nobody else has it: from which port, to which port."""

Ways = frozenset[tuple[str, str]]
"""From whom to whom nothing gets through; both are names as in `make status`."""


def ways(speakers: Iterable[str], listeners: Iterable[str]) -> Ways:
    """Return the ways from each of the first to each of the second."""
    return frozenset((speaker, listener) for speaker, listener in product(speakers, listeners) if speaker != listener)


class RelayedSystem(System):
    """A system whose brokers and Redis nodes are found at relays; they live in this process."""

    network: Network

    @contextmanager
    def relayed(self) -> Iterator[None]:
        """Relay meanwhile: without it nobody finds anybody."""
        for port in self.profile.data_ports:
            preflight.check_port(port)
        self.network = Network(self)
        with self.network.running():
            yield


class Network:
    """All relays of a system, in a thread with an event loop of its own."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._loop = uvloop.new_event_loop()
        self._cut: Ways = frozenset()
        self._slow: tuple[str, float] = (NOBODY, 0.0)
        self._names: dict[relay.Connection, str] = {}
        self._asking = asyncio.Lock()
        self._relays = list(_relays(self, system.profile))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Relay meanwhile."""
        thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        thread.start()
        try:
            self._stack = AsyncExitStack()
            self._do(self._open())
            yield
        finally:
            self._do(self._stack.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    @contextmanager
    def cut(self, cut: Ways, *, resets: bool) -> Iterator[None]:
        """Let nothing through on these ways.

        Afterwards what was held up arrives, or, with `resets`, what was cut is broken, as a network does that has
        forgotten its connections.
        """
        self._do(self._begin(cut))
        try:
            yield
        finally:
            self._do(self._heal(resets=resets))

    @contextmanager
    def slow(self, name: str, delay_s: float) -> Iterator[None]:
        """Let everything that is said to a process arrive so much later."""
        self._do(self._delay(name, delay_s))
        try:
            yield
        finally:
            self._do(self._delay(NOBODY, 0.0))

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(ANSWER_TIMEOUT_S)

    # In the thread

    async def _open(self) -> None:
        self._healed = asyncio.Event()
        self._healed.set()
        for one in self._relays:
            await self._stack.enter_async_context(relay.relaying(one))

    async def _begin(self, cut: Ways) -> None:
        await self.name_callers()
        self._healed.clear()
        self._cut = cut
        await self.name_callers()
        self._hold()

    async def _heal(self, *, resets: bool) -> None:
        cut = [connection for one in self._relays for connection in one.connections if self._is_cut(one, connection)]
        self._cut = frozenset()
        self._hold()
        self._healed.set()
        for connection in cut if resets else ():
            connection.abort()

    def _hold(self) -> None:
        for one in self._relays:
            for connection in one.connections:
                connection.hold(**self.holds(one, connection))

    async def _delay(self, name: str, delay_s: float) -> None:
        self._slow = (name, delay_s)
        for one in self._relays:
            for connection in one.connections:
                self.delay(one, connection)

    # What relays ask

    async def joined(self, one: _NamedRelay, connection: relay.Connection) -> None:
        """Return when a new connection can be made: as long as one way is cut, it cannot."""
        self.delay(one, connection)
        while not self._healed.is_set():
            await self.name_callers()
            if not self._is_cut(one, connection):
                return
            await self._healed.wait()

    def delay(self, one: _NamedRelay, connection: relay.Connection) -> None:
        """Delay a connection's requests as much as its callee's are at present."""
        name, delay_s = self._slow
        connection.requests.delay_s = delay_s if one.callee == name and one.is_for_clients else 0.0

    def holds(self, one: _NamedRelay, connection: relay.Connection) -> dict[str, bool]:
        """Return which way of a connection is cut."""
        caller = self._names.get(connection, NOBODY)
        return {"requests": (caller, one.callee) in self._cut, "answers": (one.callee, caller) in self._cut}

    def _is_cut(self, one: _NamedRelay, connection: relay.Connection) -> bool:
        return any(self.holds(one, connection).values())

    async def name_callers(self) -> None:
        """Find out whose each connection is; once, whoever asks meanwhile."""
        async with self._asking:
            connections = {connection for one in self._relays for connection in one.connections}
            self._names = {known: name for known, name in self._names.items() if known in connections}
            unnamed = connections - self._names.keys()
            if unnamed:
                names = await asyncio.to_thread(owners, self._system)
                self._names |= {connection: names.get(connection.caller, NOBODY) for connection in unnamed}


class _NamedRelay(relay.Relay):
    """One place where a broker or a Redis node, `callee`, is found: by clients, or by its peers."""

    def __init__(self, network: Network, callee: str, ports: tuple[int, int], *, is_for_clients: bool) -> None:
        super().__init__(*ports)
        self.callee = callee
        self.is_for_clients = is_for_clients
        self._network = network

    async def admit(self, connection: relay.Connection) -> bool:
        """Return True, once nothing is between the two."""
        await self._network.joined(self, connection)
        return True


def _relays(network: Network, profile: Profile) -> Iterator[_NamedRelay]:
    """Yield one for every place where somebody is found."""
    kinds = {
        "kafka": (profile.kafka_ports, profile.controller_ports),
        "redis": (profile.redis_ports, profile.redis_bus_ports),
    }
    for kind, (client_ports, peer_ports) in kinds.items():
        for node, port in enumerate(client_ports + peer_ports):
            callee, ports = f"{kind}-{node % len(client_ports)}", (port + profile.listen_offset, port)
            yield _NamedRelay(network, callee, ports, is_for_clients=port in client_ports)


# --- who has a port --------------------------------------------------------------------------------------------------


def owners(system: System) -> dict[Caller, str]:
    """Return which process of the system has which end of a connection, at this moment."""
    callers = _callers()
    pids = {name: int(process["pid"]) for name, process in system.supervision.processes().items()}
    return {
        callers[inode]: name
        for name, pid in pids.items()
        for one in _family(pid)
        for inode in _sockets(one)
        if inode in callers
    }


def _callers() -> dict[int, Caller]:
    """Return the ports of every TCP connection, the near one first, by the inode of the socket.

    Columns 1, 2 (address:port, in hexadecimal) and 9 of the kernel's list.
    """
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {int(row[9]): (_port(row[1]), _port(row[2])) for row in rows}


def _port(address: str) -> int:
    return int(address.partition(":")[2], 16)


def _family(pid: int) -> list[int]:
    """Return a process and its children: gunicorn's worker is one."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *map(int, children)]


def _sockets(pid: int) -> Iterator[int]:
    """Yield the inodes of a process' sockets; what is closed meanwhile, or has ended, has none."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield int(target[8:-1])
