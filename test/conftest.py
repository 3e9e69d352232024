"""What all tests share: a profile with ports and data of its own.  Whatever else is up is not touched."""

import asyncio
import fcntl
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local.profiles import REPOSITORY
from local.system import System

PROFILE = os.environ.get("TEST_PROFILE", "test")
"""Two runs at a time need two: `make test` has one of `test` and one of `test-e2e`."""
ASYNC_TEST_TIMEOUT_S = 120
ORDER = ("unit", "simulation", "integration", "drills", "e2e")
"""What is quick and precise runs first; integration before e2e, whose restarts leave a longer log."""

collect_ignore = ["test_microservices.py", "stress-test"]  # test/e2e runs the given tests, as their users do
sys.path.insert(0, str(Path(__file__).parent))  # for `import utils`, as the given tests say it
pytest.register_assert_rewrite("e2e.load", "e2e.shop", "e2e.faults", "integration.probe")


def pytest_configure() -> None:
    """Let `utils` find the gateway of the system under test.

    It reads the variable when it is imported.  The services refuse CHECKOUT_* variables that they do not know.
    """
    for name in [name for name in os.environ if name.startswith("CHECKOUT_")]:
        del os.environ[name]
    os.environ["GATEWAY_URL"] = System(PROFILE).gateway_url
    importlib.import_module("utils")
    del os.environ["GATEWAY_URL"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder; what is quick comes first."""
    for item in items:
        item.add_marker(folder(item))
    items.sort(key=lambda item: ORDER.index(folder(item)) if folder(item) in ORDER else 0)


def folder(item: pytest.Item) -> str:
    """Return the folder below test/ that a test is in."""
    return item.path.relative_to(Path(__file__).parent).parts[0]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine, in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.function).parameters}
    asyncio.run(asyncio.wait_for(pyfuncitem.function(**arguments), ASYNC_TEST_TIMEOUT_S))
    return True


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """Everything, started from nothing.  Its logs are kept in reports/logs when a test failed."""
    system = System(PROFILE)
    with alone():
        system.down(wipe=True)
        try:
            subprocess.run([sys.executable, "-m", "local", "up", PROFILE], cwd=REPOSITORY, check=True)
            yield system
        finally:
            if request.session.testsfailed and system.profile.logs.exists():
                shutil.copytree(system.profile.logs, REPOSITORY / "reports" / "logs" / PROFILE, dirs_exist_ok=True)
            system.down(wipe=True)


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other run of the tests, and no other worker of this one, has the system."""
    path = REPOSITORY / ".local" / f"{PROFILE}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
