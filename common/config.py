"""Settings: everything that an operator can set, read once from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from common.messages import Topology

PREFIX = "CHECKOUT_"

Count = Annotated[int, msgspec.Meta(ge=1)]
Address = Annotated[str, msgspec.Meta(pattern=r"^[^\s,:]+:[0-9]+$")]
Addresses = Annotated[str, msgspec.Meta(pattern=r"^[^\s,:]+:[0-9]+(,[^\s,:]+:[0-9]+)*$")]


class ConfigError(SystemExit):
    """A setting that cannot be used: ends the process with a sentence that names it."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Each field is set by CHECKOUT_<FIELD>; times are in milliseconds, addresses are host:port.

    `kafka` and `redis` list some addresses to start from.  The partition counts and `replication` describe the topics
    and never change during the life of a log.  `bind` is where this process serves HTTP, a processor its metrics.
    `threads` bounds the requests that one web process answers at once: keep it 16 above the gateway's maxconn.
    `snapshot_records` is how many records a partition takes between two snapshots: a replay has some more at most.
    """

    kafka: Addresses
    redis: Addresses
    redis_password: str = ""
    order_partitions: Count = 2
    stock_partitions: Count = 2
    payment_partitions: Count = 2
    replication: Count = 1
    bind: Address = "127.0.0.1:5000"
    threads: Annotated[int, msgspec.Meta(ge=17)] = 160
    patience_ms: Count = 20_000
    batch_init_patience_ms: Count = 120_000
    session_timeout_ms: Annotated[int, msgspec.Meta(ge=1_000)] = 2_500
    snapshot_records: Count = 10_000
    log_level: Annotated[str, msgspec.Meta(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"

    @property
    def topology(self) -> Topology:
        """How many partitions each service's inbox has."""
        return {"order": self.order_partitions, "stock": self.stock_partitions, "payment": self.payment_partitions}

    @property
    def redis_nodes(self) -> list[tuple[str, int]]:
        """Host and port of each Redis node to start from."""
        return [(host, int(port)) for host, _, port in (node.rpartition(":") for node in self.redis.split(","))]


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings, or end the process with a sentence that names the one that is wrong."""
    given = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items() if name.startswith(PREFIX)}
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as why:
        raise ConfigError(f"wrong configuration: {_named(str(why))}") from why


def _named(why: str) -> str:
    """Say "`$.redis`" and "field `redis`" as an operator knows it: CHECKOUT_REDIS."""
    return re.sub(r"field `(\w+)`|`\$\.(\w+)`", lambda found: PREFIX + (found[1] or found[2]).upper(), why)
