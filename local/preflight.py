"""Preflight: what a machine must have.  Whatever is missing is said in one sentence, with the cure."""

import shutil
import socket
import subprocess

import psutil

from local.profiles import HOST, Profile

JAVA_VERSION_MIN = 17
PACKAGES = {
    "java": "default-jre-headless",
    "mvn": "maven",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "haproxy": "haproxy",
    "setpriv": "util-linux",
}
MEGABYTE = 1024 * 1024


class CannotStartError(Exception):
    """The machine is not ready; the message is one sentence that says why and what to do."""


def check(profile: Profile, ports: tuple[int, ...]) -> None:
    """Raise CannotStartError unless `profile` can start here, listening on `ports`."""
    check_programs()
    check_java(java_version())
    check_memory(profile, psutil.virtual_memory().available // MEGABYTE)
    for port in ports:
        check_port(port)


def check_programs() -> None:
    """Every program is found."""
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            raise CannotStartError(f"{program} is not installed: sudo apt-get install -y {package}")


def check_java(version: int) -> None:
    """Java is new enough for Kafka."""
    if version < JAVA_VERSION_MIN:
        raise CannotStartError(
            f"Java {version} is too old for Kafka, which needs {JAVA_VERSION_MIN}: "
            f"sudo apt-get install -y openjdk-{JAVA_VERSION_MIN}-jre-headless"
        )


def check_memory(profile: Profile, available_mb: int) -> None:
    """Enough memory is free."""
    if available_mb < profile.memory_min_mb:
        raise CannotStartError(
            f"Profile {profile.name} needs {profile.memory_min_mb} MB of memory and {available_mb} MB are free: "
            "stop something, or use PROFILE=small"
        )


def check_port(port: int) -> None:
    """Nobody listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise CannotStartError(f"Port {port} is taken by {_holder(port)}: stop that first") from None


def java_version() -> int:
    """Return the major version of the java that is found."""
    banner = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    return int(banner.split('"')[1].split(".")[0].split("-")[0])


def _holder(port: int) -> str:
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    pids = {each.pid for each in listening if each.laddr[1:] == (port,)}
    named = [f"{psutil.Process(pid).name()} (pid {pid})" for pid in pids if pid]
    return ", ".join(named) or "another program"
