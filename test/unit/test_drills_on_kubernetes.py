"""What drills on Kubernetes make of what kubectl prints, and whom they hit."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from drills import cluster, kubernetes
from drills.scene import Scene

from local.profiles import SERVICES
from local.validate import kustomized


def deployment(**status: int) -> dict[str, Any]:
    return {"metadata": {"generation": 3}, "spec": {"replicas": 2}, "status": {"observedGeneration": 3} | status}


@pytest.mark.parametrize(
    ("item", "is_complete"),
    [
        (deployment(replicas=2, readyReplicas=2, updatedReplicas=2), True),
        (deployment(replicas=2, readyReplicas=1, updatedReplicas=2), False),
        (deployment(replicas=3, readyReplicas=3, updatedReplicas=2), False),
        (deployment(replicas=2, readyReplicas=2, updatedReplicas=2, observedGeneration=2), False),
        (deployment(), False),
    ],
)
def test_a_workload_is_there_when_all_its_pods_are_new_and_ready(
    item: dict[str, Any],
    is_complete: bool,  # noqa: FBT001 -- a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "kubectl", lambda *_: json.dumps({"items": [item]}))

    assert cluster.all_are_ready() is is_complete


def test_a_redis_cluster_is_followed_when_each_primary_has_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["cluster_state:ok\r", *["role:master\r"] * 3, *["role:slave\r", "master_link_status:up\r"] * 3]
    monkeypatch.setattr(cluster, "_in_redis", lambda *_: "\n".join(told))
    assert cluster.are_followed()

    told[-1] = "master_link_status:down\r"
    assert not cluster.are_followed()


def test_deaths_of_pods_that_are_gone_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pod("order-1", restarts=2), pod("order-2", restarts=1)
    monkeypatch.setattr(cluster, "pods", lambda: [first])
    restarts = cluster.Restarts(cluster.Cluster().profile)
    assert restarts.deaths() == {"order": 2}

    monkeypatch.setattr(cluster, "pods", lambda: [second])
    assert restarts.deaths() == {"order": 3}


def pod(name: str, restarts: int = 0) -> cluster.Pod:
    labels = {cluster.APPLICATION: "order"}
    return cluster.Pod(name, "default", name, "node1", labels, restarts, is_ready=True, is_ending=False)


@pytest.mark.parametrize("fault", [each for each in kubernetes.FAULTS if each.name.startswith(("k8s-web", "k8s-proc"))])
def test_who_is_deleted_is_found_by_labels_that_there_are(
    fault: kubernetes.Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kubernetes, "pods", lambda _, selector: asked.append(selector) or [pod("it")])
    monkeypatch.setattr(kubernetes, "delete", lambda *_: lambda scene: scene.victims.add("it"))
    scene = Scene(cluster.Cluster(), Random(1))

    fault.inject(scene)

    wanted = dict(part.split("=") for part in asked[0].split(",")).items()
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in kustomized() if each["kind"] == "Deployment"]
    assert scene.victims == {"it"}
    assert sum(wanted <= each.items() for each in labels) == 1


def test_a_node_is_cut_off_only_where_it_is_known_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRILLS_CUT", raising=False)
    assert "k8s-node-cut" not in [fault.name for fault in kubernetes.on_kubernetes("")]

    monkeypatch.setenv("DRILLS_CUT", "cut {number} {state}")
    assert [fault.name for fault in kubernetes.on_kubernetes("k8s-node-cut")] == ["k8s-node-cut"]


def test_every_service_is_drilled() -> None:
    names = {fault.name for fault in kubernetes.on_kubernetes("")}

    assert names >= {f"k8s-{kind}-{service}" for kind in ("web", "processor", "rolling") for service in SERVICES}
