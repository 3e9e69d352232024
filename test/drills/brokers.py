"""Which broker is what at this moment, and whether every replica has everything."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from local.profiles import SERVICES
from local.system import System

ANSWER_TIMEOUT_MS = 2000
INBOXES = tuple(f"{service}-inbox" for service in SERVICES)


def leader_of_the_busiest(system: System) -> str:
    """Return the broker that leads the partition with the most bytes."""
    topics = _in_admin(system, lambda admin: admin.describe_topics(list(INBOXES)))
    leaders = {
        f"{topic['topic']}-{partition['partition']}": f"kafka-{partition['leader']}"
        for topic in topics
        for partition in topic["partitions"]
    }
    return leaders[max(leaders, key=lambda name: _bytes(system, leaders[name], name))]


def controller(system: System) -> str:
    """Return the broker whose controller is the active one, as the latest epoch has it on disk."""
    states = [_quorum_state(system, node) for node in range(system.profile.brokers)]
    return f"kafka-{max(states, key=lambda state: state['leaderEpoch'])['leaderId']}"


def coordinator(system: System, service: str) -> str:
    """Return the broker that coordinates the group of a service's processors."""
    node: int = _in_admin(system, lambda admin: admin.find_coordinator(f"{service}-processors"))
    return f"kafka-{node}"


def are_in_sync(system: System) -> bool:
    """Tell whether every broker answers, and every replica of every partition has what its leader has.

    Of a broker that has just died the others say for two seconds that it has everything.
    """
    ports = system.profile.kafka_ports
    try:
        answers = [asyncio.run(_ask((port,), lambda admin: admin.describe_topics())) for port in ports]
    except (KafkaError, OSError, TimeoutError):
        return False
    partitions = [partition for topics in answers for topic in topics for partition in topic["partitions"]]
    return all(len(partition["isr"]) == len(partition["replicas"]) for partition in partitions)


def _in_admin(system: System, question: Any) -> Any:
    return asyncio.run(_ask(system.profile.kafka_ports, question))


async def _ask(ports: tuple[int, ...], question: Any) -> Any:
    """Ask by way of the brokers that are found at these ports."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    admin = AIOKafkaAdminClient(bootstrap_servers=addresses, request_timeout_ms=ANSWER_TIMEOUT_MS)
    try:
        await admin.start()
        return await question(admin)
    finally:
        await admin.close()


def _quorum_state(system: System, node: int) -> dict[str, Any]:
    path = system.data_folder(f"kafka-{node}") / "__cluster_metadata-0" / "quorum-state"
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def _bytes(system: System, broker: str, partition: str) -> int:
    return sum(path.stat().st_size for path in (system.data_folder(broker) / partition).glob("*.log"))
