"""A load without an end: one crowd after the other, each with a town of its own, so nothing is remembered for long.

The next crowd makes its town while the one before it asks, and takes over from one moment to the next.  What the one
before was told is checked by a process of its own meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from drills.crowd import Crowd, crowd
from drills.judge import Explained, explain
from drills.measure import Request, failure_of, requests_of
from drills.records import Record, load
from drills.schedule import Load

CHAPTER_S = 120.0
"""Of a crowd's load, before the next one begins to make its town."""
OVERDUE_S = 300.0
"""So much longer a crowd can ask, if making the next town takes long."""
AT_ONCE = 8
"""Clients of a crowd that make their town, and look at it in the end: beside the load of another."""
ENTITIES = 250
"""Made one by one, so they are fewer than in a drill; a single fault leaves few calls without an answer."""
NICE = 10


class Chapters:
    """What was asked for and told; `failed` are the calls that failed."""

    def __init__(self, url: str, seed: str, rate: float, folder: Path) -> None:
        self.requests: list[Request] = []
        self.failed: list[Record] = []
        self.has_begun = threading.Event()
        self._url = url
        self._seed = seed
        self._load = Load(rate, CHAPTER_S + OVERDUE_S, ENTITIES, AT_ONCE, is_alone=False)
        self._folder = folder
        self._is_over = threading.Event()
        self._checks: list[Future[Explained]] = []

    def stop(self) -> None:
        """Let the last chapter end."""
        self._is_over.set()

    def write(self) -> list[Explained]:
        """Ask until it is stopped; return what the checker makes of each chapter."""
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (NICE,))
        with ExitStack() as crowds, pool as checker:
            asking = self._ready(crowds, 0)
            asking.go()
            self.has_begun.set()
            for number in count():
                following = self._following(crowds, number + 1)
                asking.tell("enough")
                if following is not None:
                    following.go()
                asking.hear("done")
                asking.look()
                self._take(self._path(number), checker)
                if following is None:
                    break
                asking = following
            return [check.result() for check in self._checks]

    def _following(self, crowds: ExitStack, number: int) -> Crowd | None:
        """Return the next crowd when it is time for it; None when the load is over."""
        following = None if self._is_over.wait(CHAPTER_S) else self._ready(crowds, number)
        return None if self._is_over.is_set() else following

    def _ready(self, crowds: ExitStack, number: int) -> Crowd:
        """Return a crowd that has made its town."""
        clients = crowds.enter_context(crowd(self._url, f"{self._seed}/{number}", self._load, self._path(number)))
        clients.hear("ready")
        return clients

    def _take(self, path: Path, checker: ProcessPoolExecutor) -> None:
        """Keep what is measured of a chapter, and let the rest be checked."""
        records = load(path)
        self.requests += requests_of(records)
        self.failed += [record for record in records if record.number is not None and failure_of(record)]
        self._checks.append(checker.submit(check, path))

    def _path(self, number: int) -> Path:
        return self._folder / f"chapter-{number}.jsonl"


def check(path: Path) -> Explained:
    """Return what the checker makes of the records in a file; it is kept only if something is wrong."""
    explained = explain(load(path))
    if explained == Explained():
        path.unlink()
    return explained
