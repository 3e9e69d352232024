"""Histories as text, a call a line: when it began and ended, its path, perhaps a key, and its answer.

    0-1  /stock/item/create/5             -> {"item_id": "apple"}
    2-3  /stock/add/apple/10   key=k1     -> now 10
    4-9  /orders/checkout/o               -> refused 409
    5-6  /stock/add/apple/3               -> unknown
    7-.. /stock/subtract/apple/3          -> unknown

Times are whole numbers; two dots stand for "not yet".  Reads are those whose path has "/find" in it.
"""

from __future__ import annotations

import json
import re

from histories.model import Invocation, Ok, Operation, Outcome, Refused, Unknown

LINE = re.compile(r"(\d+)-(\d+|\.\.)\s+(/\S+)(?:\s+key=(\S+))?\s+->\s+(.+)")


def told(*texts: str) -> list[Operation]:
    """Return the history."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return [_operation(number, line) for number, line in enumerate(lines)]


def _operation(number: int, line: str) -> Operation:
    parsed = LINE.fullmatch(line)
    assert parsed is not None, line
    began, ended, path, key, answer = parsed.groups()
    method = "GET" if "/find" in path else "POST"
    invocation = Invocation(f"client {number}", method, path, key)
    return Operation(invocation, _outcome(answer), float(began), None if ended == ".." else float(ended))


def _outcome(answer: str) -> Outcome:
    if answer == "unknown":
        return Unknown()
    if answer.startswith("refused "):
        status, _, detail = answer.removeprefix("refused ").partition(" ")
        return Refused(int(status), detail)
    return Ok(json.loads(answer) if answer.startswith("{") else answer)
