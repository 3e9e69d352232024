"""The drills' network: who speaks to whom is known, and only what is meant is cut.

This process is order-web-0 here; two sockets of its own stand for brokers.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drills.relays import Network, Ways, owners, ways

from local import broker, redis_cluster
from local.profiles import HOST, PROFILES
from local.system import System

PROFILE = replace(PROFILES["net"], name="sketch", port_offset=21_000)
FOREVER_S = 10.0
A_MOMENT_S = 0.1
WEB, BROKER = "order-web-0", "kafka-0"
SAID, HEARD = ways([WEB], [BROKER]), ways([BROKER], [WEB])


def a_system(pid: int) -> System:
    supervision = SimpleNamespace(processes=lambda: {WEB: {"pid": pid}, "stock-web-0": {"pid": 0}})
    return cast("System", SimpleNamespace(profile=PROFILE, supervision=supervision))


class Call:
    """A connection to a broker, seen from both sides."""

    def __init__(self, broker: socket.socket, node: int) -> None:
        self.near = socket.create_connection((HOST, PROFILE.kafka_ports[node]), FOREVER_S)
        self.far, _ = broker.accept()
        self.far.settimeout(FOREVER_S)

    def carries(self) -> tuple[bool, bool]:
        """Tell whether requests, and answers, get through now."""
        return passes(self.near, self.far), passes(self.far, self.near)


def passes(speaker: socket.socket, listener: socket.socket) -> bool:
    speaker.sendall(b"x")
    listener.settimeout(A_MOMENT_S)
    try:
        return listener.recv(1) == b"x"
    except TimeoutError:
        return False
    finally:
        listener.settimeout(FOREVER_S)


@pytest.fixture
def brokers() -> Iterator[list[socket.socket]]:
    listening = [socket.create_server((HOST, port + PROFILE.listen_offset)) for port in PROFILE.kafka_ports]
    for each in listening:
        each.settimeout(FOREVER_S)
    yield listening
    for each in listening:
        each.close()


@pytest.fixture
def network(brokers: list[socket.socket]) -> Iterator[Network]:
    del brokers
    network = Network(a_system(os.getpid()))
    with network.running():
        yield network


def test_who_listens_elsewhere_says_where_it_is_found() -> None:
    port, bus_port = PROFILE.redis_ports[1], PROFILE.redis_bus_ports[1]
    settings = redis_cluster.settings(PROFILE, 1)
    assert f"\nport {port + 300}\n" in f"\n{settings}"
    assert f"\ncluster-announce-port {port}\ncluster-announce-bus-port {bus_port}\n" in settings

    settings = broker.properties(PROFILE, 1)
    found = f"PLAINTEXT://{HOST}:{PROFILE.kafka_ports[1]},CONTROLLER://{HOST}:{PROFILE.controller_ports[1]}"
    assert f"advertised.listeners={found}\n" in settings
    assert f"1@{HOST}:{PROFILE.controller_ports[1]}," in settings
    assert f"listeners=PLAINTEXT://{HOST}:{PROFILE.kafka_ports[1] + 300}," in settings


def test_between_two_lists_are_all_pairs_but_those_of_one_with_itself() -> None:
    assert ways(["a", "b"], ["b", "c"]) == {("a", "b"), ("a", "c"), ("b", "c")}


@pytest.mark.parametrize(
    ("cut", "carried"), [(SAID, (False, True)), (HEARD, (True, False)), (SAID | HEARD, (False, False))]
)
def test_what_is_cut_is_held_until_it_is_healed_and_nothing_else_is(
    network: Network, brokers: list[socket.socket], cut: Ways, carried: tuple[bool, bool]
) -> None:
    call, other = Call(brokers[0], 0), Call(brokers[1], 1)
    with network.cut(cut, resets=False):
        assert call.carries() == carried
        assert other.carries() == (True, True)

    assert call.carries() == (True, True)


def test_what_was_cut_may_be_broken_afterwards_and_nothing_else_is(
    network: Network, brokers: list[socket.socket]
) -> None:
    call, other = Call(brokers[0], 0), Call(brokers[1], 1)
    with network.cut(SAID, resets=True):
        pass

    assert call.near.recv(1) == b""
    assert call.far.recv(1) == b""
    assert other.carries() == (True, True)


@pytest.mark.parametrize("cut", [SAID, HEARD])
def test_a_new_connection_between_those_who_are_cut_off_is_made_when_it_is_healed(
    network: Network, brokers: list[socket.socket], cut: Ways
) -> None:
    with network.cut(cut, resets=False):
        near = socket.create_connection((HOST, PROFILE.kafka_ports[0]), FOREVER_S)
        brokers[0].settimeout(A_MOMENT_S)
        with pytest.raises(TimeoutError):
            brokers[0].accept()
        assert Call(brokers[1], 1).carries() == (True, True)

    brokers[0].settimeout(FOREVER_S)
    far, _ = brokers[0].accept()
    assert passes(near, far)


def test_somebody_else_is_not_cut_off(brokers: list[socket.socket]) -> None:
    network = Network(a_system(pid=0))
    with network.running(), network.cut(SAID | HEARD, resets=False):
        assert Call(brokers[0], 0).carries() == (True, True)


def test_who_is_slow_hears_later(network: Network, brokers: list[socket.socket]) -> None:
    call = Call(brokers[0], 0)
    with network.slow(BROKER, 0.2):
        began = time.monotonic()
        call.near.sendall(b"x")
        assert call.far.recv(1) == b"x"
        assert time.monotonic() - began >= 0.2

    assert passes(call.near, call.far)


def test_a_connection_of_a_child_is_its_parents(brokers: list[socket.socket]) -> None:
    port = PROFILE.kafka_ports[0] + PROFILE.listen_offset
    call = f"import socket; s = socket.create_connection(('{HOST}', {port})); input()"
    with a_child(call), closing(brokers[0].accept()[0]) as far:
        assert owners(a_system(os.getpid()))[far.getpeername()[1], port] == WEB


@contextmanager
def a_child(code: str) -> Iterator[subprocess.Popen[Any]]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()
