"""supervisord, the real one: told to shut down while it is shutting down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from local import supervision
from local.profiles import PROFILES, Profile
from local.programs import Program
from local.system import System

STOP_WAIT_S = 2


def stubborn(_profile: Profile) -> tuple[Program, ...]:
    """Return a process that has to be killed in the end."""
    command = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    return (Program(name="stubborn", group="data", command=command, stop_wait_s=STOP_WAIT_S),)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setattr(supervision, "programs", stubborn)
    system = System(replace(PROFILES["test"], name=f"unit-{os.getpid()}"))
    system.supervision.launch()
    wait_until_stubborn(system)
    try:
        yield system
    finally:
        system.down(wipe=True)


def wait_until_stubborn(system: System) -> None:
    """Wait for the shell's first `sleep`: a shell that is told to end before it has read its `trap` obeys."""
    supervisord = psutil.Process(system.supervision.pid())
    while "sleep" not in {process.name() for process in supervisord.children(recursive=True)}:
        time.sleep(0.01)


def test_down_beside_another_down_returns_when_everything_is_gone(system: System) -> None:
    supervisord = psutil.Process(system.supervision.pid())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(system.down)
        while system.supervision.is_up():
            time.sleep(0.01)
        assert system.supervision.is_there()

        system.down()

        assert not supervisord.is_running()
        first.result()
    assert not system.supervision.is_there()


def test_down_of_what_is_down_does_nothing(system: System) -> None:
    system.down()
    system.down()
