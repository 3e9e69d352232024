"""The systems that are compared: ours, the naive one, and a POST that does nothing."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import requests

from local.gateway import CONFIG, FIRST_SEGMENT, HEALTH_CHECK_THREADS
from local.profiles import HOST, WEB_THREADS, Profile
from local.programs import programs
from local.supervision import Supervision
from measuring import REPORTS
from measuring.orders import EndlessSupply, OrderSupply
from measuring.processes import Groups, free_port, run_module, running

UP_PATIENCE_S = 120
READY_PATIENCE_S = 30
POLL_S = 0.1


@dataclass(frozen=True)
class System:
    """Something that answers POST /orders/checkout/<order>, and the processes that this takes."""

    name: str
    gateway_url: str
    supply: OrderSupply
    groups: Callable[[], Groups]


@contextmanager
def ours(profile: Profile, order_count: int) -> Iterator[System]:
    """Yield the system of `profile`; what was down is up meanwhile, and down again afterwards."""
    supervision = Supervision(profile)
    was_up = supervision.is_up()
    if not was_up:
        run_module("local", "up", profile.name, timeout_s=UP_PATIENCE_S)
    try:
        gateway_url = f"http://{HOST}:{profile.gateway_port}"
        yield System("ours", gateway_url, OrderSupply(gateway_url, order_count), lambda: groups_of(supervision))
    finally:
        if not was_up:
            run_module("local", "down", profile.name, timeout_s=UP_PATIENCE_S)


def groups_of(supervision: Supervision) -> Groups:
    """Return the pids of a supervised system: `order-web-0` and `order-web-1` are one group, `order-web`."""
    groups: dict[str, list[int]] = {}
    for name, process in supervision.processes().items():
        if process["pid"]:
            groups.setdefault(name.rstrip("-0123456789"), []).append(process["pid"])
    anyone = next(iter(groups.values()))[0]
    return groups | {"supervisor": [psutil.Process(anyone).ppid()]}


@contextmanager
def naive(profile: Profile, order_count: int) -> Iterator[System]:
    """Yield the naive services of baseline/app.py, with one Redis that keeps nothing on disk."""
    with ExitStack() as stack:
        redis_port, gateway_port = free_port(), free_port()
        gateway_url = f"http://{HOST}:{gateway_port}"
        redis = ["redis-server", "--port", redis_port, "--bind", HOST, "--save", "", "--appendonly", "no"]
        groups = {"redis": [stack.enter_context(running("naive-redis", redis))]}
        ports = {}
        for database, service in enumerate(FIRST_SEGMENT):
            own = {"REDIS_URL": f"redis://{HOST}:{redis_port}/{database}", "GATEWAY_URL": gateway_url}
            ports[service] = free_port()
            web = gunicorn(profile, f"app:{service}", ports[service], own)
            groups[f"{service}-web"] = [stack.enter_context(web)]
        groups["gateway"] = [stack.enter_context(gateway("naive", gateway_port, ports))]
        yield System("naive", gateway_url, OrderSupply(gateway_url, order_count), lambda: groups)


@contextmanager
def nothing(profile: Profile) -> Iterator[System]:
    """Yield baseline/nothing.py: one web process behind a gateway, as a service of ours has them."""
    port, gateway_port = free_port(), free_port()
    gateway_url = f"http://{HOST}:{gateway_port}"
    ports = dict.fromkeys(FIRST_SEGMENT, port)
    with gunicorn(profile, "nothing:app", port) as web, gateway("nothing", gateway_port, ports) as door:
        groups = {"order-web": [web], "gateway": [door]}
        yield System("nothing", gateway_url, EndlessSupply(gateway_url), lambda: groups)


def gunicorn(
    profile: Profile, application: str, port: int, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[int]:
    """Serve a Flask application of baseline/ with the settings and the environment that our own have."""
    command = [sys.executable, "-m", "gunicorn", "-c", "python:common.gunicorn_conf"]
    command += ["--pythonpath", "stress-test/baseline", application]
    ours = next(program for program in programs(profile) if program.name == "order-web-0").environment
    own = {"CHECKOUT_BIND": f"{HOST}:{port}", **(environment or {})}
    return running(f"baseline-{application.replace(':', '-')}", command, {**ours, **own})


@contextmanager
def gateway(name: str, port: int, ports: Mapping[str, int]) -> Iterator[int]:
    """Run the gateway's own configuration before one server a service; yield its pid once all are reachable."""
    servers = REPORTS / f"{name}-servers.cfg"
    servers.write_text("".join(map(backend, ports, ports.values())))
    environment = {
        "GATEWAY_BIND": f"{HOST}:{port}",
        "GATEWAY_STATS_BIND": f"{HOST}:{free_port()}",
        "GATEWAY_SERVER_MAXCONN": str(WEB_THREADS - HEALTH_CHECK_THREADS),
    }
    with running(f"{name}-gateway", ["haproxy", "-db", "-f", CONFIG, "-f", servers], environment) as pid:
        for segment in FIRST_SEGMENT.values():
            wait_until_ready(f"http://{HOST}:{port}/{segment}/health/ready")
        yield pid


def backend(service: str, port: int) -> str:
    """Return the gateway's lines for a service with one server."""
    # Not checked: saturated, the naive version answers no check in time, and would be taken out of service.
    return f"backend {service} from service\n    server {service}-web-0 {HOST}:{port} no-check\n"


def wait_until_ready(url: str) -> None:
    """Return when `url` answers 200; raise TimeoutError when it never does."""
    deadline = time.monotonic() + READY_PATIENCE_S
    while not is_ready(url):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} is not ready after {READY_PATIENCE_S} s: see the logs in {REPORTS}")
        time.sleep(POLL_S)


def is_ready(url: str) -> bool:
    """Ask once."""
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False
