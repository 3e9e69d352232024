"""gateway/servers.cfg, with a DNS server and web processes that are stubs: who is asked as pods come and go."""

import http.server
import os
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

GATEWAY = Path(__file__).resolve().parents[2] / "gateway"
BIND, STATS, DNS_PORT = 27800, 27804, 27853
WEB_PORT = 5001
NAMESPACE = ".shop.svc.cluster.local"
PODS, SERVICE = f"order-web{NAMESPACE}", f"order{NAMESPACE}"
ONE, TWO, THREE, ANY_READY = "127.0.4.1", "127.0.4.2", "127.0.4.3", "127.0.4.9"
TIMEOUT_S = 20


class Names:
    """Answers A queries; a name that is not known does not exist."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", DNS_PORT))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(4096)
            self._socket.sendto(self._answer(query), asker)

    def _answer(self, query: bytes) -> bytes:
        labels, place = [], 12
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += query[place] + 1
        (kind,) = struct.unpack(">H", query[place + 1 : place + 3])
        name = ".".join(labels)
        addresses = self.known.get(name, []) if kind == 1 else []
        flags = 0x8180 if name in self.known else 0x8183
        header = query[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0)
        records = (b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(address) for address in addresses)
        return header + query[12 : place + 5] + b"".join(records)


class Web(http.server.ThreadingHTTPServer):
    """A web process: says its address."""

    daemon_threads = True
    is_ready = True

    def __init__(self, address: str) -> None:
        super().__init__((address, WEB_PORT), Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A health check hangs up early."""


class Answers(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        body = str(self.server.server_address[0]).encode()
        self.send_response(200 if self.server.is_ready or self.path != "/health/ready" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Cluster:
    def __init__(self) -> None:
        self._names = Names()
        self._webs: dict[str, Web] = {}

    def publish(self, *pods: str, service: str = "") -> None:
        self._names.known = {PODS: list(pods), SERVICE: [service] if service else []}

    def forget_names(self) -> None:
        self._names.known = {}

    def start(self, *addresses: str) -> None:
        self._webs |= {address: Web(address) for address in addresses}

    def ready(self, *addresses: str) -> None:
        """Make these ready, and the others not."""
        for address, web in self._webs.items():
            web.is_ready = address in addresses

    def kill(self, *addresses: str) -> None:
        for address in addresses or tuple(self._webs):
            web = self._webs.pop(address)
            web.shutdown()
            web.server_close()

    def asked(self) -> set[str]:
        """Return who answers six requests."""
        return {self._ask() for _ in range(6)}

    def wait_for(self, *addresses: str) -> None:
        """Wait until these are asked, and nobody else."""
        deadline = time.monotonic() + TIMEOUT_S
        while (asked := self.asked()) != set(addresses):
            assert time.monotonic() < deadline, asked
            time.sleep(0.1)

    def _ask(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{BIND}/orders/find/1", timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return str(error.code)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster()
    servers = (GATEWAY / "servers.cfg").read_text()
    assert "parse-resolv-conf" in servers
    path = tmp_path_factory.mktemp("gateway") / "servers.cfg"
    path.write_text(servers.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{DNS_PORT}"))
    environment = os.environ | {
        "GATEWAY_BIND": f"127.0.0.1:{BIND}",
        "GATEWAY_STATS_BIND": f"127.0.0.1:{STATS}",
        "GATEWAY_PODS": f"-web{NAMESPACE}",
        "GATEWAY_SERVICES": NAMESPACE,
    }
    command = ["haproxy", "-db", "-f", str(GATEWAY / "haproxy.cfg"), "-f", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for_port()
        yield cluster
    finally:
        process.kill()
        process.wait()
        cluster.kill()


def wait_for_port() -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", BIND), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Two pods, and a Service that leads to a third one."""
    running.start(ONE, TWO, ANY_READY)
    running.publish(ONE, TWO, service=ANY_READY)
    running.wait_for(ONE, TWO)
    yield running
    running.kill()


def test_a_pod_that_appears_is_asked_and_one_that_disappears_is_not(cluster: Cluster) -> None:
    cluster.start(THREE)
    cluster.publish(TWO, THREE, service=ANY_READY)
    cluster.wait_for(TWO, THREE)


def test_a_dead_pod_fails_nobody(cluster: Cluster) -> None:
    cluster.kill(ONE)
    assert cluster.asked() <= {TWO, ANY_READY}
    cluster.wait_for(TWO)


def test_the_service_leads_to_pods_that_dns_does_not_show_yet(cluster: Cluster) -> None:
    cluster.kill(ONE, TWO)
    cluster.wait_for(ANY_READY)


def test_one_that_is_not_ready_is_not_asked_while_anybody_is(cluster: Cluster) -> None:
    cluster.ready(TWO, ANY_READY)
    cluster.wait_for(TWO)
    cluster.ready(ANY_READY)
    cluster.wait_for(ANY_READY)


def test_when_nobody_is_ready_those_that_are_alive_are_asked(cluster: Cluster) -> None:
    cluster.ready()
    time.sleep(2)
    assert cluster.asked() <= {ONE, TWO, ANY_READY}


def test_a_name_that_is_gone_for_a_moment_changes_nothing(cluster: Cluster) -> None:
    cluster.forget_names()
    time.sleep(3)
    assert cluster.asked() == {ONE, TWO}
