"""Programs: every process of a profile, and the command, environment and manners of each."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from local import broker, gateway
from local.profiles import HOST, REPOSITORY, SERVICES, WEB_THREADS, Profile, addresses

GROUPS = ("data", "processors", "snapshotters", "web", "gateway")
"""In the order in which they start; they stop in the reverse order."""

Environment = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process.  A group starts and stops together."""

    name: str
    group: str
    command: tuple[str, ...]
    folder: Path = REPOSITORY
    environment: Environment = field(default_factory=dict)
    stop_wait_s: int = 10


def programs(profile: Profile) -> tuple[Program, ...]:
    """Return all of them, in the order of their groups."""
    brokers = [_broker(profile, node) for node in range(profile.brokers)]
    nodes = [_redis(profile, node) for node in range(len(profile.redis_ports))]
    processors = [_processor(profile, service, copy) for service in SERVICES for copy in range(profile.copies)]
    webs = [_web(profile, service, copy) for service in SERVICES for copy in range(profile.copies)]
    snapshotters = [_snapshotter(profile, service) for service in SERVICES]
    return (*brokers, *nodes, *processors, *snapshotters, *webs, _gateway(profile))


def service_environment(profile: Profile) -> Environment:
    """Return what every service process, and the services' tests, need to know of the profile."""
    partitions = {f"CHECKOUT_{service.upper()}_PARTITIONS": str(profile.partitions) for service in SERVICES}
    return partitions | {
        "CHECKOUT_KAFKA": addresses(profile.kafka_ports),
        "CHECKOUT_REDIS": addresses(profile.redis_ports),
        "CHECKOUT_REDIS_PASSWORD": "",
        "CHECKOUT_REPLICATION": str(min(profile.brokers, 3)),
        "CHECKOUT_THREADS": str(WEB_THREADS),
        "CHECKOUT_LOG_LEVEL": "INFO",
    }


def service_command(service: str, role: str) -> tuple[str, ...]:
    """Return the command of `setup`, `web` or `processor` of a service."""
    return (sys.executable, "-m", f"{service}.app", role)


def _broker(profile: Profile, node: int) -> Program:
    settings = profile.conf / f"kafka-{node}.properties"
    return Program(name=f"kafka-{node}", group="data", command=broker.start_command(profile, node, settings))


def _redis(profile: Profile, node: int) -> Program:
    command = (sys.executable, "-m", "local.redis_node", profile.name, str(node))
    return Program(name=f"redis-{node}", group="data", command=command)


def _processor(profile: Profile, service: str, copy: int) -> Program:
    return _service(profile, f"{service}-processor-{copy}", "processors", profile.processor_ports(service)[copy])


def _snapshotter(profile: Profile, service: str) -> Program:
    return _service(profile, f"{service}-snapshotter", "snapshotters", profile.snapshotter_port(service))


def _web(profile: Profile, service: str, copy: int) -> Program:
    return _service(profile, f"{service}-web-{copy}", "web", profile.web_ports(service)[copy])


def _service(profile: Profile, name: str, group: str, port: int) -> Program:
    service, role = name.split("-")[:2]
    # Two malloc arenas: with glibc's default every thread may keep one of its own.
    own = {"CHECKOUT_BIND": f"{HOST}:{port}", "MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}
    return Program(
        name=name,
        group=group,
        command=service_command(service, role),
        folder=profile.code,
        environment=service_environment(profile) | own,
        stop_wait_s=30,
    )


def _gateway(profile: Profile) -> Program:
    return Program(
        name="gateway",
        group="gateway",
        command=gateway.start_command(profile),
        environment=gateway.environment(profile),
    )
