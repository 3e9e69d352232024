"""Checks everything that Kubernetes and Docker Compose are told, without either: `python -m local.validate`.

* the chart is linted and rendered for each service, k8s/ is built, and every object fits the schemas of Kubernetes
* `kubectl apply -f k8s/` and `-k k8s/` apply the same objects
* k8s/gateway-config.yaml is what `make manifests` would write now
* docker-compose.yml fits the Compose specification, in every profile where Docker Compose itself is there to say so
* with --crds FOLDER, Strimzi's objects fit Strimzi's definitions
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import yaml
from compose_spec import PyCompose

from local import manifests
from local.profiles import REPOSITORY, SERVICES

KUBERNETES_VERSIONS = ("1.30", "1.34")
TOOLS = REPOSITORY / ".cache" / "kube-tools"
K8S = REPOSITORY / "k8s"
CHART = REPOSITORY / "helm" / "redis-cluster"
AUDIT = REPOSITORY / "audit" / "pod.yaml"
STRIMZI = REPOSITORY / "strimzi-kafka-config" / "kafka-helm-values.yaml"
COMPOSE = REPOSITORY / "docker-compose.yml"
COMPOSE_PROFILES = ((), ("ha",), ("monitoring",), ("ha", "monitoring"))

Manifest = dict[str, Any]


def applied() -> list[Manifest]:
    """Return what `kubectl apply -f k8s/` applies."""
    return [manifest for path in sorted(K8S.glob("*.yaml")) for manifest in _parsed(path.read_text())]


@cache
def kustomized() -> tuple[Manifest, ...]:
    """Return what `kubectl apply -k k8s/` applies."""
    return tuple(_parsed(_run("kubectl", "kustomize", str(K8S))))


@cache
def redis(service: str) -> tuple[Manifest, ...]:
    """Return the Redis Cluster of a service, as deploy-charts-minikube.sh installs it."""
    clients = f'clients=[{{"component":"{service}"}},{{"role":"audit"}}]'
    return tuple(_parsed(_run("helm", "template", f"{service}-redis", str(CHART), "--set-json", clients)))


def audit() -> Manifest:
    """Return the pod in which the audit runs."""
    (found,) = _parsed(AUDIT.read_text())
    return found


def strimzi() -> list[Manifest]:
    """Return what Strimzi is told."""
    return list(_parsed(STRIMZI.read_text()))


def named(manifest: Manifest) -> str:
    """Return an object's kind and name."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


@click.command(help=__doc__)
@click.option("--crds", type=click.Path(exists=True, path_type=Path), help="Folder of Strimzi's definitions.")
def main(crds: Path | None) -> None:
    """Print a line a problem; the exit status says whether there is one."""
    problems = [
        *_lint(),
        *_misfits(),
        *_differences(),
        *_stale(),
        *_compose_problems(),
        *(_strimzi_misfits(crds) if crds else ()),
    ]
    for problem in problems:
        click.echo(problem)
    sys.exit(bool(problems))


def _lint() -> Iterator[str]:
    done = subprocess.run([TOOLS / "helm", "lint", "--quiet", CHART], capture_output=True, text=True, check=False)
    if done.returncode:
        yield done.stdout + done.stderr


def _misfits() -> Iterator[str]:
    for manifest in (*kustomized(), audit(), *(manifest for service in SERVICES for manifest in redis(service))):
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as why:
                yield f"{named(manifest)} does not fit Kubernetes {version}: {why.message} at {list(why.path)}"


def _differences() -> Iterator[str]:
    plain = {named(manifest): manifest for manifest in applied()}
    built = {named(manifest): manifest for manifest in kustomized()}
    for name in sorted(plain.keys() | built.keys()):
        if plain.get(name) != built.get(name):
            yield f"{name} differs between kubectl apply -f k8s/ and -k k8s/: is its file in k8s/Kustomization?"


def _stale() -> Iterator[str]:
    for path, text in ((manifests.CONFIG_MAP, manifests.config_map()), (manifests.GATEWAY, manifests.gateway())):
        if path.read_text() != text:
            yield f"{path.relative_to(REPOSITORY)} is not of the gateway's files as they are now: make manifests"


def _compose_problems() -> Iterator[str]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
        try:
            PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text))).validate()
        except ValueError as why:
            yield f"docker-compose.yml: {why}"
        return
    for profiles in COMPOSE_PROFILES:
        options = [f"--profile={profile}" for profile in profiles]
        command = ["docker", "compose", *options, "config", "--quiet"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"docker-compose.yml, profiles {profiles}: {done.stderr}"


def _strimzi_misfits(crds: Path) -> Iterator[str]:
    schemas = {}
    for path in crds.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        schemas[definition["names"]["kind"]] = _strict(definition["versions"][0]["schema"]["openAPIV3Schema"])
    for manifest in strimzi():
        content = {"spec": manifest["spec"]}
        for error in jsonschema.Draft202012Validator(schemas[manifest["kind"]]).iter_errors(content):
            yield f"{named(manifest)}: {error.message} at {error.json_path}"


def _strict(schema: Any) -> Any:
    """Refuse fields that are not known, as the API server does when asked to validate strictly."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(part) for key, part in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields")
    return strict | {"additionalProperties": False} if closed and "additionalProperties" not in schema else strict


def _parsed(text: str) -> Iterator[Manifest]:
    return (manifest for manifest in yaml.safe_load_all(text) if manifest)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
