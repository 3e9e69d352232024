"""Processes: started and stopped by the bench, and what any of them use of processor and memory."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

from measuring import REPORTS, ROOT

# The pids at the top of each group's process trees: {"order-web": [4711], "redis": [4712, 4713, 4714]}.
Groups = Mapping[str, Sequence[int]]

STOP_PATIENCE_S = 4
# Whatever ends the bench ends what it started.
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
VANISHED = (psutil.NoSuchProcess, psutil.ZombieProcess)


@contextmanager
def running(name: str, command: Sequence[object], environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run `command` from the project's root, its output in reports/<name>.log; yield its pid, stop it on leaving."""
    REPORTS.mkdir(exist_ok=True)
    with (REPORTS / f"{name}.log").open("wb") as log:
        process = psutil.Popen(
            [*END_WITH_PARENT, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process.pid
    finally:
        stop(process)


def stop(process: psutil.Process) -> None:
    """End `process` and its family at once: nothing of what the bench starts has anything to save."""
    with suppress(*VANISHED):
        family = [process, *process.children(recursive=True)]
        for member in family:
            with suppress(*VANISHED):
                member.kill()
        psutil.wait_procs(family, timeout=STOP_PATIENCE_S)


def run_module(*words: str, timeout_s: float) -> None:
    """Run `python -m words` from the project's root; its output goes to the terminal, a failure raises."""
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, timeout=timeout_s)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_seconds(groups: Groups) -> dict[str, float]:
    """Return the processor time of each group so far: its processes, and the children that they have waited for."""
    return {group: sum(map(cpu_seconds_of, processes)) for group, processes in members(groups).items()}


def cpu_seconds_of(process: psutil.Process) -> float:
    """Return the processor time of one process, 0 once it has vanished."""
    with suppress(*VANISHED):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def memory_mb(groups: Groups) -> dict[str, dict[str, float]]:
    """Return per group the sum of resident (rss) and of proportional (pss, shared pages counted once) memory."""
    return {group: sum_memory(processes) for group, processes in members(groups).items()}


def sum_memory(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Return the memory of `processes` in MB."""
    rss = pss = 0
    for process in processes:
        with suppress(*VANISHED):
            memory = process.memory_full_info()
            rss, pss = rss + memory.rss, pss + memory.pss
    return {"rss": rss / 1e6, "pss": pss / 1e6}


def members(groups: Groups) -> dict[str, list[psutil.Process]]:
    """Return the living processes of each group; a process belongs to the nearest ancestor that a group names."""
    group_of = {pid: group for group, pids in groups.items() for pid in pids}
    processes = {process.pid: process for process in psutil.process_iter(["ppid"])}
    found: dict[str, list[psutil.Process]] = {group: [] for group in groups}
    for process in processes.values():
        group = owning_group(process, processes, group_of)
        if group is not None:
            found[group].append(process)
    return found


def owning_group(
    process: psutil.Process, processes: Mapping[int, psutil.Process], group_of: Mapping[int, str]
) -> str | None:
    """Return the group of `process` or of its nearest ancestor that has one."""
    ancestor: psutil.Process | None = process
    while ancestor is not None:
        if ancestor.pid in group_of:
            return group_of[ancestor.pid]
        ancestor = processes.get(ancestor.info["ppid"])
    return None
