"""What a drill measured: how long clients waited, how long nobody got anything, what was answered.

Two gaps, and the longer one counts:
* the longest wait: of a request, from the moment when it was due (not: was sent) to its yes or no, over everything that
  was asked again meanwhile; of those that were under way at the fault or due later;
* the longest silence: how long no request at all ended with a yes or a no, from the fault on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil, inf

import msgspec
from drills.records import Record
from msgspec.structs import replace

TOO_BUSY = '"title":"too busy"'
"""In a 503 that is given at once, because too many wait already."""
LONG_S = 1.0
"""Who waits longer notices it."""


class Request(msgspec.Struct, frozen=True):
    """What a client wanted, with all its calls.  `ended` is when it had a yes or a no, or gave up."""

    due: float
    ended: float
    path: str
    answer: str
    """The last one."""
    has_key: bool
    is_answered: bool
    """With a yes or a no."""
    failures: tuple[str, ...]
    """What came instead of it, or first: "cut", "503", "wrong 404"."""

    @property
    def wait_s(self) -> float:
        """How long the client waited."""
        return self.ended - self.due


class Span(msgspec.Struct, frozen=True):
    """A time of a load, from `began` to `ended`."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.ended - self.began


class Window(msgspec.Struct, frozen=True):
    """The part of a load that is one fault's, where several happen one after the other.  No moment is two faults'."""

    fault: float
    calm: float = -inf
    """All was well since, after the fault before; the load's first fault has none before it."""
    until: float = inf
    """When the next fault began."""

    def counts(self, moment: float) -> bool:
        """Tell whether what ended at this moment is counted here: since the fault, or before any."""
        return moment < self.until and (moment >= self.fault or self.calm == -inf)

    def has(self, request: Request) -> bool:
        """Tell whether a request was due in the calm before the fault, under way at it, or due later."""
        return request.due < self.until and (request.due >= self.calm or request.ended >= self.fault)


class Waits(msgspec.Struct, frozen=True):
    """How long requests waited, in seconds."""

    count: int
    p50_s: float
    p99_s: float
    longest_s: float


class Measured(msgspec.Struct, frozen=True):
    """What one fault cost the clients of a load."""

    before: Waits
    after: Waits
    silence_s: float
    busy_until_s: float
    """When the last request that had to wait for long was answered, after the fault; 0 if none had to."""
    answers: dict[str, int]
    """Of all calls that are counted here."""
    failures: dict[str, int]
    unanswered: int
    """Requests with a key that never had a yes or a no."""
    soonest_503_s: float | None
    """The shortest time after which a 503 was said, for another reason than that too many wait already."""

    @property
    def gap_s(self) -> float:
        """The longer one of the two gaps."""
        return max(self.silence_s, self.after.longest_s)


def requests_of(records: Iterable[Record]) -> list[Request]:
    """Return what was asked for, in the order in which it was due."""
    calls: defaultdict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.number is not None:
            calls[record.number].append(record)
    return sorted(map(_request, calls.values()), key=lambda request: request.due)


def failure_of(record: Record) -> str | None:
    """Return what was wrong with an answer in a word or two; None if nothing was."""
    if record.is_wrong:
        return f"wrong {record.answer}"
    return None if record.is_definite else record.answer


def _request(calls: list[Record]) -> Request:
    calls = sorted(calls, key=lambda record: record.ended)
    last, invocation = calls[-1], calls[-1].operation.invocation
    return Request(
        due=last.due,
        ended=last.ended,
        path=invocation.path,
        answer=last.answer,
        has_key=invocation.key is not None,
        is_answered=last.is_definite,
        failures=tuple(failure for call in calls if (failure := failure_of(call))),
    )


def measure(records: Sequence[Record], window: Window) -> Measured:
    """Return what is known of a part of a load, given every call of it."""
    load = [record for record in records if record.number is not None]
    everything = requests_of(load)
    requests = cut_out(everything, window)
    before = [request for request in requests if request.ended < window.fault]
    after = [request for request in requests if request.ended >= window.fault]
    long = [request.ended - window.fault for request in after if request.wait_s > LONG_S]
    calls = [record for record in load if window.counts(record.ended)]
    patient = [record for record in calls if record.status == 503 and TOO_BUSY not in record.problem]
    unavailable = [record.ended - record.began for record in patient]
    unanswered = [request for request in everything if request.has_key and not request.is_answered]
    return Measured(
        before=waits(before),
        after=waits(after),
        silence_s=silence_s(requests, window.fault),
        busy_until_s=max(long, default=0.0),
        answers=_counted(record.answer for record in calls),
        failures=_counted(failure for record in calls if (failure := failure_of(record))),
        unanswered=sum(window.counts(request.due) for request in unanswered),
        soonest_503_s=min(unavailable, default=None),
    )


def windows(faults: Sequence[float], calms: Sequence[float]) -> list[Window]:
    """Return the parts of a load; `faults` are when they began, `calms` when all was well again after each."""
    return list(map(Window, faults, [-inf, *calms[:-1]], [*faults[1:], inf]))


def cut_out(requests: Iterable[Request], window: Window) -> list[Request]:
    """Return the requests of a part of a load; a wait that goes on after its end belongs to the next fault."""
    return [replace(each, ended=min(each.ended, window.until)) for each in requests if window.has(each)]


def waits(requests: Iterable[Request]) -> Waits:
    """Return how long they waited; zeros for none."""
    found = sorted(request.wait_s for request in requests)
    return Waits(len(found), percentile(found, 50), percentile(found, 99), found[-1] if found else 0.0)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest of the ascending `values` that so many percent of them do not exceed; 0 for none."""
    return values[max(ceil(len(values) * percent / 100) - 1, 0)] if values else 0.0


def silence_s(requests: Sequence[Request], fault: float, until: float = inf) -> float:
    """Return the longest time without any yes or no, from the fault on, while anything is due."""
    until = min(max((request.due for request in requests), default=fault), until)
    ends = sorted(request.ended for request in requests if request.is_answered)
    times = [fault, *(end for end in ends if fault < end < until), max(until, fault)]
    # Silence at the end lasts until the next answer after it, not only until the last call was due.
    times[-1] = next((end for end in ends if end >= times[-1]), times[-1])
    return max(later - earlier for earlier, later in pairwise(times))


def throughput(requests: Iterable[Request], span: Span) -> float:
    """Return how many requests a second ended with a yes or a no."""
    ended = sum(request.is_answered and span.began <= request.ended < span.ended for request in requests)
    return ended / span.seconds


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))
