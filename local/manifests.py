"""What Kubernetes is told of the gateway, made of the gateway's own files: `python -m local.manifests`.

A ConfigMap that is committed, not generated when it is applied, because `kubectl apply -f k8s/` generates nothing.
"""

import hashlib
import re

from local.gateway import CONFIG
from local.profiles import REPOSITORY

SERVERS = REPOSITORY / "gateway" / "servers.cfg"
CONFIG_MAP = REPOSITORY / "k8s" / "gateway-config.yaml"
GATEWAY = REPOSITORY / "k8s" / "gateway.yaml"

_HEAD = """\
# Made of gateway/haproxy.cfg and gateway/servers.cfg by `make manifests`.

apiVersion: v1
kind: ConfigMap
metadata: {name: gateway, labels: {component: gateway, app.kubernetes.io/part-of: checkout}}
data:
"""


def config_map() -> str:
    """Return the text of k8s/gateway-config.yaml."""
    files = (f"  {path.name}: |\n{_indented(path.read_text())}" for path in (CONFIG, SERVERS))
    return _HEAD + "".join(files)


def gateway() -> str:
    """Return the text of k8s/gateway.yaml with the checksum of the configuration: another one is a rolling update."""
    checksum = hashlib.sha256(config_map().encode()).hexdigest()
    text, count = re.subn(r'(checkout/configuration:) "\w*"', rf'\1 "{checksum}"', GATEWAY.read_text())
    assert count == 1, f"{GATEWAY} has no checkout/configuration"
    return text


def _indented(text: str) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())


if __name__ == "__main__":
    CONFIG_MAP.write_text(config_map())
    GATEWAY.write_text(gateway())
