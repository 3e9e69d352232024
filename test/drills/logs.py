"""What each process wrote from a moment on: without clocks, by how long its log was then."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

LINES_MAX = 60
LINE_LENGTH_MAX = 400
ALIKE_MAX = 3
"""Of lines that differ in numbers only."""
NUMBERS = re.compile(r"[0-9a-f]*\d[0-9a-f]*")


class Logs:
    """The logs of a profile, from now on."""

    def __init__(self, folder: Path) -> None:
        self._lengths = {path: path.stat().st_size for path in sorted(folder.glob("*.log"))}

    def since(self) -> dict[str, str]:
        """Return what was written, by process; nothing of those that were silent."""
        written = {path.stem: excerpt(_tail(path, length)) for path, length in self._lengths.items()}
        return {name: text for name, text in written.items() if text}


def excerpt(text: str) -> str:
    """Return the first lines of each kind, as many as people read, without stack traces."""
    seen: Counter[str] = Counter()
    kept: list[str] = []
    left_out = 0
    for line in text.splitlines():
        kind = NUMBERS.sub("#", line)
        seen[kind] += 1
        if seen[kind] > ALIKE_MAX or len(kept) >= LINES_MAX or not line.strip() or line.startswith("\tat "):
            left_out += 1
        else:
            kept.append(line[:LINE_LENGTH_MAX])
    return "\n".join([*kept, *([f"... {left_out} lines left out"] if left_out else [])])


def _tail(path: Path, length: int) -> str:
    content = path.read_bytes()
    # Shorter than it was: a new one was begun meanwhile.
    return content[length if len(content) >= length else 0 :].decode(errors="replace")
