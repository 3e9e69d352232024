"""The system in a Kubernetes cluster, as drills see it: pods instead of processes, found by their labels.

The cluster is that of the current kubectl context, whose `kubectl` is the one in the PATH; the services are in the
context's namespace, Kafka in the namespace kafka.  What it needs to be told:

    GATEWAY_URL     where clients come in                          http://127.0.0.1:8080
    DRILLS_CUT      how a node is cut off, and connected again     partition.sh {number} {state}

`number` is that of the node's name (3 of node3), `state` is down or up.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from local.profiles import REPOSITORY, SERVICES, Profile
from local.supervision import Supervision
from local.system import System

KAFKA = "kafka"
"""The brokers' namespace."""
COMMAND_TIMEOUT_S = 60
WELL_TIMEOUT_S = 300.0
POLL_S = 3.0
"""Every look starts a dozen processes in the cluster."""
AUDIT_TIMEOUT_S = 600
APPLICATION = "app.kubernetes.io/name"
KINDS = ("deployments", "statefulsets")
NODES = 6
"""Of a Redis Cluster."""


class Pod(msgspec.Struct, frozen=True):
    """A pod that is there, ending or not."""

    name: str
    namespace: str
    uid: str
    node: str
    labels: dict[str, str]
    restarts: int
    is_ready: bool
    is_ending: bool

    @property
    def workload(self) -> str:
        """What it is one of: order, order-processor, order-redis, gateway, my-cluster-dual-role."""
        return self.labels.get("app.kubernetes.io/instance") or self.labels.get(APPLICATION, self.name)


def kubectl(*arguments: str, check: bool = True, text: str | None = None) -> str:
    """Return what kubectl prints."""
    done = subprocess.run(
        ["kubectl", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"kubectl {shlex.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout


class Restarts(Supervision):
    """How often containers died, which Kubernetes starts again."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._counted: dict[str, Pod] = {}

    def deaths(self) -> dict[str, int]:
        """Return how often containers ended by themselves, by workload; those of pods that are gone included."""
        self._counted |= {pod.uid: pod for pod in pods()}
        counts: Counter[str] = Counter()
        for pod in self._counted.values():
            counts[pod.workload] += pod.restarts
        return dict(counts)


class Cluster(System):
    """All pods of the system."""

    def __init__(self) -> None:
        super().__init__(
            Profile(name="k8s", brokers=3, redis_replicas_per_primary=1, copies=2, memory_min_mb=0),
        )
        self.supervision = Restarts(self.profile)
        self._since = time.time()
        for folder in (self.profile.run, self.profile.logs):
            folder.mkdir(parents=True, exist_ok=True)
        for component in (*SERVICES, "gateway"):
            self._log(component).touch()

    @property
    def gateway_url(self) -> str:
        """Where clients come in."""
        return os.environ["GATEWAY_URL"]

    def is_up(self) -> bool:
        """Tell whether it is there; it is never started or stopped here."""
        return bool(pods("-l", "component=gateway"))

    # Who

    def redis_primary(self, service: str) -> str:
        """Return the pod of a node that has some of the service's state."""
        return next(pod for pod, role, keys in redis_nodes(service) if role == "master" and keys)

    def leader(self, topic: str) -> str:
        """Return the pod of the broker that leads a topic's first partition."""
        told = kafka_topics("--describe", "--topic", topic)
        number = told.split("Leader: ", 1)[1].split()[0]
        return f"my-cluster-dual-role-{number}"

    # How it is

    def time_until_well(self) -> float | None:
        """Wait until everything is back; return how many seconds that took, or None if it is not."""
        started = time.monotonic()
        for condition in (all_are_ready, are_followed, are_in_sync, all_are_ready):
            while not _holds(condition):
                if time.monotonic() > started + WELL_TIMEOUT_S:
                    return None
                time.sleep(POLL_S)
        taken_s = time.monotonic() - started
        self._keep_logs()
        return taken_s

    def audit(self) -> tuple[str, str]:
        """Audit it, in a pod of its own; return what that printed, and why there is nothing if so."""
        kubectl("delete", "pod", "audit", "--ignore-not-found", "--force")
        kubectl("create", "-f", str(REPOSITORY / "audit" / "pod.yaml"))
        deadline = time.monotonic() + AUDIT_TIMEOUT_S
        while kubectl("get", "pod", "audit", "-o", "jsonpath={.status.phase}") not in ("Succeeded", "Failed"):
            if time.monotonic() > deadline:
                return "", kubectl("describe", "pod", "audit")
            time.sleep(POLL_S)
        told = kubectl("logs", "audit")
        return told[told.find("{") :], told

    def _log(self, component: str) -> Path:
        return self.profile.logs / f"{component}.log"

    def _keep_logs(self) -> None:
        """Append what pods wrote since the last time."""
        since, self._since = time.time() - self._since, time.time()
        for component in (*SERVICES, "gateway"):
            which = ("-l", f"component={component}", "--all-containers", "--prefix", "--tail=-1")
            told = kubectl("logs", *which, "--max-log-requests=20", f"--since={since:.0f}s", check=False)
            with self._log(component).open("a") as log:
                log.write(told)


def pods(*which: str) -> list[Pod]:
    """Return the pods of the context's namespace and of Kafka's, or those of the first that `which` selects."""
    namespaces = [()] if which else [(), ("-n", KAFKA)]
    found: list[Pod] = []
    for namespace in namespaces:
        listed = msgspec.json.decode(kubectl("get", "pods", "-o", "json", *namespace, *which))
        found += [_pod(item) for item in listed["items"]]
    return found


def redis_nodes(service: str) -> list[tuple[str, str, int]]:
    """Return of each node of a service's Redis Cluster that answers: its pod, role and number of keys."""
    release = f"{service}-redis"
    script = (
        f"for i in {' '.join(map(str, range(NODES)))}; do "
        f"echo {release}-$i $(timeout 2 redis-cli -h {release}-$i.{release} ROLE | head -n 1) "
        f"$(timeout 2 redis-cli -h {release}-$i.{release} DBSIZE); done"
    )
    lines = [line.split() for line in _in_redis(release, script).splitlines()]
    return [(line[0], line[1], int(line[2])) for line in lines if len(line) == 3]


def kafka_topics(*arguments: str) -> str:
    """Return what Kafka's own tool says, asked in a broker that is ready."""
    brokers = [pod.name for pod in pods() if pod.namespace == KAFKA and "dual-role" in pod.name and pod.is_ready]
    program = ("/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "localhost:9092")
    return kubectl("exec", "-n", KAFKA, brokers[0], "--", *program, *arguments)


# --- conditions


def all_are_ready() -> bool:
    """Tell whether every workload has as many ready pods as it should, all of its newest revision."""
    listed = [_workloads(), _workloads("-n", KAFKA)]
    return all(_is_complete(item) for items in listed for item in items)


def are_followed() -> bool:
    """Tell whether each Redis Cluster serves every slot, and each primary has a replica that follows."""
    return all(_is_followed(f"{service}-redis") for service in SERVICES)


def are_in_sync() -> bool:
    """Tell whether no partition lacks a replica."""
    return not kafka_topics("--describe", "--under-replicated-partitions").strip()


def _holds(condition: Any) -> bool:
    try:
        return bool(condition())
    except (RuntimeError, LookupError, subprocess.TimeoutExpired):
        # Whoever was asked is away.
        return False


def _workloads(*where: str) -> Iterable[dict[str, Any]]:
    items: list[dict[str, Any]] = msgspec.json.decode(kubectl("get", ",".join(KINDS), "-o", "json", *where))["items"]
    return items


def _is_complete(item: dict[str, Any]) -> bool:
    wanted, status = item["spec"]["replicas"], item["status"]
    is_seen = status.get("observedGeneration") == item["metadata"]["generation"]
    counts = (status.get("replicas", 0), status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    return is_seen and all(count == wanted for count in counts)


def _is_followed(release: str) -> bool:
    script = (
        f"redis-cli -h {release}-0.{release} CLUSTER INFO | grep -e cluster_state; "
        f"for i in {' '.join(map(str, range(NODES)))}; do "
        f"timeout 2 redis-cli -h {release}-$i.{release} INFO replication | grep -e ^role -e ^master_link_status; done"
    )
    told = Counter(line.strip() for line in _in_redis(release, script).splitlines())
    return (told["cluster_state:ok"], told["role:master"], told["master_link_status:up"]) == (1, NODES // 2, NODES // 2)


def _in_redis(release: str, script: str) -> str:
    ready = [pod.name for pod in pods("-l", f"app.kubernetes.io/instance={release}") if pod.is_ready]
    return kubectl("exec", ready[0], "-c", "redis", "--", "sh", "-c", script)


def _pod(item: dict[str, Any]) -> Pod:
    status = item.get("status", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    return Pod(
        name=item["metadata"]["name"],
        namespace=item["metadata"]["namespace"],
        uid=item["metadata"]["uid"],
        node=item["spec"].get("nodeName", ""),
        labels=item["metadata"].get("labels", {}),
        restarts=sum(each["restartCount"] for each in status.get("containerStatuses", ())),
        is_ready=conditions.get("Ready") == "True",
        is_ending="deletionTimestamp" in item["metadata"],
    )
