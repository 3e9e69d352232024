"""Redis Cluster: a node's settings, making the cluster once, and how an emptied node finds its way back."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from local.profiles import HOST, Profile

SLOTS = 16384
ANSWER_TIMEOUT_S = 1.0
NODES_FILE = "nodes.conf"
APPEND_FOLDER = "appendonlydir"


def folder(profile: Profile, node: int) -> Path:
    """Return where node `node` keeps its data."""
    return profile.data / f"redis-{node}"


def settings(profile: Profile, node: int) -> str:
    """Return the redis.conf of node `node`."""
    return "".join(f"{key} {value}\n" for key, value in (_place(profile, node) | _SETTINGS).items())


def ask(port: int, *command: str) -> str:
    """Return what the node at `port` answers; nothing if it does not."""
    question = ["redis-cli", "-h", HOST, "-p", str(port), *command]
    try:
        return subprocess.run(question, capture_output=True, text=True, check=True, timeout=ANSWER_TIMEOUT_S).stdout
    except subprocess.SubprocessError:
        return ""


def all_answer(profile: Profile) -> bool:
    """Tell whether every node of the profile runs."""
    return all(ask(port, "PING").strip() == "PONG" for port in profile.redis_ports)


def is_complete(profile: Profile) -> bool:
    """Tell whether every node sees all slots served and knows all nodes."""
    return all(_sees_all(ask(port, "CLUSTER", "INFO"), len(profile.redis_ports)) for port in profile.redis_ports)


def create(profile: Profile) -> None:
    """Make the cluster of nodes that run, unless it exists, and write down its members.

    A creation that was interrupted left nothing worth keeping: the members are written last.
    """
    if profile.redis_members.exists():
        return
    for port in profile.redis_ports:
        ask(port, "FLUSHALL")
        ask(port, "CLUSTER", "RESET", "HARD")
    ports = zip(profile.redis_ports, profile.redis_bus_ports, strict=True)
    nodes = [f"{HOST}:{port}@{bus_port}" for port, bus_port in ports]
    replicas = ["--cluster-replicas", str(profile.redis_replicas_per_primary)]
    command = ["redis-cli", "--cluster", "create", *nodes, *replicas, "--cluster-yes"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def remember(profile: Profile) -> None:
    """Write down the members of a cluster that is complete, once."""
    if not profile.redis_members.exists():
        profile.redis_members.write_text(ask(profile.redis_ports[0], "CLUSTER", "NODES"))


@dataclass(frozen=True)
class Member:
    """A node, as the other nodes know it: a line of CLUSTER NODES, which is also a line of a nodes.conf."""

    node_id: str
    address: str
    primary: bool
    primary_id: str
    epoch: int
    slots: tuple[str, ...]

    @property
    def port(self) -> int:
        """For clients."""
        return int(self.address.split("@")[0].rpartition(":")[2])

    def line(self, *, myself: bool) -> str:
        """Return the line that `parse` reads."""
        role = "master" if self.primary else "slave"
        flags = f"myself,{role}" if myself else role
        fields = (self.node_id, self.address, flags, self.primary_id, "0", "0", str(self.epoch), "connected")
        return " ".join(fields + self.slots)


def parse(nodes: str) -> tuple[Member, ...]:
    """Return the members that an answer to CLUSTER NODES lists; those without an address are on their way out."""
    lines = (line.split() for line in nodes.splitlines())
    return tuple(_member(fields) for fields in lines if _is_member(fields))


def returning(members: tuple[Member, ...], port: int) -> Member | None:
    """Return the member that the emptied node at `port` may be now, or None while its slots are still its own.

    It keeps its id, so that the others know it.  Once a replica has been promoted in its place it follows
    the primary that has the fewest replicas.
    """
    member = next(member for member in members if member.port == port)
    if member.primary and member.slots:
        return None
    others = tuple(other for other in members if other is not member)
    return replace(member, primary=False, primary_id=_fewest_replicas(others), slots=())


def nodes_conf(members: Iterable[Member], myself: Member) -> str:
    """Return the nodes.conf with which `myself` starts among `members`."""
    others = [member for member in members if member.node_id != myself.node_id]
    epoch = max(member.epoch for member in [*others, myself])
    lines = [myself.line(myself=True), *(other.line(myself=False) for other in others)]
    # Its last vote is forgotten, and nobody votes twice: it counts as given in this epoch.
    return "\n".join([*lines, f"vars currentEpoch {epoch} lastVoteEpoch {epoch}", ""])


def _place(profile: Profile, node: int) -> dict[str, object]:
    return {
        "port": profile.redis_ports[node] + profile.listen_offset,
        "cluster-port": profile.redis_bus_ports[node] + profile.listen_offset,
        "cluster-announce-port": profile.redis_ports[node],
        "cluster-announce-bus-port": profile.redis_bus_ports[node],
        "dir": f'"{folder(profile, node)}"',
    }


_SETTINGS: dict[str, object] = {
    "bind": HOST,
    "protected-mode": "no",
    "daemonize": "no",
    "cluster-enabled": "yes",
    "cluster-config-file": NODES_FILE,
    "cluster-announce-ip": HOST,
    "cluster-node-timeout": 1500,
    # The log is the truth: a primary that knows too little replays it, one that is missing serves nobody.
    "cluster-replica-validity-factor": 0,
    "cluster-require-full-coverage": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory": "1gb",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": 0,
    "repl-backlog-size": "4mb",
    "shutdown-timeout": 2,
}


def _sees_all(cluster_info: str, nodes: int) -> bool:
    seen = dict(line.strip().split(":", 1) for line in cluster_info.splitlines() if ":" in line)
    served = seen.get("cluster_state") == "ok" and seen["cluster_slots_ok"] == str(SLOTS)
    return served and seen["cluster_known_nodes"] == str(nodes)


def _is_member(fields: list[str]) -> bool:
    flags = fields[2].split(",")
    return "handshake" not in flags and "noaddr" not in flags


def _member(fields: list[str]) -> Member:
    node_id, address, flags, primary_id, _, _, epoch, _ = fields[:8]
    return Member(
        node_id=node_id,
        address=address,
        primary="master" in flags.split(","),
        primary_id=primary_id,
        epoch=int(epoch),
        slots=tuple(slots for slots in fields[8:] if not slots.startswith("[")),
    )


def _fewest_replicas(members: tuple[Member, ...]) -> str:
    primaries = [member for member in members if member.primary and member.slots]
    replicas = [member.primary_id for member in members if not member.primary]
    return min(primaries, key=lambda primary: (replicas.count(primary.node_id), primary.port)).node_id
