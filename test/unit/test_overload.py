"""The overload drill's own arithmetic: goodput, refusals, recovery, and what is held against the requirement."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from drills.flood import Answer, Call, Line
from drills.measure import Span
from drills.overload import (
    BASKETS,
    GOODPUT_SHARE_MIN,
    PSS_MB_MAX,
    RECOVERY_S_MAX,
    WINDOW_S,
    Load,
    Phase,
    goodput,
    is_refusal,
    judged,
    kind_of,
    look_at,
    missed,
    operation_of,
    planned,
    recovery_s,
    spans_of,
    word_of,
)
from histories.model import Ok, Refused, Unknown
from msgspec.structs import replace

FULL = '{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"..."}'
UNKNOWN = '{"type":"about:blank","title":"no outcome in time","status":503,"detail":"..."}'
PHASES = [Phase("before", 10, 10), Phase("at capacity", 20, 10), Phase("overload", 100, 10), Phase("after", 10, 10)]
SPANS = spans_of(PHASES, 0.0)


class FakeTransport(asyncio.Transport):
    """Takes all that is sent."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


def an_answer(due: float, wait_s: float = 0.01, status: int = 200, body: str = "yes", path: str = "") -> Answer:
    call = Call(due, "POST", path or "/stock/add/1/1")
    return Answer(call, due, due, due + wait_s, status, body, is_told=True)


def steady(phase: Phase, wait_s: float = 0.01) -> list[Answer]:
    began = SPANS[phase.name].began
    return [an_answer(began + number / phase.rate, wait_s) for number in range(int(phase.rate * phase.seconds))]


def a_verdict(**fields: Any) -> Any:
    answers = [answer for phase in PHASES for answer in steady(phase)]
    load = Load(phases=PHASES, capacity=20, answers=answers, others=[], pss_mb={"web": 100}, audit="", is_well=True)
    # These answers stand for no town's: the checker has nothing to hold them against.
    well = judged(replace(load, answers=[replace(answer, status=0) for answer in answers]))
    rates = {"at capacity": 20.0, "overload": 20.0}
    return replace(well, **{"goodput": rates, "answers": {"overload": {"200": 9}}, "recovery_s": 0.0, **fields})


async def test_an_answer_that_comes_in_pieces_is_one_answer() -> None:
    line, whole = Line(), b"HTTP/1.1 200 OK\r\nConnection: x\r\nContent-Length: 5\r\n\r\nhello"
    line.connection_made(FakeTransport())
    answer = line.ask(b"GET / HTTP/1.1\r\n\r\n")

    for place in range(0, len(whole), 7):
        assert not answer.done()
        line.data_received(whole[place : place + 7])

    assert answer.result() == whole


async def test_a_connection_that_ends_is_no_answer() -> None:
    line = Line()
    line.connection_made(FakeTransport())
    answer = line.ask(b"GET / HTTP/1.1\r\n\r\n")

    line.data_received(b"HTTP/1.1 200")
    line.connection_lost(None)

    assert answer.result() == b""


def test_phases_follow_each_other() -> None:
    assert {
        "before": Span(0, 10),
        "at capacity": Span(10, 20),
        "overload": Span(20, 30),
        "after": Span(30, 40),
    } == SPANS


def test_calls_are_due_at_the_rate_of_their_phase_and_no_order_is_checked_out_twice() -> None:
    calls = list(planned([Phase("slow", 100, 2), Phase("fast", 500, 2)], Random(1)))

    assert sum(call.due_s < 2 for call in calls) == 200
    assert sum(call.due_s >= 2 for call in calls) == 1000
    orders = [call.path for call in calls if "checkout" in call.path]
    assert len(orders) == len(set(orders)) > 300
    assert f"/orders/checkout/{BASKETS}" in orders
    assert {call.method for call in calls if "find" in call.path} == {"GET"}


def test_a_key_is_for_one_post_only() -> None:
    keys = [call.key for call in planned([Phase("fast", 500, 2)], Random(1)) if call.key]

    assert len(keys) == len(set(keys)) > 100


def test_every_order_that_was_asked_for_is_looked_at() -> None:
    paths = [call.path for call in look_at([an_answer(0, path="/orders/checkout/777"), an_answer(1)])]

    assert "/orders/find/777" in paths
    assert "/orders/find/0" in paths
    assert "/stock/find/0" in paths
    assert "/payment/find_user/0" in paths


def test_goodput_is_what_ended_with_a_yes_or_a_no() -> None:
    answers = [
        an_answer(1),
        an_answer(2, status=409),
        an_answer(3, status=429),
        an_answer(4, status=503, body=FULL),
        an_answer(5, status=0),
        an_answer(9.9, wait_s=1),
    ]

    assert goodput(answers, Span(0, 10)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("status", "body", "refuses", "word"),
    [
        (429, "{}", True, "429"),
        (503, FULL, True, "503 Service Unavailable"),
        (503, UNKNOWN, False, "503 no outcome in time"),
        (503, "<html>", False, "503 "),
        (0, "", False, "cut"),
        (200, "yes", False, "200"),
    ],
)
def test_a_refusal_is_known_by_its_title(status: int, body: str, word: str, *, refuses: bool) -> None:
    answer = an_answer(0, status=status, body=body)

    assert is_refusal(answer) is refuses
    assert word_of(answer) == word


def test_a_refusal_counts_as_not_done_and_what_is_unknown_as_unknown() -> None:
    assert operation_of(an_answer(0, status=503, body=FULL)).outcome == Refused(429)
    assert operation_of(an_answer(0, status=503, body=UNKNOWN)).outcome == Unknown()
    assert operation_of(an_answer(0, status=0)).outcome == Unknown()
    assert operation_of(an_answer(0)).outcome == Ok("yes")


def test_it_is_normal_again_when_no_later_window_has_many_that_are_slow_or_refused() -> None:
    before, after = steady(PHASES[0]), steady(PHASES[3])
    assert recovery_s([*before, *after], SPANS) == 0.0

    slow = [replace(answer, ended=answer.due + 3) if answer.due < 32 else answer for answer in after]
    assert recovery_s([*before, *slow], SPANS) == pytest.approx(2.0)

    refused = [an_answer(answer.due, status=503, body=FULL) if answer.due < 31 else answer for answer in after]
    assert recovery_s([*before, *refused], SPANS) == pytest.approx(1.0)


def test_one_slow_call_in_a_window_of_many_is_no_overload() -> None:
    many = [an_answer(30 + number * WINDOW_S / 40) for number in range(400)]
    many[100] = replace(many[100], ended=many[100].due + 3)

    assert recovery_s([*steady(PHASES[0]), *many], SPANS) == 0.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("order-web-0", "web"), ("stock-processor-1", "processor"), ("kafka-2", "kafka"), ("gateway", "gateway")],
)
def test_a_process_has_a_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"answers": {"overload": {"502": 3}}}, "3 x 502"),
        ({"answers": {"overload": {"404": 1}}}, "1 x 404"),
        ({"violations": ["..."]}, "1 answers cannot be explained"),
        ({"audit": "1 x I3"}, "audit: 1 x I3"),
        ({"is_well": False}, "not well afterwards"),
        ({"untold": 2}, "2 refusals without Retry-After or problem+json"),
        ({"goodput": {"at capacity": 20.0, "overload": 20 * GOODPUT_SHARE_MIN - 1}}, "goodput 13 < 14"),
        ({"refused_p99_s": 1.5}, "refusals take 1.50 s"),
        ({"refused_max_s": 20.0}, "a refusal took 20.00 s"),
        ({"answers": {"overload": {"503 no outcome in time": 1}}}, "1 x 503 no outcome in time"),
        ({"recovery_s": RECOVERY_S_MAX + 1}, "normal after 6.0 s > 5 s"),
        ({"pss_mb": {"web": PSS_MB_MAX["web"] + 1.0}}, "a web process of"),
    ],
)
def test_what_is_not_as_required_is_said(fields: dict[str, Any], phrase: str) -> None:
    (said,) = missed(a_verdict(**fields))

    assert said.startswith(phrase)


def test_what_is_as_required_says_nothing() -> None:
    refused = {"503 Service Unavailable": 3, "503 too busy": 1, "503 not now": 1, "429": 1}

    assert missed(a_verdict(answers={"overload": {"200": 5, **refused}})) == []
