"""Another version of the services: a copy of their code that says so, and in which order processes go over to it."""

from __future__ import annotations

import re
import shutil
import time

import requests

from common import __version__
from local.profiles import HOST, REPOSITORY, SERVICES
from local.system import System

PACKAGES = ("common", *SERVICES)
ROLES = ("snapshotter", "processor", "web")
READERS_FIRST = ("stock", "payment", "order")
"""Order sends what the others must be able to read; their answers to it are no news to it."""
VERSION = re.compile(r'checkout_build_info{version="(.*)"}')


def switch(system: System) -> str:
    """Copy the services' code as another version; whatever starts from now on runs it.  Return the version."""
    version = f"{__version__}+{time.time_ns()}"
    folder = system.profile.home / "releases" / version
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    itself = folder / "common" / "__init__.py"
    itself.write_text(itself.read_text().replace(f'"{__version__}"', f'"{version}"'))
    system.use_code(folder)
    return version


def order(system: System) -> list[str]:
    """Return all processes of the services, in the order in which they are replaced: who writes the log comes last."""
    names = system.names()
    return [
        name for role in ROLES for service in READERS_FIRST for name in names if name.startswith(f"{service}-{role}")
    ]


def running(system: System) -> set[str]:
    """Return the versions that the services' processes run."""
    ports = [port for service in SERVICES for port in _ports(system, service)]
    texts = (requests.get(f"http://{HOST}:{port}/metrics", timeout=5).text for port in ports)
    return {version for text in texts for version in VERSION.findall(text)}


def _ports(system: System, service: str) -> tuple[int, ...]:
    profile = system.profile
    return (*profile.processor_ports(service), *profile.web_ports(service), profile.snapshotter_port(service))
