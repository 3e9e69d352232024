"""The gateway in front of servers that say what the test wants: who gets requests, and who is refused at once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
from drills.wire import Answer, Cut, Wire

from local import gateway
from local.profiles import HOST, PROFILES, SERVICES, Profile

PLACES = 2
QUEUE_MAX = 4
BUSY_QUEUE_MAX = 2
WELL_S = 20.0
REFUSED_S = 1.0
NOTICED_S = 1.5
"""Each server is asked every 500 ms."""


class FakeWeb:
    """A web process: `health` is what it says of itself, None for nothing at all; held calls wait for `go`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.health: int | None = 200
        self.go = asyncio.Event()
        self.ready_servers = b""
        self.state = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the gateway hangs up."""
        while head := await _head(reader):
            path = head.split()[1].decode()
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"x-ready-servers: "):
                    self.ready_servers = line.removeprefix(b"x-ready-servers: ")
                if line.startswith(b"x-haproxy-server-state: "):
                    self.state = line.removeprefix(b"x-haproxy-server-state: ").split(b";")[0].split()[0]
            if self.health is None:
                break
            if path.startswith("/held"):
                await self.go.wait()
            status = self.health if path == "/health/ready" else 200
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(self.name)}\r\n\r\n{self.name}".encode())
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (EOFError, OSError):
        return b""


class Scene:
    """Two fake order web processes behind a gateway; they stand in for stock and payment as well."""

    def __init__(self, webs: list[FakeWeb], haproxy: Process, wire: Wire, stats: Wire) -> None:
        self.webs = webs
        self.haproxy = haproxy
        self.wire = wire
        self.stats = stats

    async def served_by(self, count: int = 12) -> Counter[str]:
        """Return who answers so many calls."""
        answers = [await self.wire.ask("GET", "/orders/find/x") for _ in range(count)]
        return Counter(answer.body.decode() if answer.status == 200 else str(answer.status) for answer in answers)

    async def until(self, condition: Callable[[Counter[str]], bool]) -> None:
        """Ask until what comes is as it should be: the gateway notices within two checks."""
        async with asyncio.timeout(WELL_S):
            while not condition(await self.served_by()):  # noqa: ASYNC110 - there is no event: HAProxy looks when it likes
                await asyncio.sleep(0.1)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    profile = a_profile()
    webs = [FakeWeb(f"web {copy}") for copy in range(profile.copies)]
    servers = [
        await asyncio.start_server(web.serve, HOST, profile.web_ports(service)[copy])
        for service in SERVICES
        for copy, web in enumerate(webs)
    ]
    haproxy = await a_gateway(profile, folder)
    wires = [Wire(HOST, port) for port in (profile.gateway_port, profile.stats_port)]
    found = Scene(webs, haproxy, *wires)
    try:
        await listening(found)
        yield found
    finally:
        with suppress(ProcessLookupError):
            haproxy.kill()
        await haproxy.wait()
        for wire in wires:
            wire.close()
        for server in servers:
            server.close()


def a_profile() -> Profile:
    """Return one of two copies whose ports nobody has."""
    for offset in range(15_000, 23_000, 500):
        profile = replace(PROFILES["ha"], name="fake", port_offset=offset)
        if all(map(_is_free, profile.service_ports)):
            return profile
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


async def a_gateway(profile: Profile, folder: Path) -> Process:
    """Start HAProxy with our configuration and room for few."""
    servers = folder / "servers.cfg"
    servers.write_text(gateway.servers(profile))
    few = {
        "GATEWAY_SERVER_MAXCONN": str(PLACES),
        "GATEWAY_QUEUE_MAX": str(QUEUE_MAX),
        "GATEWAY_BUSY_QUEUE_MAX": str(BUSY_QUEUE_MAX),
    }
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", "haproxy", "-db", "-f", str(gateway.CONFIG), "-f", str(servers)),
        env=os.environ | gateway.environment(profile) | few,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def listening(found: Scene) -> None:
    async with asyncio.timeout(WELL_S):
        while True:
            try:
                return await found.until(lambda served: served.keys() == {"web 0", "web 1"})
            except Cut:
                await asyncio.sleep(0.1)


async def ready_status(found: Scene) -> int:
    return (await found.stats.ask("GET", "/health/ready")).status


async def test_who_is_not_ready_gets_no_requests_while_another_is(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        found.webs[0].health = 503

        await found.until(lambda served: served.keys() == {"web 1"})

        assert await found.served_by(50) == {"web 1": 50}


async def test_who_says_that_he_alone_is_cut_off_has_his_requests_given_to_others(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        cut_off, other = found.webs
        other.health = 503
        await found.until(lambda served: served.keys() == {cut_off.name})
        held = asyncio.create_task(found.wire.ask("GET", "/orders/held"))
        await asyncio.sleep(NOTICED_S)
        assert (cut_off.ready_servers, cut_off.state, other.state) == (b"1", b"up", b"nolb")
        other.health = 200
        other.go.set()
        await asyncio.sleep(NOTICED_S)
        assert cut_off.ready_servers == b"2"

        cut_off.health = 500

        assert (await held).body.decode() == other.name
        await asyncio.sleep(NOTICED_S)
        assert (cut_off.ready_servers, cut_off.state) == (b"1", b"down")
        assert await found.served_by(50) == {other.name: 50}


async def test_when_none_is_ready_all_that_are_alive_get_requests_and_the_gateway_is_not_ready(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        assert await ready_status(found) == 200
        for web in found.webs:
            web.health = 503
        await asyncio.sleep(NOTICED_S)
        assert await ready_status(found) == 503

        assert (await found.served_by(60)).keys() == {"web 0", "web 1"}


async def test_when_none_is_ready_and_one_is_dead_the_other_gets_all_requests(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        found.webs[0].health = None
        await asyncio.sleep(NOTICED_S)
        found.webs[1].health = 503
        await asyncio.sleep(NOTICED_S)

        assert await found.served_by(50) == {"web 1": 50}


async def test_as_soon_as_one_is_ready_again_it_gets_all_requests(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        for web in found.webs:
            web.health = 503
        await asyncio.sleep(NOTICED_S)
        found.webs[1].health = 200

        await found.until(lambda served: served.keys() == {"web 1"})


async def test_more_than_may_wait_are_refused_at_once_and_told_when_to_come_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        room = PLACES * len(found.webs) + QUEUE_MAX

        assert await crowded(found, room + 7) == {200: room, 503: 7}


async def test_once_somebody_was_refused_fewer_may_wait(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        places = PLACES * len(found.webs)
        assert await crowded(found, places + QUEUE_MAX + 1) == {200: places + QUEUE_MAX, 503: 1}

        assert await crowded(found, places + BUSY_QUEUE_MAX + 5) == {200: places + BUSY_QUEUE_MAX, 503: 5}


async def test_as_long_as_nobody_was_refused_all_may_wait_that_there_is_room_for(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        room = PLACES * len(found.webs) + QUEUE_MAX

        for _ in range(3):
            assert await crowded(found, room) == {200: room}


async def crowded(found: Scene, count: int) -> Counter[int]:
    """Return the statuses of so many calls at once; those that are let in are held until the others are refused."""
    for web in found.webs:
        web.go.clear()
    calls = [asyncio.ensure_future(found.wire.ask("POST", "/orders/held")) for _ in range(count)]
    await asyncio.wait(calls, timeout=REFUSED_S)
    refused = [call.result() for call in calls if call.done()]
    for web in found.webs:
        web.go.set()
    assert all(map(is_refusal, refused))
    return Counter(answer.status for answer in await asyncio.gather(*calls))


def is_refusal(answer: Answer) -> bool:
    """Say whether this is a 503 as api.md has it."""
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    return bool(msgspec.json.decode(answer.body)["status"] == 503)


async def test_a_kept_connection_is_answered_once_more_while_the_gateway_stops(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        await found.wire.ask("GET", "/orders/find/x")
        found.haproxy.send_signal(signal.SIGUSR1)
        await asyncio.sleep(2 * NOTICED_S)

        answer = await found.wire.ask("GET", "/orders/find/x")

        assert (answer.status, answer.headers["connection"]) == (200, "close")
