"""When something may have been held for a while: by a checkout that came to nothing, or whose end nobody knows.

Such a checkout holds goods and money at most once, somewhere between its call and its answer, and may as well hold
nothing.  Windows of the same amount are told apart only by how many are open: so a hundred of them are one number.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, product
from math import comb, prod

import msgspec

WAYS_MAX = 20_000


class TooMany(Exception):
    """There are more possibilities than a check may try."""


class Window(msgspec.Struct, frozen=True):
    """One of `amounts` may be held between `began` and `ended`, one at a time, at most `times` times."""

    amounts: tuple[int, ...]
    began: float
    ended: float
    times: int = 1


class Gap(msgspec.Struct, frozen=True):
    """At some moment, of one kind: how many may be held, how often in all until now, how often from now on."""

    amounts: tuple[int, ...]
    open: int
    begun_times: int
    open_times: int


Room = tuple[Gap, ...]
"""What may be held at some moment, by kind of window: by its amounts."""
Counts = tuple[int, ...]
"""How many are held of one kind, by amount."""


class Held(msgspec.Struct, frozen=True):
    """How many are held, and how often something was held, by kind in the order of a Room."""

    now: tuple[Counts, ...] = ()
    times: tuple[int, ...] = ()

    def ways(self, room: Room) -> tuple[Held, ...]:
        """Return all that can be made of it by holding and giving back, the nearest first: as it is."""
        return _ways(self, room) if room else (self,)

    def ways_to(self, least: int, most: int, room: Room) -> tuple[Held, ...]:
        """Return those of all ways in which between so much and so much is held."""
        return _ways_to(self, least, most, room) if room else (self,) * (least <= 0 <= most)

    def fewer(self) -> list[Held]:
        """Return all that can be made of it by giving back, the most held first."""
        return self.all_of([list(product(*(range(count + 1) for count in counts))) for counts in self.now])

    def closed(self, room: Room) -> list[Held]:
        """Give back what windows that are over may have held: all ways that matter.

        What was held so far is counted as held in those, as far as possible: it leaves most for those that are open,
        and what one of these held it can hold again.  What was not held while it could be is not held later.
        """
        if not room:
            return [self]
        over = [gap.begun_times - gap.open_times for gap in room]
        kinds = [_left(*kind) for kind in zip(self.now, self.times, over, room, strict=True)]
        return [Held(held.now, tuple(map(max, held.times, over))) for held in self.all_of(kinds)]

    def is_below(self, other: Held) -> bool:
        """Say whether it is less of what the other is."""
        pairs = [pair for kinds in zip(self.now, other.now, strict=True) for pair in zip(*kinds, strict=True)]
        return self != other and all(count <= most for count, most in pairs)

    def amount(self, room: Room) -> int:
        """Return how much is held."""
        return sum(sumprod(now, gap.amounts) for gap, now in zip(room, self.now, strict=True))

    def all_of(self, kinds: list[list[Counts]]) -> list[Held]:
        """Return it with one of these counts of each kind, the nearest first."""
        if prod(map(len, kinds)) > WAYS_MAX:
            raise TooMany
        return [self.with_counts(now) for now in sorted(product(*kinds), key=self.distance)]

    def with_counts(self, now: tuple[Counts, ...]) -> Held:
        """Return it with these counts: what is held more is held once more."""
        kinds = zip(self.times, self.now, now, strict=True)
        return Held(now, tuple(times + _more(before, then) for times, before, then in kinds))

    def distance(self, now: tuple[Counts, ...]) -> int:
        """Return how many are to be held or given back to come to these counts."""
        return sum(_more(counts, then) + _more(then, counts) for counts, then in zip(self.now, now, strict=True))


class Windows:
    """All windows of one entity."""

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        kinds: dict[tuple[int, ...], list[Window]] = {}
        for window in windows:
            kinds.setdefault(window.amounts, []).append(window)
        self._kinds = [_Kind(amounts, kinds[amounts]) for amounts in sorted(kinds)]
        self.closings = {window.ended for same in kinds.values() for window in same}

    @property
    def nothing_held(self) -> Held:
        """Return how it begins."""
        return Held(tuple((0,) * len(kind.amounts) for kind in self._kinds), (0,) * len(self._kinds))

    def room(self, time: float) -> Room:
        """Return what may be held at a moment."""
        return tuple(kind.gap(time) for kind in self._kinds)


class _Kind:
    """The windows of the same amounts."""

    def __init__(self, amounts: tuple[int, ...], windows: list[Window]) -> None:
        self.amounts = amounts
        by_begin = sorted(windows, key=lambda window: window.began)
        by_end = sorted(windows, key=lambda window: window.ended)
        self._began = [window.began for window in by_begin]
        self._ended = [window.ended for window in by_end]
        self._times_begun = list(accumulate((window.times for window in by_begin), initial=0))
        self._times_ended = list(accumulate((window.times for window in by_end), initial=0))

    def gap(self, time: float) -> Gap:
        begun, ended = bisect_right(self._began, time), bisect_left(self._ended, time)
        times = self._times_begun[begun]
        return Gap(self.amounts, begun - ended, times, times - self._times_ended[ended])


def _counts(now: Counts, times: int, gap: Gap) -> list[Counts]:
    """Return how many may be held, of one kind."""
    if comb(gap.open + len(now), len(now)) > WAYS_MAX:
        raise TooMany
    return [counts for counts in _vectors(len(now), gap.open) if times + _more(now, counts) <= gap.begun_times]


def _vectors(length: int, most: int) -> list[Counts]:
    """Return all with so many counts whose sum is at most `most`."""
    vectors: list[Counts] = [()]
    for _ in range(length):
        vectors = [(*vector, count) for vector in vectors for count in range(most - sum(vector) + 1)]
    return vectors


def _left(counts: Counts, times: int, over: int, gap: Gap) -> list[Counts]:
    """Return what may be left of one kind, when windows for `over` times are over."""
    most = min(sum(counts), gap.open, max(0, times - over))
    return [left for left in product(*(range(count + 1) for count in counts)) if sum(left) == most]


@lru_cache(maxsize=5_000)
def _ways(held: Held, room: Room) -> tuple[Held, ...]:
    return tuple(held.all_of([_counts(*kind) for kind in zip(held.now, held.times, room, strict=True)]))


@lru_cache(maxsize=5_000)
def _ways_to(held: Held, least: int, most: int, room: Room) -> tuple[Held, ...]:
    kinds = [_sums(counts, times, gap) for counts, times, gap in zip(held.now, held.times, room, strict=True)]
    further = list(accumulate((max(kind.values()) for kind in reversed(kinds)), initial=0))
    sums: list[tuple[tuple[Counts, ...], int]] = [((), 0)]
    for kind, later in zip(kinds, reversed(further[:-1]), strict=True):
        sums = [((*now, counts), total + more) for now, total in sums for counts, more in kind.items()]
        sums = [(now, total) for now, total in sums if total <= most and least <= total + later]
        if len(sums) > WAYS_MAX:
            raise TooMany
    return tuple(held.with_counts(now) for now in sorted((now for now, _ in sums), key=held.distance))


@lru_cache(maxsize=5_000)
def _sums(counts: Counts, times: int, gap: Gap) -> dict[Counts, int]:
    """Return how many may be held, of one kind, and how much that is."""
    return {now: sumprod(now, gap.amounts) for now in _counts(counts, times, gap)}


def _more(before: Counts, now: Counts) -> int:
    return sum(max(0, then - count) for count, then in zip(before, now, strict=True))


def sumprod(counts: Counts, amounts: tuple[int, ...]) -> int:
    """Return how much so many of these are."""
    return sum(amount * count for amount, count in zip(amounts, counts, strict=True))
