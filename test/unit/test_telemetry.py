"""What libraries write to the log, and how often."""

from __future__ import annotations

import logging

from common.telemetry import QUIET_S, Seldom


def a_line(at_s: float, line: int = 1, *, node: int = 1) -> logging.LogRecord:
    record = logging.LogRecord("aiokafka", logging.ERROR, "client.py", line, "cannot connect to %s", (node,), None)
    record.created = at_s
    return record


def test_a_library_repeats_itself_once_a_second_at_most() -> None:
    seldom = Seldom()
    heard = [seldom.filter(a_line(100 + tenth * QUIET_S / 10, node=tenth)) for tenth in range(25)]

    assert [tenth for tenth, is_heard in enumerate(heard) if is_heard] == [0, 10, 20]


def test_what_it_says_elsewhere_is_heard() -> None:
    seldom = Seldom()

    assert [seldom.filter(a_line(100.0, line)) for line in (1, 2, 1, 2, 3)] == [True, True, False, False, True]
