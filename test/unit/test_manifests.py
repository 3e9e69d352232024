"""What Kubernetes and Docker Compose are told agrees with itself, with the code, and with how it runs locally."""

import json
import re
from typing import Any, NamedTuple

import pytest
import yaml

from common import config, log
from local import broker, redis_cluster
from local.profiles import PROFILES, REPOSITORY, SERVICES
from local.validate import CHART, COMPOSE, Manifest, audit, kustomized, named, redis, strimzi

IMAGES = {"order": "order:latest", "stock": "stock:latest", "payment": "user:latest"}
COPIES = {"web": 2, "processor": 2, "snapshotter": 1}
STRIMZI_SETS = {"process.roles", "controller.listener.names", "controller.quorum.request.timeout.ms"}
"""Settings of local/broker.py that Strimzi makes itself or lets nobody make."""
STRIMZI_OPERATOR = (400, 640)
"""What Strimzi's own pods, and the topic operator, request: millicores and MiB."""
MINIKUBE = (4000, 8192)
MINIKUBE_ITSELF = (950, 900)
"""kube-system and the ingress controller of a minikube."""


class Pod(NamedTuple):
    name: str
    namespace: str
    labels: dict[str, str]
    ports: dict[str, int]


def everything() -> list[Manifest]:
    return [*kustomized(), *(manifest for service in SERVICES for manifest in redis(service))]


def of_kind(*kinds: str) -> list[Manifest]:
    return [manifest for manifest in everything() if manifest["kind"] in kinds]


def workloads() -> list[Manifest]:
    return of_kind("Deployment", "StatefulSet", "Job")


def template(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]


def containers(workload: Manifest) -> list[Manifest]:
    return template(workload)["spec"]["containers"]


def the(kind: str, name: str) -> Manifest:
    return next(manifest for manifest in of_kind(kind) if manifest["metadata"]["name"] == name)


def settings_of(container: Manifest) -> dict[str, str]:
    settings = the("ConfigMap", "checkout-settings")["data"]
    own = {entry["name"]: entry.get("value", "secret") for entry in container["env"]}
    return settings | own


def properties(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- one deployable is as its siblings


@pytest.mark.parametrize("role", COPIES)
@pytest.mark.parametrize("service", SERVICES)
def test_a_deployable_is_found_by_component_and_role(service: str, role: str) -> None:
    deployment = the("Deployment", service if role == "web" else f"{service}-{role}")

    assert template(deployment)["metadata"]["labels"].items() >= {"component": service, "role": role}.items()
    assert deployment["spec"]["replicas"] == COPIES[role]
    assert [(container["image"], container["args"]) for container in containers(deployment)] == [
        (IMAGES[service], [role])
    ]


@pytest.mark.parametrize("role", ["", "-processor", "-snapshotter"])
def test_siblings_differ_in_name_and_port_only(role: str) -> None:
    texts = {service: (REPOSITORY / "k8s" / f"{service}{role}.yaml").read_text() for service in SERVICES}
    alike = {_anonymous(text, service) for service, text in texts.items()}
    assert len(alike) == 1


def _anonymous(text: str, service: str) -> str:
    text = text.partition("apiVersion")[2]
    image = IMAGES[service].partition(":")[0]
    return re.sub(
        r"\b500\d\b", "PORT", re.sub(rf"\bimage: {image}\b", "image: NAME", re.sub(rf"\b{service}\b", "NAME", text))
    )


# --- settings


@pytest.mark.parametrize(
    "workload", [w for w in workloads() if "checkout/uses-kafka" in template(w)["metadata"]["labels"]], ids=named
)
def test_every_process_accepts_its_settings(workload: Manifest) -> None:
    for container in containers(workload):
        environment = settings_of(container)
        settings = config.load(environment)
        assert settings.replication == 3
        port = container.get("ports", [{"containerPort": 5000}])[0]["containerPort"]
        assert settings.bind in (f"0.0.0.0:{port}", "127.0.0.1:5000")


def test_two_gateways_leave_threads_for_health_checks() -> None:
    """A process gets as many requests again by the Service's one address: 20 x 503 when a Redis pod was deleted."""
    gateway = the("Deployment", "gateway")
    each = int(
        next(entry for entry in containers(gateway)[0]["env"] if entry["name"] == "GATEWAY_SERVER_MAXCONN")["value"]
    )
    threads = int(the("ConfigMap", "checkout-settings")["data"]["CHECKOUT_THREADS"])
    assert gateway["spec"]["replicas"] * 2 * each + 16 <= threads


def test_each_service_asks_its_own_redis() -> None:
    for service in SERVICES:
        nodes = the("StatefulSet", f"{service}-redis")
        count, name = nodes["spec"]["replicas"], nodes["spec"]["serviceName"]
        addresses = ",".join(f"{service}-redis-{number}.{name}:6379" for number in range(count))
        for role in COPIES:
            container = containers(the("Deployment", service if role == "web" else f"{service}-{role}"))[0]
            assert settings_of(container)["CHECKOUT_REDIS"] == addresses
            secret = next(e for e in container["env"] if e["name"] == "CHECKOUT_REDIS_PASSWORD")["valueFrom"][
                "secretKeyRef"
            ]
            assert secret["key"] in the("Secret", secret["name"])["stringData"]


def test_no_service_can_be_mistaken_for_a_setting() -> None:
    assert all(template(workload)["spec"]["enableServiceLinks"] is False for workload in workloads())


def test_partitions_and_replication_are_kafkas() -> None:
    settings = config.load(settings_of(containers(the("Deployment", "order"))[0]))
    kafka = _kafka()["config"]

    assert set(settings.topology.values()) == {kafka["num.partitions"]}
    assert settings.replication == kafka["default.replication.factor"] == kafka["min.insync.replicas"] + 1


def test_strimzi_makes_the_topics_that_set_up_makes() -> None:
    topics = {
        manifest["metadata"]["name"]: manifest["spec"] for manifest in strimzi() if manifest["kind"] == "KafkaTopic"
    }
    kinds = ("inbox", "dead-letters", log.SNAPSHOTS, log.MANIFESTS)

    assert topics.keys() == {f"{service}-{kind}" for service in SERVICES for kind in kinds}
    for name, spec in topics.items():
        assert {key: as_text(value) for key, value in spec["config"].items()} == log.TOPIC_CONFIG
        assert spec.get("partitions") == (1 if name.endswith("dead-letters") else None)
        assert "replicas" not in spec


def _kafka() -> Manifest:
    return next(manifest for manifest in strimzi() if manifest["kind"] == "Kafka")["spec"]["kafka"]


@pytest.fixture
def local_broker() -> dict[str, str]:
    """Settings of a local broker of three, its place excepted."""
    place = {"node.id", "controller.quorum.voters", "log.dirs", "listeners", "advertised.listeners"}
    settings = properties(broker.properties(PROFILES["ha"], 0))
    return {key: value for key, value in settings.items() if key not in place}


def test_strimzis_brokers_are_set_as_local_ones(local_broker: dict[str, str]) -> None:
    strimzis = {key: as_text(value) for key, value in _kafka()["config"].items() if key != "num.partitions"}
    assert strimzis == {key: value for key, value in local_broker.items() if key not in STRIMZI_SETS}


def test_brokers_in_compose_are_set_as_local_ones(local_broker: dict[str, str]) -> None:
    composed = properties((REPOSITORY / "compose" / "kafka.properties").read_text())
    per_node = {key for key in local_broker if key.endswith((".factor", ".replicas", ".isr"))}
    assert composed.items() >= {key: value for key, value in local_broker.items() if key not in per_node}.items()
    script = (REPOSITORY / "compose" / "kafka.sh").read_text()
    assert all(f'echo "{key}=' in script for key in per_node)


def test_redis_is_set_as_a_local_one() -> None:
    settings = dict(line.split(" ", 1) for line in redis_cluster.settings(PROFILES["ha"], 0).splitlines())
    charts = dict(
        line.split(" ", 1) for line in (CHART / "files" / "redis.conf").read_text().splitlines() if line[0] != "#"
    )
    shared = charts.keys() & settings.keys()

    assert len(shared) > 8
    assert {key: charts[key] for key in shared} == {key: settings[key] for key in shared}


def test_the_audit_asks_each_services_redis() -> None:
    (container,) = audit()["spec"]["containers"]
    asked = dict(argument.removeprefix("--redis=").split("=") for argument in container["args"] if "=" in argument)

    assert asked.keys() == set(SERVICES)
    for service, addresses in asked.items():
        own = settings_of(containers(the("Deployment", service))[0])["CHECKOUT_REDIS"].split(",")
        assert set(addresses.split(",")) <= set(own)


# --- safety


@pytest.mark.parametrize("spec", [*(template(workload)["spec"] for workload in workloads()), audit()["spec"]])
def test_pods_are_restricted(spec: Manifest) -> None:
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["imagePullPolicy"] == "IfNotPresent"


def test_what_runs_twice_never_stops_twice_at_once() -> None:
    budgets = [budget["spec"] for budget in of_kind("PodDisruptionBudget")]
    for workload in of_kind("Deployment", "StatefulSet"):
        labels = template(workload)["metadata"]["labels"].items()
        ours = [spec["maxUnavailable"] for spec in budgets if spec["selector"]["matchLabels"].items() <= labels]
        assert ours == ([1] if workload["spec"]["replicas"] > 1 else [])


def test_everything_fits_minikube() -> None:
    """4 CPUs and 8 GB: kubectl-drills.md.  A surge of a rolling update included."""
    pool = next(manifest for manifest in strimzi() if manifest["kind"] == "KafkaNodePool")["spec"]
    cpu, memory = (a + b for a, b in zip(STRIMZI_OPERATOR, MINIKUBE_ITSELF, strict=True))
    cpu += pool["replicas"] * _millicores(pool["resources"]["requests"]["cpu"])
    memory += pool["replicas"] * _mebibytes(pool["resources"]["requests"]["memory"])
    for workload in workloads():
        copies = workload["spec"].get("replicas", 1)
        for container in containers(workload):
            cpu += copies * _millicores(container["resources"]["requests"]["cpu"])
            memory += copies * _mebibytes(container["resources"]["requests"]["memory"])
            assert "memory" in container["resources"]["limits"]
    assert cpu + 100 <= MINIKUBE[0]
    assert memory + 256 <= MINIKUBE[1]


def _millicores(text: str) -> int:
    return int(text.removesuffix("m"))


def _mebibytes(text: str) -> int:
    return int(text.removesuffix("Mi"))


# --- compose


def test_compose_runs_the_images_on_the_ports_that_the_gateway_asks() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    servers = (REPOSITORY / "gateway" / "servers.cfg").read_text()
    for service in SERVICES:
        dockerfile = (REPOSITORY / service / "Dockerfile").read_text()
        port = re.search(r"CHECKOUT_BIND=0\.0\.0\.0:(\d+)", dockerfile)[1]
        assert services[service]["image"] == IMAGES[service]
        assert f'"{service}${{GATEWAY_PODS}}:{port}"' in servers
        assert containers(the("Deployment", service))[0]["ports"] == [{"name": "http", "containerPort": int(port)}]


def test_every_one_shot_of_compose_is_waited_for() -> None:
    """`up --wait` fails when a container ends that nobody waits for."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    awaited = {
        name
        for service in services.values()
        for name, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == {name for name, service in services.items() if service["restart"] in ("no", "on-failure")}


# --- who may speak to whom

KAFKA = Pod("Kafka", "kafka", {"strimzi.io/cluster": "my-cluster"}, {})
CLIENT = Pod("anybody", "elsewhere", {}, {})
PROMETHEUS = Pod("Prometheus", "monitoring", {}, {})
DNS = Pod("DNS", "kube-system", {}, {})


def pod(kind: str, name: str) -> Pod:
    found = template(the(kind, name))
    ports = {port["name"]: port["containerPort"] for c in found["spec"]["containers"] for port in c.get("ports", [])}
    return Pod(name, "default", found["metadata"]["labels"], ports)


def processes(service: str) -> list[Pod]:
    return [pod("Deployment", service if role == "web" else f"{service}-{role}") for role in COPIES]


def connections() -> list[tuple[Pod, Pod, int]]:
    """Return every connection that the system makes: from, to, port."""
    gateway, set_up = pod("Deployment", "gateway"), pod("Job", "set-up")
    auditor = Pod("audit", "default", audit()["metadata"]["labels"], {})
    found = [
        (CLIENT, gateway, 8000),
        (PROMETHEUS, gateway, 8404),
        (gateway, DNS, 53),
        (set_up, KAFKA, 9092),
        (set_up, DNS, 53),
        (auditor, KAFKA, 9092),
        (auditor, DNS, 53),
    ]
    for service in SERVICES:
        web, nodes, create = (
            pod("Deployment", service),
            pod("StatefulSet", f"{service}-redis"),
            pod("Job", f"{service}-redis-create"),
        )
        found += [(gateway, web, web.ports["http"]), (auditor, nodes, 6379)]
        for process in processes(service):
            found += [
                (process, nodes, 6379),
                (process, KAFKA, 9092),
                (process, DNS, 53),
                (PROMETHEUS, process, process.ports["http"]),
            ]
        found += [
            (nodes, nodes, 6379),
            (nodes, nodes, 16379),
            (create, nodes, 6379),
            (nodes, DNS, 53),
            (create, DNS, 53),
        ]
    return found


def row(source: Pod, target: Pod, port: int) -> str:
    out, into = letting_out(source, target, port), letting_in(source, target, port)
    return f"| {source.name} | {target.name} | {port} | {', '.join(out) or '-'} | {', '.join(into) or '-'} |"


def letting_out(source: Pod, target: Pod, port: int) -> list[str]:
    """Return the names of the policies that let it out; "no policy" where none restricts the source."""
    policies = [policy for policy in policies_of(source) if "Egress" in policy["spec"]["policyTypes"]]
    if not policies:
        return ["no policy"]
    return [
        name(policy)
        for policy in policies
        if any(_opens(rule, "to", target, port) for rule in policy["spec"]["egress"])
    ]


def letting_in(source: Pod, target: Pod, port: int) -> list[str]:
    if target is KAFKA:
        (listener,) = _kafka()["listeners"]
        return (
            ["Strimzi's"] if listener["port"] == port and _names(listener["networkPolicyPeers"], source, KAFKA) else []
        )
    policies = [policy for policy in policies_of(target) if "Ingress" in policy["spec"]["policyTypes"]]
    if not policies:
        return ["no policy"]
    ports = target.ports
    return [
        name(policy)
        for policy in policies
        if any(_opens(rule, "from", source, port, ports) for rule in policy["spec"]["ingress"])
    ]


def policies_of(pod: Pod) -> list[Manifest]:
    if pod.namespace != "default":
        return []
    return [policy for policy in of_kind("NetworkPolicy") if _selects(policy["spec"]["podSelector"], pod.labels)]


def name(policy: Manifest) -> str:
    return policy["metadata"]["name"]


def _opens(rule: Manifest, direction: str, other: Pod, port: int, ports: dict[str, int] | None = None) -> bool:
    opened = [
        ports[entry["port"]] if isinstance(entry["port"], str) and ports and entry["port"] in ports else entry["port"]
        for entry in rule["ports"]
    ]
    here = Pod("", "default", {}, {})
    return port in opened and (direction not in rule or _names(rule[direction], other, here))


def _names(peers: list[Manifest], other: Pod, here: Pod) -> bool:
    return any(_is_peer(peer, other, here) for peer in peers)


def _is_peer(peer: Manifest, other: Pod, here: Pod) -> bool:
    namespace = {"kubernetes.io/metadata.name": other.namespace}
    in_reach = (
        _selects(peer["namespaceSelector"], namespace)
        if "namespaceSelector" in peer
        else other.namespace == here.namespace
    )
    return in_reach and _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, f"not understood here: {json.dumps(selector)}"
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize(("source", "target", "port"), connections(), ids=lambda value: getattr(value, "name", value))
def test_every_connection_is_allowed_at_both_ends(source: Pod, target: Pod, port: int) -> None:
    assert letting_out(source, target, port)
    assert letting_in(source, target, port)


def test_the_documentation_has_the_table_of_connections() -> None:
    document = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    rows = dict.fromkeys(row(*connection) for connection in connections())
    missing = [line for line in rows if "stock" not in line and "payment" not in line and line not in document]
    assert not missing, "\n".join(["not in docs/kubernetes.md:", *missing])


def test_nobody_else_is_let_in() -> None:
    gateway = pod("Deployment", "gateway")
    for service in SERVICES:
        web, *others = processes(service)
        nodes = pod("StatefulSet", f"{service}-redis")
        strangers = [other for stranger in SERVICES if stranger != service for other in processes(stranger)]
        for other in [*strangers, gateway, CLIENT]:
            assert not letting_in(other, nodes, 6379)
            assert not letting_in(other, nodes, 16379)
        for other in [*strangers, CLIENT, nodes]:
            assert not letting_in(other, web, web.ports["http"])
        for process in others:
            assert not letting_in(gateway, process, process.ports["http"])
        assert not letting_in(nodes, KAFKA, 9092)
    assert not letting_in(gateway, KAFKA, 9092)
    assert not letting_in(CLIENT, gateway, 8404)
