"""Overload: many times more than the system can do, for a minute.

    python -m drills overload

What it can do is answered at full speed, all else is refused at once; afterwards everything is as before at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from random import Random

import msgspec
from drills import judge
from drills.flood import Answer, Call, flood
from drills.measure import Span, percentile
from drills.schedule import KEY_RATE, KINDS, PLENTY, PRICE
from drills.well import time_until_well
from histories.checker import check
from histories.model import Invocation, Operation, Unknown
from histories.model import Refused as Answered
from histories.recording import outcome_of

from local import status
from local.system import System

ITEMS = USERS = 2_000
"""So many that few calls at once are on each: the checker tries them in any order."""
BASKETS = 500
"""Orders to which lines are added and which nobody checks out."""
AT_ONCE = 256
"""So many callers find out what the system can do, set up, and look."""
CAPACITY_S = 12.0
WARM_UP_S = 4.0
PROBE_RATE_MAX = 2_500
"""Calls prepared for each second of looking for the capacity."""
EASY = 0.5
"""Of the capacity: the load before and after."""
EASY_S = 12.0
FULL_S = 12.0
WINDOW_S = 0.5
SLOW_SHARE_MAX = 0.05
"""A window is normal when at most so many of the calls due in it are slow or refused."""
SLOW_LEAST_S = 0.3
"""Nothing quicker is slow on a machine that is shared with others."""
PSS_EVERY_S = 3.0
LATE_S = 0.1
REFUSED = frozenset({"Service Unavailable", "too busy", "not now"})
"""Titles of a 503 that was given before anything was done: by the gateway, by a web process, by its backpressure."""

RECOVERY_S_MAX = 5.0
REFUSAL_P99_S_MAX = 1.0
REFUSAL_S_MAX = 5.0
GOODPUT_SHARE_MIN = 0.7
"""Of the goodput at capacity: what refusing all the rest, and asking it, may cost on the same two cores."""
PSS_MB_MAX = {"kafka": 700, "redis": 250, "processor": 200, "snapshotter": 200, "web": 200, "gateway": 200}
"""By kind of process; a broker's heap and what Redis may use are bounded by their own settings as well."""

Spans = dict[str, Span]


class Phase(msgspec.Struct, frozen=True):
    """A steady load: calls a second, for so many seconds."""

    name: str
    rate: float
    seconds: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an overload came to.  Goodput: calls a second that were answered with a yes or a no, by phase."""

    capacity: float
    goodput: dict[str, float]
    checkouts: dict[str, float]
    """The part of it that was checkouts."""
    answers: dict[str, dict[str, int]]
    refused_p50_s: float
    refused_p99_s: float
    refused_max_s: float
    untold: int
    """429 and 503 without Retry-After or without a problem+json."""
    served_p50_s: float
    served_p99_s: float
    """How long those waited that were answered during the overload."""
    recovery_s: float
    pss_mb: dict[str, float]
    late: int
    """Calls that the generator sent too late."""
    violations: list[str]
    undecided: int
    audit: str
    is_well: bool


def overload(system: System, factor: float, seconds: float, seed: int) -> Load:
    """Find out what the system can do, ask for many times as much, and read all that there is afterwards."""
    random, folder = Random(f"{seed} {time.time_ns()}"), system.profile.run
    capacity = measure_capacity(system, random, folder)
    phases = [
        Phase("before", EASY * capacity, EASY_S),
        Phase("at capacity", capacity, FULL_S),
        Phase("drained", EASY * capacity, EASY_S),
        Phase("overload", factor * capacity, seconds),
        Phase("after", EASY * capacity, 2 * EASY_S),
    ]
    calls = list(planned(phases, random))
    town = a_town(system, sum("/orders/checkout/" in call.path for call in calls) + BASKETS, folder)
    with watched_memory(system) as pss_mb:
        answers = flood(system.gateway_url, calls, folder)
    is_well = time_until_well(system) is not None
    looks = flood(system.gateway_url, look_at(answers), folder, AT_ONCE)
    return Load(
        phases=phases,
        capacity=capacity,
        answers=answers,
        others=[*town, *looks],
        pss_mb=pss_mb,
        audit=str(judge.audit(system)),
        is_well=is_well,
    )


# --- what is asked ---------------------------------------------------------------------------------------------------


def measure_capacity(system: System, random: Random, folder: Path) -> float:
    """Return how many calls a second are answered while so many callers ask again as soon as they are answered."""
    calls = list(planned([Phase("probe", PROBE_RATE_MAX, CAPACITY_S)], random))
    a_town(system, sum("/orders/checkout/" in call.path for call in calls) + BASKETS, folder)
    answers = flood(system.gateway_url, calls, folder, AT_ONCE, CAPACITY_S)
    start = answers[0].began
    return goodput(answers, Span(start + WARM_UP_S, start + CAPACITY_S))


def a_town(system: System, orders: int, folder: Path) -> list[Answer]:
    """Make items, users and orders anew; the first orders are the baskets.  Return what was answered."""
    paths = (
        f"/stock/batch_init/{ITEMS}/{PLENTY}/{PRICE}",
        f"/payment/batch_init/{USERS}/{PLENTY}",
        f"/orders/batch_init/{orders}/{ITEMS}/{USERS}/{PRICE}",
    )
    made = [answer for path in paths for answer in flood(system.gateway_url, [Call(0, "POST", path)], folder, 2)]
    assert all(answer.status == 200 for answer in made), made
    baskets = [Call(0, "GET", f"/orders/find/{number}") for number in range(BASKETS)]
    return [*made, *flood(system.gateway_url, baskets, folder, AT_ONCE)]


def planned(phases: Iterable[Phase], random: Random) -> Iterator[Call]:
    """Yield the calls of phases that follow each other; every order that is not a basket is checked out once."""
    began_s, order = 0.0, BASKETS
    for phase in phases:
        for number in range(int(phase.rate * phase.seconds)):
            (kind,) = random.choices(list(KINDS), list(KINDS.values()))
            method, path = _asked(kind, order, random)
            order += kind == "checkout"
            has_key = method == "POST" and random.random() < KEY_RATE
            key = f"{random.getrandbits(64):016x}" if has_key else None
            yield Call(began_s + number / phase.rate, method, path, key)
        began_s += phase.seconds


def _asked(kind: str, order: int, random: Random) -> tuple[str, str]:
    item, user, amount = random.randrange(ITEMS), random.randrange(USERS), random.randint(1, 5)
    match kind:
        case "checkout":
            return "POST", f"/orders/checkout/{order}"
        case "find":
            basket = random.randrange(BASKETS)
            found = (f"/stock/find/{item}", f"/payment/find_user/{user}", f"/orders/find/{basket}")
            return "GET", random.choice(found)
        case "addItem":
            return "POST", f"/orders/addItem/{random.randrange(BASKETS)}/{item}/{amount}"
        case "pay":
            return "POST", f"/payment/pay/{user}/{amount}"
        case _:
            return "POST", f"/stock/{kind}/{item}/{amount}"


def look_at(answers: Sequence[Answer]) -> list[Call]:
    """Return the calls that read all that there is to be known: each item, user and basket, and each order."""
    checkouts = [answer.call.path.rpartition("/")[2] for answer in answers if "/orders/checkout/" in answer.call.path]
    paths = [
        *(f"/stock/find/{number}" for number in range(ITEMS)),
        *(f"/payment/find_user/{number}" for number in range(USERS)),
        *(f"/orders/find/{number}" for number in [*range(BASKETS), *checkouts]),
    ]
    return [Call(0, "GET", path) for path in paths]


@contextmanager
def watched_memory(system: System) -> Iterator[dict[str, float]]:
    """Yield the most that a process of each kind has used meanwhile, PSS in MB."""
    most: dict[str, float] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(PSS_EVERY_S):
            for process in status.processes(system.profile):
                kind = kind_of(process.name)
                most[kind] = max(most.get(kind, 0.0), process.pss_mb)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        is_over.set()
        watching.join()


def kind_of(name: str) -> str:
    """Return the kind of a process: order-web-0 is a web."""
    return next((kind for kind in PSS_MB_MAX if kind in name.split("-")), name)


# --- what came of it -------------------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of an overload."""

    phases: list[Phase]
    capacity: float
    answers: list[Answer]
    others: list[Answer]
    """To what was asked before the load and after it."""
    pss_mb: dict[str, float]
    audit: str
    is_well: bool

    @property
    def operations(self) -> list[Operation]:
        """The history."""
        return [operation_of(answer) for answer in (*self.others, *self.answers)]


def judged(load: Load) -> Verdict:
    """Return what an overload came to."""
    answers, spans = load.answers, spans_of(load.phases, load.answers[0].due - load.answers[0].call.due_s)
    refusals = sorted(answer.took_s for answer in answers if is_refusal(answer))
    served = sorted(answer.wait_s for answer in due_in(answers, spans["overload"]) if is_definite(answer))
    found = check(load.operations)
    broken = [str(violation) for violation in found if violation.kind == "broken"]
    checkouts = [answer for answer in answers if "/orders/checkout/" in answer.call.path]
    return Verdict(
        capacity=load.capacity,
        goodput={name: goodput(answers, span) for name, span in spans.items()},
        checkouts={name: goodput(checkouts, span) for name, span in spans.items()},
        answers={name: dict(Counter(map(word_of, due_in(answers, span)))) for name, span in spans.items()},
        refused_p50_s=percentile(refusals, 50),
        refused_p99_s=percentile(refusals, 99),
        refused_max_s=percentile(refusals, 100),
        untold=sum(answer.status in (429, 503) and not answer.is_told for answer in answers),
        served_p50_s=percentile(served, 50),
        served_p99_s=percentile(served, 99),
        recovery_s=recovery_s(answers, spans),
        pss_mb=load.pss_mb,
        late=sum(answer.began - answer.due > LATE_S for answer in answers),
        violations=broken,
        undecided=len(found) - len(broken),
        audit=load.audit,
        is_well=load.is_well,
    )


def spans_of(phases: Sequence[Phase], start: float) -> Spans:
    """Return from when to when each phase was."""
    times = accumulate((phase.seconds for phase in phases), initial=start)
    return {phase.name: Span(*span) for phase, span in zip(phases, pairwise(times), strict=True)}


def due_in(answers: Iterable[Answer], span: Span) -> list[Answer]:
    """Return what was due in a span."""
    return [answer for answer in answers if span.began <= answer.due < span.ended]


def goodput(answers: Iterable[Answer], span: Span) -> float:
    """Return how many calls a second ended with a yes or a no."""
    return sum(is_definite(answer) and span.began <= answer.ended < span.ended for answer in answers) / span.seconds


def is_definite(answer: Answer) -> bool:
    """Tell whether this is a yes or a no."""
    return 200 <= answer.status < 500 and answer.status != 429


def is_refusal(answer: Answer) -> bool:
    """Tell whether this says that nothing was done because there is too much to do."""
    return answer.status == 429 or (answer.status == 503 and title_of(answer) in REFUSED)


def title_of(answer: Answer) -> str:
    """Return the title of a problem, nothing if it is none."""
    try:
        return str(msgspec.json.decode(answer.body)["title"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""


def word_of(answer: Answer) -> str:
    """Return what came, in a word or three."""
    if answer.status == 503:
        return f"503 {title_of(answer)}"
    return str(answer.status) if answer.status else "cut"


def recovery_s(answers: Sequence[Answer], spans: Spans) -> float:
    """Return how long after the overload's end the last window was that was not normal."""
    before = sorted(answer.wait_s for answer in due_in(answers, spans["before"]))
    slow_s = max(2 * percentile(before, 99), SLOW_LEAST_S)
    after, last = spans["after"], 0.0
    for number in range(int(after.seconds / WINDOW_S)):
        window = Span(after.began + number * WINDOW_S, after.began + (number + 1) * WINDOW_S)
        due = due_in(answers, window)
        slow = sum(answer.wait_s > slow_s or not is_definite(answer) for answer in due)
        if slow > SLOW_SHARE_MAX * len(due):
            last = window.ended - after.began
    return last


def operation_of(answer: Answer) -> Operation:
    """Return a call as the checker takes it.  A refusal was not done: whatever it did all the same, it finds."""
    invocation = Invocation("flood", answer.call.method, answer.call.path, answer.call.key)
    if is_refusal(answer):
        return Operation(invocation, Answered(429), answer.began, answer.ended)
    outcome = outcome_of(answer.status, answer.body.encode()) if answer.status else Unknown()
    return Operation(invocation, outcome, answer.began, answer.ended)


# --- what is required ------------------------------------------------------------------------------------------------


def missed(verdict: Verdict) -> list[str]:
    """Return what is not as required, a phrase each; nothing if all is."""
    counts = Counter[str]()
    for answers in verdict.answers.values():
        counts.update(answers)
    allowed = {"200", "429", *(f"503 {title}" for title in REFUSED)}
    least = GOODPUT_SHARE_MIN * verdict.goodput["at capacity"]
    phrases = [f"{count} x {word}" for word, count in counts.items() if word not in allowed]
    too_large = {kind: mb for kind, mb in verdict.pss_mb.items() if mb > PSS_MB_MAX.get(kind, inf)}
    phrases += [f"a {kind} process of {mb:.0f} MB > {PSS_MB_MAX[kind]} MB" for kind, mb in too_large.items()]
    checks = {
        f"{len(verdict.violations)} answers cannot be explained": bool(verdict.violations),
        f"audit: {verdict.audit}": bool(verdict.audit),
        "not well afterwards": not verdict.is_well,
        f"{verdict.untold} refusals without Retry-After or problem+json": verdict.untold > 0,
        f"goodput {verdict.goodput['overload']:.0f} < {least:.0f}": verdict.goodput["overload"] < least,
        f"refusals take {verdict.refused_p99_s:.2f} s": verdict.refused_p99_s > REFUSAL_P99_S_MAX,
        f"a refusal took {verdict.refused_max_s:.2f} s": verdict.refused_max_s > REFUSAL_S_MAX,
        f"normal after {verdict.recovery_s:.1f} s > {RECOVERY_S_MAX:g} s": verdict.recovery_s > RECOVERY_S_MAX,
    }
    return phrases + [phrase for phrase, is_missed in checks.items() if is_missed]


def lines(verdict: Verdict) -> list[str]:
    """Return a verdict as people read it."""
    rates = [f"{name} {rate:.0f} ({verdict.checkouts[name]:.0f} checkouts)" for name, rate in verdict.goodput.items()]
    times = (verdict.refused_p50_s, verdict.refused_p99_s, verdict.refused_max_s)
    refused = "p50 {:.0f} ms, p99 {:.0f} ms, at most {:.0f} ms".format(*(1000 * time_s for time_s in times))
    memory = [f"{kind} {mb:.0f} of {PSS_MB_MAX.get(kind, inf)}" for kind, mb in sorted(verdict.pss_mb.items())]
    return [
        f"capacity, {AT_ONCE} callers: {verdict.capacity:.0f} calls/s",
        f"goodput/s: {', '.join(rates)}",
        *(f"answers {name}: {_counted(counts)}" for name, counts in verdict.answers.items()),
        f"refused in: {refused}; without Retry-After or problem+json: {verdict.untold}",
        f"served in, during the overload: p50 {verdict.served_p50_s:.2f} s, p99 {verdict.served_p99_s:.2f} s",
        f"normal {verdict.recovery_s:.1f} s after the overload's end",
        f"most memory of one process, PSS MB: {', '.join(memory)}",
        f"sent more than {LATE_S:g} s late: {verdict.late}",
        f"checker: {len(verdict.violations)} broken, {verdict.undecided} undecided; audit: {verdict.audit or 'clean'}",
    ]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {word}" for word, count in sorted(counts.items()))
