"""The clients' process, as a drill talks to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from drills.schedule import Load

from local.profiles import REPOSITORY

STOP_PATIENCE_S = 5


class Crowd:
    """Clients that set up, ask when they are told to go, and look when they are told to look."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self, word: str = "") -> str:
        """Wait for a line, which is `word` if one is given."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"the clients ended with {self._process.wait()}: see what they wrote"
        assert line == word or not word, f"heard {line!r}, not {word!r}"
        return line

    def tell(self, word: str) -> None:
        """Tell all of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def go(self) -> float:
        """Let the load begin; return when it did."""
        self.tell("go")
        return float(self.hear())

    def longest_wait_s(self) -> float:
        """Return how long anybody waits under this load, or has waited whose request ended lately."""
        self.tell("wait?")
        return float(self.hear())

    def enough(self) -> None:
        """Let the load end; return when nobody waits any more."""
        self.tell("enough")
        self.hear("done")

    def look(self) -> None:
        """Let them read all that they know, and write down what they were told."""
        self.tell("look")
        self.hear("written")


@contextmanager
def crowd(url: str, seed: str, load: Load, path: Path) -> Iterator[Crowd]:
    """Yield the clients of the gateway at `url`, whose records go to `path`; they end with the block."""
    arguments = [url, seed, msgspec.json.encode(load).decode(), str(path)]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "drills.clients", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'test'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield Crowd(process)
    finally:
        process.kill()
        process.wait(STOP_PATIENCE_S)
