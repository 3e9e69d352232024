"""The faults, a row each: what it is, what is done, what is required."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from operator import methodcaller

from drills import brokers, network, releases, torn, well
from drills.fault import BROKER_GONE, PROCESSOR_GONE, REDIS_GONE, WEB_GONE, Fault, within
from drills.requirement import CLIENTS_ASK_AGAIN, NOTHING_FAILS, Requirement
from drills.scene import Scene
from e2e.faults import hand_over, replica_of, wait_until
from msgspec.structs import replace

from local.profiles import SERVICES

FREEZE_S = 8.0
AWAY_S = 30.0
SLOW_S = 12.0
A_TWENTIETH = (0.005, 0.095)
BETWEEN_KILLS_MAX_S = 0.03
LONG_TOGETHER_MAX = 5
"""Of faults that take half a minute and more: what does not fit together is looked for among so many."""

Victim = Callable[[Scene], str]
"""Chooses a process."""


def chosen(name: str) -> list[Fault]:
    """Return the fault of this name, or those whose names begin with it; all for no name."""
    exact = [fault for fault in FAULTS if fault.name == name]
    return exact or [fault for fault in FAULTS if fault.name.startswith(name)]


# --- what is done ----------------------------------------------------------------------------------------------------


def any_web(scene: Scene) -> str:
    return scene.web(scene.random.choice(SERVICES))


def empty_redis(scene: Scene) -> None:
    scene.kill_emptied(scene.redis_primary())


def flush_redis(scene: Scene) -> None:
    scene.flush(scene.redis_primary())


def kill_shard(scene: Scene) -> None:
    partition = scene.partition()
    replica, primary = replica_of(scene.system, partition), scene.redis_primary_of(partition)
    scene.kill(replica)
    scene.kill(primary)


def restart_brokers(scene: Scene) -> None:
    for node in range(scene.system.profile.brokers):
        scene.restart(f"kafka-{node}")
        wait_until(lambda: brokers.are_in_sync(scene.system), "every replica is in sync")


def restart_redis_nodes(scene: Scene) -> None:
    for node in range(len(scene.system.redis_nodes)):
        hand_over(scene.system, f"redis-{node}")
        scene.restart(f"redis-{node}")
        wait_until(lambda: well.are_followed(scene.system), "every Redis primary is followed")


def upgrade(scene: Scene) -> None:
    """Replace every process of the services by one of another version: readers of the log before its writers."""
    version = releases.switch(scene.system)
    for name in releases.order(scene.system):
        scene.restart(name)
        assert well.time_until_well(scene.system) is not None, f"not well after {name} was replaced"
    assert releases.running(scene.system) == {version}


def empty_broker(scene: Scene) -> None:
    scene.kill_emptied(scene.broker("leader"))


def two_brokers(scene: Scene) -> None:
    names = scene.random.sample([f"kafka-{node}" for node in range(scene.system.profile.brokers)], 2)
    scene.away(names, AWAY_S)


def kill_three(scene: Scene) -> None:
    scene.kill(scene.web("stock"), scene.redis_primary(), scene.broker("leader"))


def kill_everything(scene: Scene) -> None:
    names = list(scene.system.names())
    scene.random.shuffle(names)
    for name in names:
        scene.kill(name)
        time.sleep(scene.random.random() * BETWEEN_KILLS_MAX_S)
    wait_until(lambda: well.all_run(scene.system), "every process runs")


def tear_everything(scene: Scene) -> None:
    """Cut off what no disk may have had yet: of every Redis node, and of one broker."""
    names = list(scene.system.names())
    scene.random.shuffle(names)
    lengths = torn.aof_lengths(scene.system)
    time.sleep(torn.UNSYNCED_S)
    broker = f"kafka-{scene.random.randrange(scene.system.profile.brokers)}"
    with scene.cut_short(*names):
        scene.note(f"{torn.cut_aofs(lengths)} bytes of append-only files cut off")
        scene.note(f"{torn.cut_segments(scene.system.data_folder(broker))} bytes of {broker}'s log cut off")
    wait_until(lambda: well.all_run(scene.system), "every process runs")


def slow_processor(scene: Scene) -> None:
    scene.slow(scene.processor("payment"), A_TWENTIETH, SLOW_S)


# --- what is required ------------------------------------------------------------------------------------------------

EMPTIED = "a Redis primary emptied and restarted at once"
BROKER_ROLES = {
    "leader": "the broker that leads the busiest partition",
    "controller": "the broker that is the active controller",
    "coordinator": "the broker that coordinates a group",
}


def _killed(name: str, what: str, victim: Victim, requirement: Requirement) -> Fault:
    return Fault(
        name=name,
        what=f"{what}: kill -9",
        inject=lambda scene: scene.kill(victim(scene)),
        requirement=requirement,
    )


def _frozen(name: str, what: str, victim: Victim, requirement: Requirement) -> Fault:
    return Fault(
        name=name,
        what=f"{what}: SIGSTOP {FREEZE_S:.0f} s",
        inject=lambda scene: scene.freeze(victim(scene), FREEZE_S),
        requirement=requirement,
    )


def _of_each_service(service: str) -> Iterator[Fault]:
    web, processor = methodcaller("web", service), methodcaller("processor", service)
    yield _killed(f"web-kill-{service}", f"{service} web process", web, WEB_GONE)
    yield _killed(f"processor-kill-{service}", f"{service} processor", processor, PROCESSOR_GONE)
    yield _frozen(f"processor-freeze-{service}", f"{service} processor", processor, PROCESSOR_GONE)


def _of_each_role(role: str) -> Iterator[Fault]:
    broker = methodcaller("broker", role)
    yield _killed(f"broker-kill-{role}", BROKER_ROLES[role], broker, BROKER_GONE)
    yield _frozen(f"broker-freeze-{role}", BROKER_ROLES[role], broker, BROKER_GONE)


FAULTS: tuple[Fault, ...] = (
    *(fault for service in SERVICES for fault in _of_each_service(service)),
    _frozen("web-freeze", "a web process", any_web, within(5.0)),
    _killed("redis-kill", "a Redis primary", Scene.redis_primary, REDIS_GONE),
    _frozen("redis-freeze", "a Redis primary", Scene.redis_primary, REDIS_GONE),
    Fault(name="redis-emptied", what=EMPTIED, inject=empty_redis, requirement=NOTHING_FAILS),
    Fault(name="redis-flushed", what="a Redis primary: FLUSHALL", inject=flush_redis, requirement=NOTHING_FAILS),
    Fault(
        name="redis-shard",
        what="a replica, then its primary before it is back: kill -9",
        inject=kill_shard,
        requirement=CLIENTS_ASK_AGAIN,
    ),
    *(fault for role in BROKER_ROLES for fault in _of_each_role(role)),
    Fault(
        name="broker-rolling",
        what="all brokers, one after the other: SIGTERM, restart",
        inject=restart_brokers,
        requirement=within(2.0),
        load_s_max=180.0,
        together_max=LONG_TOGETHER_MAX,
    ),
    Fault(
        name="redis-rolling",
        what="all Redis nodes, one after the other: handed over, SIGTERM, restart",
        inject=restart_redis_nodes,
        requirement=within(2.0),
        load_s_max=180.0,
        together_max=LONG_TOGETHER_MAX,
    ),
    Fault(
        name="upgrade",
        what="all processes of the services in turn, web processes last: SIGTERM, started with another version",
        inject=upgrade,
        requirement=within(2.0),
        load_s_max=300.0,
        together_max=LONG_TOGETHER_MAX,
    ),
    Fault(
        name="broker-emptied",
        what="a broker: kill -9, disk emptied, restart",
        inject=empty_broker,
        requirement=NOTHING_FAILS,
    ),
    Fault(
        name="brokers-two",
        what="two brokers away for 30 s: kill -9",
        inject=two_brokers,
        requirement=replace(NOTHING_FAILS, failures=frozenset({"503"}), is_503_late=True),
        together_max=LONG_TOGETHER_MAX,
    ),
    _killed("gateway-kill", "the gateway", lambda _scene: "gateway", CLIENTS_ASK_AGAIN),
    Fault(
        name="three-at-once",
        what="stock web, a Redis primary and a broker at once: kill -9",
        inject=kill_three,
        requirement=replace(NOTHING_FAILS, failures=frozenset({"503"}), is_503_late=True, gap_s_max=10.0),
    ),
    Fault(
        name="everything",
        what="everything: kill -9 in random order, started in random order",
        inject=kill_everything,
        requirement=replace(CLIENTS_ASK_AGAIN, well_s_max=30.0),
        together_max=LONG_TOGETHER_MAX,
    ),
    Fault(
        name="everything-torn",
        what="everything: kill -9, unsynced ends cut off all append-only files and off one broker's log",
        inject=tear_everything,
        requirement=replace(CLIENTS_ASK_AGAIN, well_s_max=30.0),
        together_max=LONG_TOGETHER_MAX,
    ),
    Fault(
        name="processor-slow",
        what="a payment processor at 5 % CPU for 12 s",
        inject=slow_processor,
        requirement=replace(NOTHING_FAILS, others_share_min=0.6),
        touches=("/payment/", "/orders/checkout/"),
    ),
    *network.FAULTS,
)
