"""After everything that the other tests did to the system: every order, charge and deduction is joined, and fits."""

import json
import subprocess
import sys

import pytest
from e2e.client import post
from e2e.shop import a_user, an_item, an_order, done

from local.profiles import REPOSITORY
from local.system import System

TIMEOUT_S = 180


@pytest.mark.slow
def test_the_audit_of_the_running_system_finds_nothing(system: System) -> None:
    order_id = an_order(a_user(credit=10), [(an_item(stock=1), 1)])
    done(post(f"/orders/checkout/{order_id}"))

    command = [sys.executable, "-m", "audit", system.profile.name, "--json"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, text=True, timeout=TIMEOUT_S)

    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(finished.stdout)
    assert report["findings"] == []
    assert report["counts"]["paid"] > 0
