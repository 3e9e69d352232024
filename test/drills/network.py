"""The faults between processes: nothing gets through, one way or both, or everything comes late.

What is required is what is required when the one who is cut off dies: somebody else takes over as well and as soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from drills.fault import BROKER_GONE, PROCESSOR_GONE, REDIS_GONE, WEB_GONE, Fault, Inject
from drills.relays import Network, RelayedSystem, ways
from drills.requirement import NOTHING_FAILS, Requirement
from drills.scene import Scene
from e2e.faults import primary_of
from msgspec.structs import replace

from local import status
from local.profiles import SERVICES

CUT_MIN_S, CUT_MAX_S = 2.0, 20.0
SLOW_S = 12.0
DELAY_S = 0.2
ALONE = "order-0"
"""No other partition's state is where this one's is."""

Pair = Callable[[Scene], tuple[str, list[str]]]
"""Chooses who is cut off, and from whom."""


def network(scene: Scene) -> Network:
    """Return what a system with relays has."""
    assert isinstance(scene.system, RelayedSystem), "relays are needed: the profile net"
    return scene.system.network


def cut(pair: Pair) -> Inject:
    """Return what cuts a pair off from each other for a while: both ways, or one."""

    def inject(scene: Scene) -> None:
        one, others = pair(scene)
        heard, said = ways(others, [one]), ways([one], others)
        whats = {"hears nothing of": heard, "is not heard by": said, "neither hears nor reaches": heard | said}
        what = scene.random.choice(list(whats))
        seconds, resets = scene.random.uniform(CUT_MIN_S, CUT_MAX_S), scene.random.random() < 0.5
        scene.victims.add(one)
        scene.note(f"{one} {what} {', '.join(others)} for {seconds:.1f} s")
        with network(scene).cut(whats[what], resets=resets):
            time.sleep(seconds)
        scene.note(f"{one} is connected again, what was cut is {'broken' if resets else 'delivered'}")

    return inject


def slow_redis(scene: Scene) -> None:
    """Let every call of one primary take 200 ms longer."""
    name = scene.redis_primary_of(ALONE)
    scene.victims.add(name)
    scene.note(f"every call of {name} takes {DELAY_S * 1000:.0f} ms longer")
    with network(scene).slow(name, DELAY_S):
        time.sleep(SLOW_S)
    scene.note(f"{name} answers at once")


# --- who is cut off --------------------------------------------------------------------------------------------------


def all_of(scene: Scene, kind: str) -> list[str]:
    """Return the names of all brokers, or of all Redis nodes."""
    return [name for name in scene.system.names() if name.startswith(f"{kind}-")]


def web(scene: Scene) -> str:
    """Return a web process."""
    return scene.web(scene.random.choice(SERVICES))


def processor(scene: Scene) -> str:
    """Return a processor that owns something."""
    return scene.processor(scene.random.choice(SERVICES))


def from_all(who: Callable[[Scene], str], kind: str) -> Pair:
    """Return one process and every broker, or every Redis node."""
    return lambda scene: (who(scene), all_of(scene, kind))


def web_and_broker(scene: Scene) -> tuple[str, list[str]]:
    """Return a web process and the broker that leads most."""
    return web(scene), [scene.broker("leader")]


def processor_and_broker(scene: Scene) -> tuple[str, list[str]]:
    """Return a processor and the broker that leads most."""
    return processor(scene), [scene.broker("leader")]


def web_and_node(scene: Scene) -> tuple[str, list[str]]:
    """Return a web process and a Redis primary that it needs."""
    name = web(scene)
    number = scene.random.randrange(scene.system.profile.partitions)
    return name, [primary_of(scene.system, f"{name.partition('-')[0]}-{number}")]


def processor_and_node(scene: Scene) -> tuple[str, list[str]]:
    """Return a processor and the Redis primary of a partition that it owns."""
    name = processor(scene)
    owned = [each.partition for each in status.partitions(scene.system.profile) if each.owner == name]
    return name, [primary_of(scene.system, scene.random.choice(owned))]


def two_brokers(scene: Scene) -> tuple[str, list[str]]:
    """Return the broker that leads most, and another."""
    leader = scene.broker("leader")
    return leader, [scene.random.choice([name for name in all_of(scene, "kafka") if name != leader])]


def broker_and_all(scene: Scene) -> tuple[str, list[str]]:
    """Return a broker and everybody."""
    name = scene.broker(scene.random.choice(["leader", "controller", "coordinator"]))
    return name, [other for other in scene.system.names() if other != name]


def two_nodes(scene: Scene) -> tuple[str, list[str]]:
    """Return a Redis primary and any other node."""
    primary = scene.redis_primary()
    return primary, [scene.random.choice([name for name in all_of(scene, "redis") if name != primary])]


def primary_and_all(scene: Scene) -> tuple[str, list[str]]:
    """Return a Redis primary and everybody."""
    primary = scene.redis_primary()
    return primary, [name for name in scene.system.names() if name != primary]


# --- what is required ------------------------------------------------------------------------------------------------

CUTS: dict[str, tuple[str, Pair, Requirement]] = {
    "net-web-redis": ("a web process and all of Redis", from_all(web, "redis"), WEB_GONE),
    "net-web-node": ("a web process and a Redis primary", web_and_node, WEB_GONE),
    "net-processor-redis": ("a processor and all of Redis", from_all(processor, "redis"), PROCESSOR_GONE),
    "net-processor-node": ("a processor and its partition's primary", processor_and_node, PROCESSOR_GONE),
    "net-web-kafka": ("a web process and all of Kafka", from_all(web, "kafka"), WEB_GONE),
    "net-web-broker": ("a web process and a broker", web_and_broker, WEB_GONE),
    "net-processor-kafka": ("a processor and all of Kafka", from_all(processor, "kafka"), PROCESSOR_GONE),
    "net-processor-broker": ("a processor and a broker", processor_and_broker, PROCESSOR_GONE),
    "net-redis-primary": ("a Redis primary and everybody", primary_and_all, REDIS_GONE),
    "net-redis-two": ("a Redis primary and another node", two_nodes, REDIS_GONE),
    "net-broker": ("a broker and everybody", broker_and_all, BROKER_GONE),
    "net-brokers-two": ("two brokers", two_brokers, BROKER_GONE),
}


def _cuts() -> Iterator[Fault]:
    for name, (between, pair, requirement) in CUTS.items():
        yield Fault(
            name=name,
            what=f"the network between {between}, one way or both, 2-20 s",
            inject=cut(pair),
            requirement=requirement,
            needs_relays=True,
        )


FAULTS: tuple[Fault, ...] = (
    *_cuts(),
    Fault(
        name="redis-slow",
        what="a Redis primary whose every call takes 200 ms longer, for 12 s",
        inject=slow_redis,
        requirement=replace(NOTHING_FAILS, others_share_min=0.6),
        touches=("/orders/",),
        needs_relays=True,
    ),
)
