"""Status: every process and every partition of a profile, as it is now."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from local.profiles import HOST, SERVICES, Profile
from local.supervision import Supervision

MEGABYTE = 1024 * 1024
STATE_STYLES = {"RUNNING": "green", "STARTING": "yellow", "STOPPED": "dim", "STOPPING": "yellow"}


@dataclass(frozen=True)
class Process:
    """One process; its memory is in MB and includes its children.  PSS shares out what several processes map."""

    name: str
    state: str
    pid: int
    up_s: int
    restarts: int
    rss_mb: float
    pss_mb: float


@dataclass(frozen=True)
class Partition:
    """One partition, as the processor that owns it tells."""

    inbox: str
    partition: str
    owner: str
    position: int
    lag: int
    open_checkouts: int | None


@dataclass(frozen=True)
class Status:
    """The profile at one moment."""

    profile: str
    processes: tuple[Process, ...]
    partitions: tuple[Partition, ...]


def read(profile: Profile) -> Status:
    """Ask supervisord, the kernel and the processors."""
    return Status(profile.name, processes(profile), partitions(profile))


def processes(profile: Profile) -> tuple[Process, ...]:
    """Return supervisord and every process, in the order in which they start."""
    supervision = Supervision(profile)
    deaths = supervision.deaths()
    known = supervision.processes()
    pid = supervision.pid()
    itself: dict[str, int | str] = {"pid": pid, "statename": "RUNNING", "start": int(psutil.Process(pid).create_time())}
    supervised = (_process(name, known[name], deaths[name]) for name in deaths)
    return (_process("supervisord", itself, 0, with_children=False), *supervised)


def partitions(profile: Profile) -> tuple[Partition, ...]:
    """Return every partition that a processor owns."""
    owners = [
        (service, f"{service}-processor-{copy}", port)
        for service in SERVICES
        for copy, port in enumerate(profile.processor_ports(service))
    ]
    owned = [_owned(service, owner, metrics(port)) for service, owner, port in owners]
    return tuple(sorted(chain.from_iterable(owned), key=lambda each: (each.inbox, each.partition, each.owner)))


def metrics(port: int) -> str:
    """Return a processor's numbers; nothing if it does not answer."""
    try:
        return requests.get(f"http://{HOST}:{port}/metrics", timeout=1).text
    except requests.RequestException:
        return ""


def parse_gauges(text: str) -> dict[str, dict[str, float]]:
    """Return the value of each `checkout_*{partition="..."}`, by name and partition."""
    gauges: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("checkout_") and set(sample.labels) == {"partition"}:
                gauges.setdefault(sample.name, {})[sample.labels["partition"]] = sample.value
    return gauges


def tables(status: Status) -> tuple[Table, Table]:
    """Return what a person reads."""
    return _process_table(status), _partition_table(status)


def _process(name: str, known: Mapping[str, int | str], restarts: int, *, with_children: bool = True) -> Process:
    pid = int(known["pid"])
    rss, pss = _memory(pid, with_children=with_children)
    up_s = int(time.time()) - int(known["start"]) if pid else 0
    return Process(name, str(known["statename"]), pid, up_s, restarts, round(rss, 1), round(pss, 1))


def _memory(pid: int, *, with_children: bool) -> tuple[float, float]:
    try:
        parent = psutil.Process(pid) if pid else None
        children = parent.children(recursive=True) if parent and with_children else []
        used = [process.memory_full_info() for process in (parent, *children) if process]
    except psutil.Error:
        used = []
    return sum(each.rss for each in used) / MEGABYTE, sum(each.pss for each in used) / MEGABYTE


def _owned(service: str, owner: str, text: str) -> list[Partition]:
    gauges = parse_gauges(text)
    lags, checkouts = (gauges.get(f"checkout_{name}", {}) for name in ("partition_lag", "open_checkouts"))
    return [
        Partition(
            inbox=f"{service}-inbox",
            partition=partition,
            owner=owner,
            position=int(position),
            lag=int(lags.get(partition, 0)),
            open_checkouts=int(checkouts[partition]) if partition in checkouts else None,
        )
        for partition, position in gauges.get("checkout_partition_position", {}).items()
    ]


def _process_table(status: Status) -> Table:
    table = Table("process", "state", title=f"Profile {status.profile}", title_justify="left")
    for heading in ("pid", "up s", "restarts", "RSS MB", "PSS MB"):
        table.add_column(heading, justify="right")
    for each in status.processes:
        state = f"[{STATE_STYLES.get(each.state, 'red')}]{each.state}[/]"
        numbers = (each.pid or "-", each.up_s, each.restarts, each.rss_mb, each.pss_mb)
        table.add_row(each.name, state, *map(str, numbers))
    rss, pss = sum(each.rss_mb for each in status.processes), sum(each.pss_mb for each in status.processes)
    table.add_section()
    table.add_row("together", "", "", "", "", f"{rss:.1f}", f"{pss:.1f}")
    return table


def _partition_table(status: Status) -> Table:
    table = Table("inbox", "partition", title="Partitions", title_justify="left")
    table.add_column("owner", no_wrap=True)
    for heading in ("position", "lag", "open"):
        table.add_column(heading, justify="right")
    for each in status.partitions:
        checkouts = "-" if each.open_checkouts is None else each.open_checkouts
        numbers = (each.position, each.lag, checkouts)
        table.add_row(each.inbox, each.partition, each.owner, *map(str, numbers))
    return table
