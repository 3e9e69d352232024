"""The system: one profile's processes, started, stopped, killed and asked for.

system = System("test")
system.up()
system.kill("redis-0", signal.SIGKILL)      # supervisord brings it back
system.down(wipe=True)
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from local import broker, gateway, preflight, redis_cluster
from local.first_checkout import wait_for_checkout
from local.preflight import CannotStartError
from local.profiles import HOST, PROFILES, REPOSITORY, SERVICES, Profile, addresses
from local.programs import GROUPS, programs, service_command, service_environment
from local.supervision import Supervision

START_TIMEOUT_S = 60.0
POLL_S = 0.1
EXCLUSIVE = ("small", "ha", "net")
"""They share their ports, so one of them is up at a time."""

Step = Callable[[str], AbstractContextManager[object]]
"""Shows that something is being done while it is."""


def silent(_title: str) -> AbstractContextManager[object]:
    """Show nothing."""
    return nullcontext()


class System:
    """All processes of a profile."""

    def __init__(self, profile: Profile | str) -> None:
        self.profile = PROFILES[profile] if isinstance(profile, str) else profile
        self.supervision = Supervision(self.profile)

    # What it is

    @property
    def gateway_url(self) -> str:
        """Where clients come in."""
        return f"http://{HOST}:{self.profile.gateway_port}"

    @property
    def stats_url(self) -> str:
        """Where the gateway shows its servers; /metrics and /health/ready are there too."""
        return f"http://{HOST}:{self.profile.stats_port}"

    @property
    def kafka_bootstrap(self) -> str:
        """`host:port,...` of all brokers."""
        return addresses(self.profile.kafka_ports)

    @property
    def redis_nodes(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each node; redis-0 is the first."""
        return tuple((HOST, port) for port in self.profile.redis_ports)

    def environment(self) -> dict[str, str]:
        """Return the CHECKOUT_* variables that every service process of this profile has."""
        return service_environment(self.profile)

    def names(self) -> tuple[str, ...]:
        """Return the name of every process, running or not."""
        return tuple(program.name for program in programs(self.profile))

    def data_folder(self, name: str) -> Path:
        """Return where a broker or a Redis node keeps what it must not lose."""
        return self.profile.data / name

    # All of it

    def is_up(self) -> bool:
        """Tell whether it was started, gateway and services included, and not stopped."""
        return self.supervision.is_up() and self._started("gateway")

    def up(self, *, services: bool = True, step: Step = silent) -> None:
        """Start what does not run: Kafka and Redis, and with `services` everything, up to a first checkout."""
        if not self.supervision.is_up():
            self._start_data(step)
        with step("Kafka and Redis Cluster"):
            self._wait_for_data(services=services)
        if services and not self._started("gateway"):
            self._start_services(step)

    def down(self, *, wipe: bool = False) -> None:
        """Stop everything; with `wipe`, delete everything it ever wrote."""
        if self.supervision.is_there():
            self.supervision.shut_down()
        if wipe:
            shutil.rmtree(self.profile.home, ignore_errors=True)

    # One process of it

    def pid(self, name: str) -> int:
        """Return the pid of a process, 0 while it does not run."""
        return int(self.supervision.processes()[name]["pid"])

    def kill(self, name: str, signal_: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process that runs.  What dies of it is started again.  Return the pid that was hit."""
        pid = self.pid(name)
        assert pid, f"{name} does not run"
        os.kill(pid, signal_)
        return pid

    def wait_for_restart(self, name: str, pid: int) -> int:
        """Wait until `name` runs as another process than `pid`, which was killed; return the new pid."""
        self._wait(lambda: self.pid(name) not in (0, pid), name, name)
        return self.pid(name)

    def stop(self, name: str) -> None:
        """Stop a process as `down` does; it stays away until `start`."""
        self.supervision.stop(name)

    def start(self, name: str) -> None:
        """Start a process that was stopped."""
        self.supervision.start(name)

    def restart(self, name: str) -> None:
        """Stop a process as `down` does, and start it again."""
        self.stop(name)
        self.start(name)

    def use_code(self, folder: Path) -> None:
        """Let web processes and processors that are started from now on run the code in a folder."""
        link = self.profile.code.with_suffix(".new")
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        link.replace(self.profile.code)

    # Steps of `up`

    def _start_data(self, step: Step) -> None:
        self._check_others()
        preflight.check(self.profile, self.profile.listened_ports)
        if not broker.jars_are_there():
            with step("Kafka's jars"):
                broker.fetch_jars()
        with step("supervisord"):
            self._write_settings()
            self.supervision.launch()

    def _check_others(self) -> None:
        others = set(EXCLUSIVE) - {self.profile.name} if self.profile.name in EXCLUSIVE else set()
        for other in sorted(others):
            if Supervision(PROFILES[other]).is_there():
                raise CannotStartError(f"Profile {other} is up, on the same ports: make down PROFILE={other}")

    def _write_settings(self) -> None:
        conf = self.profile.conf
        conf.mkdir(parents=True, exist_ok=True)
        for node in range(self.profile.brokers):
            (conf / f"kafka-{node}.properties").write_text(broker.properties(self.profile, node))
        for node in range(len(self.profile.redis_ports)):
            (conf / f"redis-{node}.conf").write_text(redis_cluster.settings(self.profile, node))
        (conf / "servers.cfg").write_text(gateway.servers(self.profile))
        self.use_code(REPOSITORY)

    def _wait_for_data(self, *, services: bool) -> None:
        with ThreadPoolExecutor() as pool:
            redis = pool.submit(self._wait_for_redis)
            self._wait(lambda: broker.all_answer(self.profile), "Kafka", "kafka-*")
            setups = [pool.submit(self._set_up, service) for service in SERVICES] if services else []
            _raise_first([redis, *setups])

    def _wait_for_redis(self) -> None:
        self._wait(lambda: redis_cluster.all_answer(self.profile), "Redis", "redis-*")
        redis_cluster.create(self.profile)
        self._wait(lambda: redis_cluster.is_complete(self.profile), "Redis Cluster", "redis-*")
        redis_cluster.remember(self.profile)

    def _set_up(self, service: str) -> None:
        environment = os.environ | self.environment()
        with (self.profile.logs / f"{service}-setup.log").open("a") as log:
            command = service_command(service, "setup")
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise CannotStartError(f"The set-up of {service} failed: see {log.name}")

    def _start_services(self, step: Step) -> None:
        with step("services"):
            for group in GROUPS[1:]:
                self.supervision.start_group(group)
        with step("first checkout"):
            self._first_checkout()

    def _first_checkout(self) -> None:
        try:
            wait_for_checkout(self.profile)
        except TimeoutError as error:
            raise CannotStartError(f"{error}; see the logs in {self.profile.logs}") from error

    def _started(self, name: str) -> bool:
        return self.supervision.processes()[name]["statename"] not in ("STOPPED", "STOPPING")

    def _wait(self, condition: Callable[[], bool], what: str, log: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                place = self.profile.logs / f"{log}.log"
                raise CannotStartError(f"{what} does not start within {START_TIMEOUT_S:.0f} s: see {place}")
            time.sleep(POLL_S)


def _raise_first(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
