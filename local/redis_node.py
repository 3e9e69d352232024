"""Becomes one node of a profile's Redis Cluster: `python -m local.redis_node small 0`.

A node that comes back with an emptied disk must not return as an empty primary: the others would take
its nothing for the truth.  So before redis-server takes this process over:

1. A node that has its files, or whose cluster is not made yet, starts as it is.
2. An emptied one asks the others what it is to them, until a replica was promoted in its place.  Where too few
   primaries are left for an election, it tells its replica to take over without one.
3. It then writes itself the nodes.conf of a replica, with its old id, and copies everything from its primary.

Where nobody can be promoted (no replicas, or none comes back), or nobody answers (all were emptied), it
returns as it was, with its slots and without its data: the log is the truth, and it is replayed.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from local import redis_cluster
from local.profiles import PROFILES, Profile
from local.redis_cluster import Member

ELECTION_TIMEOUT_S = 8.0
TAKEOVER_TIMEOUT_S = 3.0
NOBODY_TIMEOUT_S = 5.0
POLL_S = 0.2


def main() -> None:
    """Prepare the node's folder, then become redis-server."""
    profile, node = PROFILES[sys.argv[1]], int(sys.argv[2])
    folder = redis_cluster.folder(profile, node)
    folder.mkdir(parents=True, exist_ok=True)
    if profile.redis_members.exists() and is_emptied(folder):
        members, myself = find_place(profile, profile.redis_ports[node])
        (folder / redis_cluster.NODES_FILE).write_text(redis_cluster.nodes_conf(members, myself))
    settings = profile.conf / f"redis-{node}.conf"
    os.execvp("redis-server", ["redis-server", str(settings)])  # noqa: S606 - becomes it, so that its pid is the node's


def is_emptied(folder: Path) -> bool:
    """Tell whether a node that once ran in `folder` would start without its past."""
    return not all((folder / name).exists() for name in (redis_cluster.NODES_FILE, redis_cluster.APPEND_FOLDER))


def find_place(profile: Profile, port: int) -> tuple[tuple[Member, ...], Member]:
    """Return the cluster as it is, and what the emptied node at `port` is in it."""
    wait(lambda: others_know(profile, port) != (), NOBODY_TIMEOUT_S)
    if profile.redis_replicas_per_primary:
        wait_for_promotion(profile, port)
    members = others_know(profile, port) or redis_cluster.parse(profile.redis_members.read_text())
    return members, place_among(members, port) or itself(members, port)


def wait_for_promotion(profile: Profile, port: int) -> None:
    """Wait until the others have promoted a replica in place of the node at `port`, or cannot."""

    def is_promoted() -> bool:
        return place_among(others_know(profile, port), port) is not None

    wait(is_promoted, ELECTION_TIMEOUT_S)
    if not is_promoted() and a_replica_takes_over(others_know(profile, port), port):
        wait(is_promoted, TAKEOVER_TIMEOUT_S)


def a_replica_takes_over(members: tuple[Member, ...], port: int) -> bool:
    """Tell the replicas of the node at `port` to take its slots without a vote; true once one obeys."""
    own_id = itself(members, port).node_id if members else ""
    replicas = [member.port for member in members if member.primary_id == own_id]
    return any(redis_cluster.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER").strip() == "OK" for replica in replicas)


def place_among(members: tuple[Member, ...], port: int) -> Member | None:
    """Return its place as a replica; None while it has none, or while nobody answers."""
    return redis_cluster.returning(members, port) if members else None


def itself(members: tuple[Member, ...], port: int) -> Member:
    """Return the member that it always was."""
    return next(member for member in members if member.port == port)


def others_know(profile: Profile, port: int) -> tuple[Member, ...]:
    """Return the cluster as the first other node that answers knows it; nothing if none does."""
    for other in profile.redis_ports:
        members = redis_cluster.parse(redis_cluster.ask(other, "CLUSTER", "NODES")) if other != port else ()
        if any(member.port == port for member in members):
            return members
    return ()


def wait(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until `condition` holds, but no longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
