"""What happens to the system under test: who is killed, and when everything is back."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
from e2e.client import TIMEOUT_S
from redis import Redis
from redis.crc import key_slot

from local import redis_cluster
from local.system import System

POLL_S = 0.1


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait; noise may make it long, only being stuck makes it fail."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {TIMEOUT_S} s"
        time.sleep(POLL_S)


def kill(system: System, name: str) -> None:
    """Kill a process without a warning, and wait until it runs again."""
    system.wait_for_restart(name, system.kill(name, signal.SIGKILL))


@contextmanager
def frozen(system: System, *names: str) -> Iterator[None]:
    """Stop processes in the middle of whatever they do, and their children: gunicorn's is the one that serves.

    Afterwards they go on as if nothing had happened; who has been killed meanwhile does not.
    """
    stopped = [process for name in names for process in _family(system.pid(name))]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _family(pid: int) -> list[psutil.Process]:
    itself = psutil.Process(pid)
    return [itself, *itself.children(recursive=True)]


def node_at(system: System, port: int) -> str:
    """Return the name of the Redis node at `port`."""
    return f"redis-{system.profile.redis_ports.index(port)}"


def primary_of(system: System, partition: str) -> str:
    """Return the name of the Redis node that has a partition's state."""
    return node_at(system, _primary(system, partition).port)


def replica_of(system: System, partition: str) -> str:
    """Return the name of a Redis node that would take over from `primary_of`."""
    members, primary = _members(system), _primary(system, partition)
    replicas = [member.port for member in members if member.primary_id == primary.node_id]
    if not replicas:
        raise LookupError(f"nobody follows the primary of {partition} at the moment")
    return node_at(system, replicas[0])


def hand_over(system: System, name: str) -> None:
    """Let a replica take over from a Redis node, if that is a primary, and wait until it has: nothing is lost by it."""
    port = system.redis_nodes[int(name.removeprefix("redis-"))][1]
    members = _members(system)
    itself = next(member for member in members if member.port == port)
    if itself.primary:
        replica = next(member for member in members if member.primary_id == itself.node_id)
        redis_cluster.ask(replica.port, "CLUSTER", "FAILOVER")
        wait_until(lambda: "role:slave" in redis_cluster.ask(port, "INFO", "replication"), f"{name} is a replica")


def redis(system: System, name: str) -> Redis:
    """Return a client of one node."""
    return Redis(*system.redis_nodes[int(name.removeprefix("redis-"))])


def wait_for_redis(system: System) -> None:
    """Wait until every slot is served and every primary has a replica that follows it."""
    wait_until(lambda: redis_cluster.is_complete(system.profile), "Redis Cluster is complete")
    wait_until(lambda: _all_followed(system), "every Redis primary is followed")


def _all_followed(system: System) -> bool:
    replications = [redis_cluster.ask(port, "INFO", "replication") for _, port in system.redis_nodes]
    primaries = [info for info in replications if "role:master" in info]
    replicas = [info for info in replications if "master_link_status:up" in info]
    return len(primaries) == system.profile.redis_primaries and len(primaries) + len(replicas) == len(replications)


def _members(system: System) -> tuple[redis_cluster.Member, ...]:
    for _, port in system.redis_nodes:
        members = redis_cluster.parse(redis_cluster.ask(port, "CLUSTER", "NODES"))
        if members:
            return members
    raise AssertionError("no Redis node answers")


def _primary(system: System, partition: str) -> redis_cluster.Member:
    slot = key_slot(partition.encode())
    primaries = [member for member in _members(system) if any(_has(slots, slot) for slots in member.slots)]
    if not primaries:
        raise LookupError(f"nobody has {partition} at the moment")
    return primaries[0]


def _has(slots: str, slot: int) -> bool:
    first, _, last = slots.partition("-")
    return int(first) <= slot <= int(last or first)
