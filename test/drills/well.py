"""Whether the system is well: every process, replica, partition and server is there."""

from __future__ import annotations

import time

import requests
from drills import brokers
from drills.cluster import Cluster

from local import redis_cluster, status
from local.profiles import HOST, SERVICES
from local.system import System

TIMEOUT_S = 120.0
POLL_S = 0.5
"""A look costs a dozen processes."""


def time_until_well(system: System) -> float | None:
    """Wait until everything is back; return how many seconds that took, or None if it is not."""
    if isinstance(system, Cluster):
        return system.time_until_well()
    started = time.monotonic()
    for condition in (all_run, are_followed, brokers.are_in_sync, are_ready, are_owned, are_served):
        while not condition(system):
            if time.monotonic() > started + TIMEOUT_S:
                return None
            time.sleep(POLL_S)
    return time.monotonic() - started


def all_run(system: System) -> bool:
    """Tell whether every process has stayed up for a second."""
    return all(process["statename"] == "RUNNING" for process in system.supervision.processes().values())


def are_followed(system: System) -> bool:
    """Tell whether every slot of Redis Cluster is served, and every primary followed by its replicas."""
    if not redis_cluster.is_complete(system.profile):
        return False
    replications = [redis_cluster.ask(port, "INFO", "replication") for port in system.profile.redis_ports]
    primaries = sum("role:master" in told for told in replications)
    replicas = sum("master_link_status:up" in told for told in replications)
    return primaries == system.profile.redis_primaries and primaries + replicas == len(replications)


def are_ready(system: System) -> bool:
    """Tell whether every web process and processor says that it can serve."""
    ports = [port for service in SERVICES for port in _ports(system, service)]
    return all(_answers(f"http://{HOST}:{port}/health/ready") for port in ports)


def are_owned(system: System) -> bool:
    """Tell whether every partition has one owner, and every processor owns one if there are enough."""
    owned = status.partitions(system.profile)
    names = {(each.inbox, each.partition) for each in owned}
    owners = len({each.owner for each in owned})
    shares = min(system.profile.partitions, system.profile.copies)
    return len(names) == len(owned) == len(SERVICES) * system.profile.partitions and owners == len(SERVICES) * shares


def are_served(system: System) -> bool:
    """Tell whether the gateway sends requests to every web process."""
    try:
        metrics = requests.get(f"{system.stats_url}/metrics", timeout=1).text
    except requests.RequestException:
        return False
    up = [line for line in metrics.splitlines() if line.startswith("haproxy_server_status{") and 'state="UP"' in line]
    return len(up) == len(SERVICES) * system.profile.copies and all(line.endswith(" 1") for line in up)


def _ports(system: System, service: str) -> tuple[int, ...]:
    return system.profile.web_ports(service) + system.profile.processor_ports(service)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False
