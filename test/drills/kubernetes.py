"""The faults in a Kubernetes cluster: pods deleted, nodes cut off and drained, everything replaced one by one."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator

from drills.cluster import KAFKA, Cluster, Pod, kubectl, pods
from drills.fault import Fault, Inject, within
from drills.requirement import CLIENTS_ASK_AGAIN, NOTHING_FAILS, Requirement
from drills.scene import Scene
from msgspec.structs import replace

from local.profiles import SERVICES

POD_START_S = 6.0
"""Kubernetes notices, schedules and starts a pod."""
CUT_S = 60.0
DRAIN_S = 60.0
"""Where a volume is bound to its node, as on k8slab, its pod cannot go elsewhere: a second Redis node is not let go."""
ROLES = ("web", "processor", "snapshotter")
ROLLOUT_TIMEOUT_S = 600


def on_kubernetes(name: str) -> list[Fault]:
    """Return the fault of this name, or those whose names begin with it; all that can be done for no name."""
    possible = [fault for fault in FAULTS if "DRILLS_CUT" in os.environ or fault.inject is not cut_node_off]
    exact = [fault for fault in possible if fault.name == name]
    return exact or [fault for fault in possible if fault.name.startswith(name)]


# --- what is done


def delete(*named: Pod) -> Inject:
    """Delete these pods, all at once and without waiting for any of them."""

    def inject(scene: Scene) -> None:
        commands = [["kubectl", "delete", "pod", pod.name, "-n", pod.namespace, "--force"] for pod in named]
        for pod in named:
            scene.victims.add(pod.name)
            scene.note(f"kubectl delete pod {pod.name} --force, on {pod.node}")
        running = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for each in commands]
        assert not any(process.wait() for process in running), f"not all of {scene.victims} were deleted"

    return inject


def delete_one(component: str, role: str) -> Inject:
    """Delete one of a service's pods."""
    return lambda scene: delete(_one_of(scene, f"component={component},role={role}"))(scene)


def delete_gateway(scene: Scene) -> None:
    """Delete one of the gateways."""
    delete(_one_of(scene, "component=gateway"))(scene)


def delete_redis(scene: Scene) -> None:
    """Delete a Redis primary that holds something."""
    delete(_primary(scene))(scene)


def delete_broker(scene: Scene) -> None:
    """Delete the broker that leads a partition of some inbox."""
    delete(_leader(scene))(scene)


def delete_three(scene: Scene) -> None:
    """Delete a stock web pod, a Redis primary and a broker."""
    delete(_one_of(scene, "component=stock,role=web"), _primary(scene), _leader(scene))(scene)


def delete_everything(scene: Scene) -> None:
    """Delete every pod there is, in both namespaces."""
    scene.note("kubectl delete pod --all --force, in both namespaces")
    for namespace in ((), ("-n", KAFKA)):
        kubectl("delete", "pod", "--all", "--force", "--wait=false", *namespace)


def cut_node_off(scene: Scene) -> None:
    """Take the network from a node that is not the first, and give it back.

    Not from the one that has the cluster's DNS, where that is a single pod: nobody would find anybody, wherever he is.
    """
    names = {pod.node for pod in pods("-n", "kube-system", "-l", "k8s-app=kube-dns")}
    number = scene.random.choice([each for each in _numbers() if names != {f"node{each}"}])
    _cut(number, "down")
    scene.note(f"node{number} is cut off")
    time.sleep(CUT_S)
    _cut(number, "up")
    scene.note(f"node{number} is connected")


def drain_node(scene: Scene) -> None:
    """Have a node that is not the first emptied, and let it take pods again."""
    node = f"node{scene.random.choice(_numbers())}"
    scene.note(f"kubectl drain {node}")
    command = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={DRAIN_S:.0f}s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    scene.note(f"kubectl drain {node}: exit {done.returncode}")
    kubectl("uncordon", node)
    scene.note(f"kubectl uncordon {node}")


def roll_service(service: str) -> Inject:
    """Replace all pods of a service, one by one: readers of the log before its writers."""
    names = [f"deployment/{service}-snapshotter", f"deployment/{service}-processor", f"deployment/{service}"]
    return lambda scene: _roll(scene, *names)


def roll_gateway(scene: Scene) -> None:
    """Replace the gateways, one by one."""
    _roll(scene, "deployment/gateway")


def roll_redis(scene: Scene) -> None:
    """Replace all nodes of a Redis Cluster, one by one."""
    _roll(scene, f"statefulset/{scene.random.choice(SERVICES)}-redis")


def _roll(scene: Scene, *names: str) -> None:
    for name in names:
        kubectl("rollout", "restart", name)
        scene.note(f"kubectl rollout restart {name}")
        command = ["kubectl", "rollout", "status", name, f"--timeout={ROLLOUT_TIMEOUT_S}s"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        scene.note(f"{name} is rolled out")


def _one_of(scene: Scene, selector: str) -> Pod:
    return scene.random.choice([pod for pod in pods("-l", selector) if not pod.is_ending])


def _primary(scene: Scene) -> Pod:
    name = _cluster(scene).redis_primary(scene.random.choice(SERVICES))
    return next(pod for pod in pods() if pod.name == name)


def _leader(scene: Scene) -> Pod:
    name = _cluster(scene).leader(f"{scene.random.choice(SERVICES)}-inbox")
    return next(pod for pod in pods() if pod.name == name)


def _cluster(scene: Scene) -> Cluster:
    assert isinstance(scene.system, Cluster)
    return scene.system


def _numbers() -> list[int]:
    names = kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split()
    return list(range(2, len(names) + 1))


def _cut(number: int, state: str) -> None:
    command = shlex.split(os.environ["DRILLS_CUT"].format(number=number, state=state))
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


# --- what is required


def _row(name: str, what: str, inject: Inject, requirement: Requirement, load_s_max: float = 180.0) -> Fault:
    return Fault(name=f"k8s-{name}", what=what, inject=inject, requirement=requirement, load_s_max=load_s_max)


def _of_each_service(service: str) -> Iterator[Fault]:
    yield _row(
        f"web-{service}",
        f"a {service} web pod: kubectl delete --force",
        delete_one(service, "web"),
        within(2.0 + POD_START_S),
    )
    yield _row(
        f"processor-{service}",
        f"a {service} processor pod: kubectl delete --force",
        delete_one(service, "processor"),
        within(3.5 + POD_START_S),
    )
    yield _row(
        f"rolling-{service}",
        f"all pods of {service} replaced: kubectl rollout restart",
        roll_service(service),
        replace(NOTHING_FAILS, well_s_max=120.0),
        600.0,
    )


FAULTS: tuple[Fault, ...] = (
    *(fault for service in SERVICES for fault in _of_each_service(service)),
    _row("redis", "a Redis primary's pod: kubectl delete --force", delete_redis, within(4.0 + POD_START_S)),
    _row(
        "broker",
        "the pod of a broker that leads a partition: kubectl delete --force",
        delete_broker,
        within(4.5 + POD_START_S),
    ),
    _row("gateway", "a gateway pod: kubectl delete --force", delete_gateway, NOTHING_FAILS),
    _row(
        "three",
        "stock web, a Redis primary and a broker at once: kubectl delete --force",
        delete_three,
        within(30.0),
    ),
    _row(
        "everything",
        "all pods at once: kubectl delete --all --force",
        delete_everything,
        replace(CLIENTS_ASK_AGAIN, well_s_max=240.0),
        300.0,
    ),
    _row("node-cut", "a node cut off for 60 s", cut_node_off, replace(CLIENTS_ASK_AGAIN, well_s_max=240.0), 400.0),
    _row(
        "node-drained",
        "a node drained, and allowed again",
        drain_node,
        replace(CLIENTS_ASK_AGAIN, well_s_max=240.0),
        600.0,
    ),
    _row(
        "rolling-gateway",
        "the gateways replaced: kubectl rollout restart",
        roll_gateway,
        replace(NOTHING_FAILS, well_s_max=120.0),
        300.0,
    ),
    _row(
        "rolling-redis",
        "all nodes of a Redis Cluster replaced: kubectl rollout restart",
        roll_redis,
        replace(NOTHING_FAILS, well_s_max=120.0),
        600.0,
    ),
)
