"""Where a fault happens: the system, the dice, and what was done to whom and when."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from drills import brokers
from e2e import faults

from local import status
from local.profiles import SERVICES
from local.system import System


@dataclass
class Scene:
    """A fault looks for its victims here, and everything that it does is noted with its time."""

    system: System
    random: Random = field(default_factory=Random)
    notes: list[tuple[float, str]] = field(default_factory=list)
    victims: set[str] = field(default_factory=set)
    hits_controller: bool = False
    """Whatever else the broker is that was hit: a new controller has to come first."""

    def note(self, text: str) -> None:
        """Write down what is done now."""
        self.notes.append((time.monotonic(), text))

    # Who

    def web(self, service: str) -> str:
        """Return one of a service's web processes."""
        return f"{service}-web-{self.random.randrange(self.system.profile.copies)}"

    def processor(self, service: str) -> str:
        """Return a processor that owns something."""
        owned = status.partitions(self.system.profile)
        return self.random.choice(sorted({each.owner for each in owned if each.owner.startswith(service)}))

    def partition(self) -> str:
        """Return one of the services' partitions, as Redis names it."""
        return self.random.choice([each.partition for each in status.partitions(self.system.profile)])

    def redis_primary(self) -> str:
        """Return the Redis node that has some partition's state."""
        return self.redis_primary_of(self.partition())

    def redis_primary_of(self, partition: str) -> str:
        """Return the Redis node that has this partition's state."""
        return faults.primary_of(self.system, partition)

    def broker(self, role: str) -> str:
        """Return the broker that leads the busiest partition, is the controller, or coordinates a group."""
        name, active = self._broker(role), brokers.controller(self.system)
        self.note(
            f"{name} is the {role}{', and the active controller' if name == active and role != 'controller' else ''}"
        )
        self.hits_controller |= name == active
        return name

    def _broker(self, role: str) -> str:
        match role:
            case "leader":
                return brokers.leader_of_the_busiest(self.system)
            case "controller":
                return brokers.controller(self.system)
            case _:
                return brokers.coordinator(self.system, self.random.choice(SERVICES))

    # What

    def kill(self, *names: str) -> dict[str, int]:
        """Kill processes without a warning, all at once; return the pids that they had."""
        pids = {name: self.system.pid(name) for name in names}
        assert all(pids.values()), f"not all of {names} run"
        for name, pid in pids.items():
            os.kill(pid, signal.SIGKILL)
            self._hit(name, "kill -9")
        return pids

    def freeze(self, name: str, seconds: float) -> None:
        """Stop a process in the middle of whatever it does; after a while it goes on as if nothing had happened."""
        self._hit(name, "SIGSTOP")
        with faults.frozen(self.system, name):
            time.sleep(seconds)
        self.note(f"SIGCONT {name}")

    def kill_emptied(self, *names: str) -> None:
        """Kill brokers or Redis nodes and empty their folders; whatever starts in their place starts with nothing."""
        with self.cut_short(*names):
            for name in names:
                folder = self.system.data_folder(name)
                shutil.rmtree(folder.rename(folder.with_suffix(".gone")))
                self.note(f"{name} emptied")

    def flush(self, name: str) -> None:
        """Empty a Redis node while it runs."""
        faults.redis(self.system, name).flushall()
        self._hit(name, "FLUSHALL")

    def restart(self, name: str) -> None:
        """Stop a process as `down` does, and start it again."""
        self._hit(name, "SIGTERM")
        self.system.restart(name)
        self.note(f"{name} is started again")

    @contextmanager
    def cut_short(self, *names: str) -> Iterator[None]:
        """Freeze processes, let something be done to their files, and kill them before they can write again."""
        pids = {name: self.system.kill(name, signal.SIGSTOP) for name in names}
        yield
        for name, pid in pids.items():
            os.kill(pid, signal.SIGKILL)
            self._hit(name, "files changed, kill -9")

    def away(self, names: Sequence[str], seconds: float) -> None:
        """Kill processes, and keep those that are started in their place from doing anything for a while."""
        for name, pid in self.kill(*names).items():
            self.system.wait_for_restart(name, pid)
        with faults.frozen(self.system, *names):
            time.sleep(seconds)
        self.note(f"{', '.join(names)} may start")

    def slow(self, name: str, rhythm: tuple[float, float], seconds: float) -> None:
        """Let a process run and stand in turn, for so many seconds each time."""
        (run_s, stand_s), deadline = rhythm, time.monotonic() + seconds
        pid = self.system.pid(name)
        self._hit(name, f"SIGSTOP for {stand_s * 1000:.0f} ms after every {run_s * 1000:.0f} ms,")
        while time.monotonic() < deadline:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stand_s)
            os.kill(pid, signal.SIGCONT)
            time.sleep(run_s)
        self.note(f"{name} runs freely")

    def _hit(self, name: str, how: str) -> None:
        self.victims.add(name)
        self.note(f"{how} {name}")
