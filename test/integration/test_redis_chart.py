"""The scripts of helm/redis-cluster, run as processes.  A pod's name and address are a line of a hosts file here."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.probe import until

from common import store
from common.config import Settings
from common.store import Store, StoreFailed

SCRIPTS = Path(__file__).resolve().parents[2] / "helm" / "redis-cluster" / "files"
PORT = "17379"
PASSWORD = 'redis "quoted" \\'
NAMES = tuple(f"shop-{number}.shop" for number in range(6))
PLACES = ("a", "a", "b", "b", "c", "c")
GETENT = '#!/bin/sh\nawk -v name="$2" \'$2 == name { print $1 }\' "$HOSTS"\n'


class Pods:
    """Six pods with a volume each.  Every start gives a pod a new address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts = folder / "hosts"
        self._hosts.touch()
        self._starts = 0
        self._addresses: dict[str, str] = {}
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        fake = folder / "bin" / "getent"
        fake.parent.mkdir()
        fake.write_text(GETENT)
        fake.chmod(0o755)

    def start(self, *names: str) -> None:
        for name in names:
            self._starts += 1
            self._addresses[name] = f"127.0.3.{self._starts}"
        self._hosts.write_text("".join(f"{address} {name}\n" for name, address in self._addresses.items()))
        for name in names:
            self.data(name).mkdir(parents=True, exist_ok=True)
            (self._folder / name / "run").mkdir(exist_ok=True)
            self._processes[name] = [self._run(name, "node.sh"), self._run(name, "heal.sh")]

    def kill(self, *names: str) -> None:
        for name in names:
            del self._addresses[name]
            for process in self._processes.pop(name):
                process.kill()
                process.wait()

    def abandon(self, name: str) -> list[subprocess.Popen[bytes]]:
        """Forget a pod whose processes go on; return these."""
        del self._addresses[name]
        return self._processes.pop(name)

    def heal(self, name: str, **settings: str) -> subprocess.Popen[bytes]:
        """Have one more heal.sh look after a pod, with settings of its own."""
        process = subprocess.Popen([SCRIPTS / "heal.sh"], env=self._environment(name) | settings)
        self._processes[name].append(process)
        return process

    def getaddrinfo(self, name: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        """Look a pod up as `socket.getaddrinfo` does; addresses are found as well."""
        address = self._addresses.get(name, name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))]

    def kill_all(self) -> None:
        self.kill(*self._processes)

    def empty(self, name: str) -> None:
        shutil.rmtree(self.data(name))

    def data(self, name: str) -> Path:
        return self._folder / name / "data"

    def create(self) -> str:
        return self._finish("create.sh", self._environment())

    def run(self, name: str, script: str) -> str:
        return self._finish(script, self._environment(name))

    def _finish(self, script: str, environment: dict[str, str]) -> str:
        done = subprocess.run([SCRIPTS / script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, name: str, *command: str, password: str = PASSWORD) -> str:
        address = self._addresses.get(name, "")
        question = ["redis-cli", "-h", address, "-p", PORT, *command]
        environment = self._environment() | {"REDISCLI_AUTH": password}
        done = subprocess.run(question, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def nodes(self, name: str) -> list[list[str]]:
        return [line.split() for line in self.ask(name, "CLUSTER", "NODES").splitlines()]

    def is_primary(self, name: str) -> bool:
        return self.ask(name, "ROLE").startswith("master")

    def primaries(self) -> set[str]:
        return {name for name in self._addresses if self.is_primary(name)}

    def pair_of(self, name: str) -> str:
        """Return the other name of the pair."""
        known = {line[0]: (line[1].partition(",")[2], line[3]) for line in self.nodes(name)}
        own, own_primary = next((node, primary) for node, (other, primary) in known.items() if other == name)
        return next(other for node, (other, primary) in known.items() if node == own_primary or primary == own)

    def is_whole(self) -> bool:
        """Tell whether every node answers, and sees six linked nodes with name and address, three pairs, all slots."""
        return all(self._sees_all(name) for name in NAMES)

    def _sees_all(self, name: str) -> bool:
        lines = self.nodes(name)
        places = {
            (line[1].partition(",")[2], line[1].split(":")[0]) for line in lines if re.match(r"connected", line[7])
        }
        well = places == set(self._addresses.items()) and not any("fail" in line[2] for line in lines)
        state = self.ask(name, "CLUSTER", "INFO")
        served = "cluster_state:ok" in state and "cluster_slots_ok:16384" in state
        followed = {line[3] for line in lines if "slave" in line[2]}
        role = self.ask(name, "ROLE").split()
        linked = "master" in role or "connected" in role
        return well and served and linked and len(lines) == len(NAMES) and len(followed) == len(NAMES) // 2

    def _run(self, name: str, script: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{name}-{script}.log").open("ab")
        return subprocess.Popen([SCRIPTS / script], env=self._environment(name), stdout=log, stderr=log)

    def _environment(self, name: str = "") -> dict[str, str]:
        own = {"PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}", "HOSTS": str(self._hosts)}
        own |= {"PEERS": " ".join(NAMES), "PORT": PORT, "REDISCLI_AUTH": PASSWORD, "NOBODY_TIMEOUT_S": "2"}
        if name:
            address = self._addresses[name]
            own |= {"SELF": name, "SELF_ADDRESS": address, "BIND": address, "PLACE": PLACES[NAMES.index(name)]}
            own |= {"DATA": str(self.data(name)), "RUN": str(self._folder / name / "run")}
        return own


def seconds_until(condition: Callable[[], bool], timeout_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + timeout_s, "not in time"
        time.sleep(0.2)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    pods = Pods(tmp_path_factory.mktemp("pods"))
    pods.start(*NAMES)
    try:
        pods.create()
        yield pods
    finally:
        pods.kill_all()


@pytest.fixture
def whole(pods: Pods) -> Pods:
    seconds_until(pods.is_whole, 20)
    return pods


def test_pairs_are_on_two_machines(whole: Pods) -> None:
    for name in NAMES:
        assert PLACES[NAMES.index(name)] != PLACES[NAMES.index(whole.pair_of(name))]


def test_creation_run_again_changes_nothing(whole: Pods) -> None:
    before = sorted(line[0] for line in whole.nodes(NAMES[0]))

    assert "exists" in whole.create()

    assert sorted(line[0] for line in whole.nodes(NAMES[0])) == before


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(whole: Pods) -> None:
    name = min(whole.primaries())
    pair = whole.pair_of(name)
    whole.kill(name)
    seconds_until(lambda: whole.is_primary(pair), 10)

    whole.start(name)

    seconds_until(whole.is_whole, 10)
    assert not whole.is_primary(name)


def test_all_that_come_back_with_new_addresses_at_once_find_each_other(whole: Pods) -> None:
    whole.kill_all()

    whole.start(*NAMES)

    assert seconds_until(whole.is_whole, 15) < 15


async def test_a_client_that_knows_the_names_finds_all_at_their_new_addresses(
    whole: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a rolling restart: a process was told nothing of a replica's new address while it needed none."""
    monkeypatch.setattr(store, "REPLACE_S", 3600.0)  # a new client would know no more, but the names
    monkeypatch.setattr(socket, "getaddrinfo", whole.getaddrinfo)
    nodes = ",".join(f"{name}:{PORT}" for name in NAMES)
    client = Store(Settings(kafka="nobody:1", redis=nodes, redis_password=PASSWORD))
    assert await client.read("stock-0", []) == (0, [])
    whole.kill_all()
    whole.start(*NAMES)
    seconds_until(whole.is_whole, 15)

    await until(lambda: answers(client), "the client has found them")

    await client.close()


async def answers(client: Store) -> bool:
    try:
        await client.read("stock-0", [])
    except StoreFailed:
        return False
    return True


def test_two_never_run_on_the_same_files(whole: Pods) -> None:
    """A forced delete starts the new pod while the old one may still run."""
    name = min(set(NAMES) - whole.primaries())
    old = whole.abandon(name)
    whole.start(name)
    time.sleep(3)
    assert not whole.ask(name, "PING")

    for process in old:
        process.kill()
        process.wait()

    seconds_until(whole.is_whole, 20)


def test_a_primary_that_stops_hands_over(whole: Pods) -> None:
    name = min(whole.primaries())
    pair = whole.pair_of(name)

    assert "handed over" in whole.run(name, "hand-over.sh")

    assert whole.is_primary(pair)
    assert not whole.is_primary(name)


def test_primaries_that_have_gathered_on_one_machine_are_spread(whole: Pods) -> None:
    """Two of three on a machine that is lost: the third alone cannot have them replaced."""
    for name in NAMES[:2]:
        if not whole.is_primary(name):
            whole.ask(name, "CLUSTER", "FAILOVER")
    seconds_until(lambda: whole.primaries() >= set(NAMES[:2]), 10)
    seconds_until(whole.is_whole, 10)

    healing = [whole.heal(name, SPREAD_LOOKS="3") for name in NAMES]

    try:
        seconds_until(lambda: {PLACES[NAMES.index(name)] for name in whole.primaries()} == set(PLACES), 20)
    finally:
        for process in healing:
            process.kill()
            process.wait()
    seconds_until(whole.is_whole, 10)


def test_an_emptied_primary_comes_back_as_a_replica_with_everything(whole: Pods) -> None:
    name = min(whole.primaries())
    pair = whole.pair_of(name)
    keys = [f"key{number}" for number in range(60)]
    mine = [key for key in keys if whole.ask(name, "SET", key, "kept") == "OK"]
    assert mine
    whole.ask(name, "WAIT", "1", "1000")
    old_id = whole.ask(name, "CLUSTER", "MYID")
    whole.kill(name)
    whole.empty(name)

    whole.start(name)

    seconds_until(whole.is_whole, 20)
    assert whole.is_primary(pair)
    assert whole.ask(name, "CLUSTER", "MYID") == old_id
    assert [whole.ask(pair, "GET", key) for key in mine] == ["kept"] * len(mine)


def test_an_emptied_pair_comes_back_with_its_slots(whole: Pods) -> None:
    name = min(whole.primaries())
    pair = whole.pair_of(name)
    whole.kill(name, pair)
    whole.empty(name)
    whole.empty(pair)

    whole.start(name, pair)

    seconds_until(whole.is_whole, 40)


def test_one_that_nobody_knew_in_time_joins_under_a_new_id_and_its_old_one_is_forgotten(whole: Pods) -> None:
    name = min(set(NAMES) - whole.primaries())
    old_id = whole.ask(name, "CLUSTER", "MYID")
    whole.kill_all()
    whole.empty(name)
    whole.start(name)
    seconds_until(lambda: whole.ask(name, "PING") == "PONG", 10)

    whole.start(*(other for other in NAMES if other != name))

    seconds_until(whole.is_whole, 40)
    assert whole.ask(name, "CLUSTER", "MYID") != old_id


def test_the_password_is_needed(whole: Pods) -> None:
    assert "NOAUTH" in whole.ask(NAMES[0], "PING", password="")


CANNED = """#!/bin/sh
if [ $# = 4 ]; then cat "$HOSTS".seen; else echo "$@" >> "$HOSTS".told; fi
"""
"""A redis-cli that is told two commands on its input, or one by its arguments, after -h ADDRESS -p PORT."""


def test_a_replica_that_asks_its_primarys_old_address_is_told_to_follow_it_again(tmp_path: Path) -> None:
    """Redis hears of the new address from the others, and keeps connecting to the old one: seen after a power cut."""
    (tmp_path / "bin").mkdir()
    for program, text in (("redis-cli", CANNED), ("getent", GETENT)):
        (tmp_path / "bin" / program).write_text(text)
        (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / "hosts").touch()
    (tmp_path / "hosts.seen").write_text(
        "".join(f"id{n} 10.0.0.{n}:6379@16379,{NAMES[n]} master - 0 1 {n} connected 0-5\r\n" for n in range(5))
        + f"id5 10.0.0.5:6379@16379,{NAMES[5]} myself,slave id2 0 1 5 connected\r\n"
        + "# Replication\r\nrole:slave\r\nmaster_host:10.0.0.77\r\nmaster_link_status:down\r\n"
    )
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOSTS": str(tmp_path / "hosts"),
        "PEERS": " ".join(NAMES),
        "SELF": NAMES[5],
        "SELF_ADDRESS": "10.0.0.5",
    }

    with subprocess.Popen([SCRIPTS / "heal.sh"], env=environment) as healing:
        seconds_until((tmp_path / "hosts.told").exists, 10)
        healing.kill()

    assert (tmp_path / "hosts.told").read_text().splitlines()[0] == "-h 10.0.0.5 -p 6379 CLUSTER REPLICATE id2"
