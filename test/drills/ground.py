"""The system that is drilled on.  What was there before is not touched; what was made for the drills is wiped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local.profiles import REPOSITORY
from local.system import System

MESSAGES_MAX = 60_000
"""An audit reads the whole log, some 8,000 messages a second: beyond this a new, empty system costs less."""


@dataclass(frozen=True)
class Ground:
    """A system that is up.  `is_ours` says that nothing of it was there before."""

    system: System
    is_ours: bool

    def after_audit(self, messages: int) -> None:
        """Begin anew if the log has grown long."""
        if self.is_ours and messages > MESSAGES_MAX:
            self.system.down(wipe=True)
            _start(self.system)

    def after_offence(self, folder: Path) -> None:
        """Keep all data in `folder`, and begin anew: what is wrong now is wrong in every later audit."""
        if self.is_ours:
            self.system.down()
            shutil.move(self.system.profile.home, folder)
            _start(self.system)


@contextmanager
def ground(system: System) -> Iterator[Ground]:
    """Yield the system; what was down is up meanwhile, and down again afterwards."""
    was_up, is_ours = system.is_up(), not system.profile.data.exists()
    if not was_up:
        _start(system)
    try:
        yield Ground(system, is_ours)
    finally:
        if not was_up:
            system.down(wipe=is_ours)


def _start(system: System) -> None:
    try:
        subprocess.run([sys.executable, "-m", "local", "up", system.profile.name], cwd=REPOSITORY, check=True)
    except BaseException:
        system.down()
        raise
