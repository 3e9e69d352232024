"""The commands of a service, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOBODY = "127.0.0.1:9"
END_TIMEOUT_S = 30


@pytest.mark.parametrize("command", ["processor", "snapshotter"])
def test_who_waits_for_the_log_can_be_told_to_stop(command: str) -> None:
    """In a container they are the first process, which a signal that nobody handles does not end."""
    settings = {"CHECKOUT_KAFKA": NOBODY, "CHECKOUT_REDIS": NOBODY, "CHECKOUT_BIND": "127.0.0.1:0"}
    with subprocess.Popen(
        [sys.executable, "-m", "stock.app", command], env=os.environ | settings, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("waiting for the log" in line for line in process.stdout)

        process.terminate()

        assert "stopping" in process.stdout.read()
        assert process.wait(END_TIMEOUT_S) == 0
