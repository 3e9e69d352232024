"""Kafka: a broker's settings, the jars it runs on, and whether all brokers answer."""

import asyncio
import base64
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from local.profiles import HOST, REPOSITORY, Profile, addresses

POM = REPOSITORY / "local" / "kafka" / "pom.xml"
START = REPOSITORY / "local" / "kafka" / "start.sh"
JARS = REPOSITORY / ".cache" / "kafka-jars"
STAMP = JARS / "made-from"
TRAINING_TIMEOUT_S = 60.0


def folder(profile: Profile, node: int) -> Path:
    """Return where broker `node` keeps its log."""
    return profile.data / f"kafka-{node}"


def cluster_id(profile: Profile) -> str:
    """Return a Kafka uuid that is always the same for a profile: an emptied broker joins its old cluster."""
    raw = uuid.uuid5(uuid.NAMESPACE_URL, f"checkout/{profile.name}").bytes
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def properties(profile: Profile, node: int) -> str:
    """Return the server.properties of broker `node`, which is also a controller."""
    voters = ",".join(f"{voter}@{HOST}:{port}" for voter, port in enumerate(profile.controller_ports))
    return _settings(
        {
            "node.id": node,
            "controller.quorum.voters": voters,
            "log.dirs": folder(profile, node),
        }
        | _listeners(profile.kafka_ports[node], profile.controller_ports[node], profile.listen_offset)
        | _replication(profile.brokers)
    )


def start_command(profile: Profile, node: int, settings: Path) -> tuple[str, ...]:
    """Return the command that becomes broker `node`."""
    return (str(START), str(settings), str(folder(profile, node)), cluster_id(profile))


def fetch_jars() -> None:
    """Fetch Kafka's jars and archive its parsed classes, unless this pom and this java already made both."""
    JARS.parent.mkdir(exist_ok=True)
    with (JARS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.exists() or STAMP.read_text() != _made_from():
            _fetch_jars()


def jars_are_there() -> bool:
    """Tell whether `fetch_jars` has nothing to do."""
    return STAMP.exists() and STAMP.read_text() == _made_from()


def all_answer(profile: Profile) -> bool:
    """Tell whether every broker of the profile is registered and a controller leads them."""
    return asyncio.run(_brokers_registered(addresses(profile.kafka_ports))) == profile.brokers


def _settings(settings: dict[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in (settings | _SETTINGS).items())


def _listeners(port: int, controller_port: int, listen_offset: int = 0) -> dict[str, object]:
    return {
        "listeners": _addresses(port + listen_offset, controller_port + listen_offset),
        "advertised.listeners": _addresses(port, controller_port),
    }


def _addresses(port: int, controller_port: int) -> str:
    return f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}"


def _replication(brokers: int) -> dict[str, object]:
    copies = min(brokers, 3)
    in_sync_min = max(1, copies - 1)
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync_min,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync_min,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync_min,
    }


FAILOVER: dict[str, object] = {
    # A broker that is silent for so long is fenced: others lead its partitions, and nobody waits any more for what it
    # should acknowledge.  Seven heartbeats have to be late, or a busy machine would fence brokers that are well.
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 250,
    # A controller that does not answer the other voters for so long is voted out.  Its successor gives every broker a
    # new session: where the active controller dies, these two times add up.  An election without cause costs nothing.
    "controller.quorum.fetch.timeout.ms": 1000,
    # The other two notice it in the same moment, vote for themselves, and try again after one to two of these.
    "controller.quorum.election.timeout.ms": 200,
    "controller.quorum.election.backoff.max.ms": 100,
    "controller.quorum.request.timeout.ms": 1000,
    # What a frozen controller was asked, its successor is asked after this, not after 30 s.
    "controller.socket.timeout.ms": 1500,
    # A follower that lives but does not fetch (its link to the leader is cut) holds up acknowledgements for one to one
    # and a half of these.
    "replica.lag.time.max.ms": 2500,
    # A follower that asks a new leader a moment too early asks again after this, not after a second in which nothing is
    # acknowledged.
    "replica.fetch.backoff.ms": 50,
    # A partition that a follower is to fetch from another leader now joins its next request there.  The one under way
    # waits for records, and when everything waits for this failover none come: up to half a second with the default.
    "replica.fetch.wait.max.ms": 100,
    # One that waits for a frozen leader gives up after this, not after 30 s.
    "replica.socket.timeout.ms": 2000,
    # A processor chooses its session itself (CHECKOUT_SESSION_TIMEOUT_MS); the first of a group waits for no others.
    "group.min.session.timeout.ms": 1000,
    "group.initial.rebalance.delay.ms": 0,
}
"""How soon a death is noticed and others take over, wherever brokers run.  Measured: docs/decisions.md, 21."""

_SETTINGS: dict[str, object] = FAILOVER | {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    # The log is the truth: nothing appears, is chosen or is dropped by itself.
    "auto.create.topics.enable": "false",
    "unclean.leader.election.enable": "false",
    "log.message.timestamp.type": "LogAppendTime",
    "log.retention.ms": -1,
    "log.retention.bytes": -1,
    # A broker of one small machine.
    "offsets.topic.num.partitions": 3,
    "transaction.state.log.num.partitions": 1,
    "share.coordinator.state.topic.num.partitions": 1,
    "num.network.threads": 2,
    "num.io.threads": 4,
    "num.recovery.threads.per.data.dir": 2,
    "background.threads": 2,
    "group.coordinator.threads": 1,
    "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
}


def _made_from() -> str:
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    return hashlib.sha256(POM.read_bytes() + START.read_bytes() + java.encode()).hexdigest()


def _fetch_jars() -> None:
    shutil.rmtree(JARS, ignore_errors=True)
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    _archive_classes()
    STAMP.write_text(_made_from())


def _archive_classes() -> None:
    """Start a broker that nobody uses, once: when it stops, the JVM archives the classes that it had loaded."""
    with tempfile.TemporaryDirectory() as temporary:
        port, controller_port = _free_ports()
        settings = {"node.id": 0, "log.dirs": f"{temporary}/log"}
        settings |= {"controller.quorum.voters": f"0@{HOST}:{controller_port}"}
        path = Path(temporary, "server.properties")
        path.write_text(_settings(settings | _listeners(port, controller_port) | _replication(1)))
        command = [str(START), str(path), f"{temporary}/log", "AAAAAAAAAAAAAAAAAAAAAQ"]
        _start_and_stop(command, f"{HOST}:{port}", Path(temporary, "broker.log"))


def _start_and_stop(command: list[str], bootstrap: str, log: Path) -> None:
    environment = os.environ | {"ARCHIVE_CLASSES": "yes"}
    with log.open("w") as output:
        broker = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + TRAINING_TIMEOUT_S
        while asyncio.run(_brokers_registered(bootstrap)) != 1 and broker.poll() is None:
            assert time.monotonic() < deadline, f"Kafka does not start: {log.read_text()[-2000:]}"
            time.sleep(0.2)
        broker.terminate()
        broker.wait(TRAINING_TIMEOUT_S)


def _free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as another:
        return one.getsockname()[1], another.getsockname()[1]


async def _brokers_registered(bootstrap: str) -> int:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=1000)
    try:
        await client.start()
        return len((await client.describe_cluster())["brokers"])
    except (KafkaError, OSError, TimeoutError):
        return 0
    finally:
        await client.close()
