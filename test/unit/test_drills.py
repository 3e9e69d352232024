"""The drills' own arithmetic: schedule, waits, gaps, and what is held against a requirement."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from drills import schedule
from drills.faults import FAULTS, chosen
from drills.judge import Audit, Explained
from drills.logs import LINES_MAX, Logs, excerpt
from drills.measure import Measured, Request, Span, Waits, measure, percentile, requests_of, silence_s, throughput
from drills.records import CUT, Record
from drills.requirement import NOTHING_FAILS, Outcome, Requirement, missed, of_controller
from drills.schedule import Load, Town
from drills.torn import HEADER, bytes_before
from histories.model import Invocation, Ok, Operation, Unknown
from msgspec.structs import replace

TOWN = Town(
    users=("u1", "u2"),
    poor=("p1",),
    items=("i1", "i2"),
    scarce=("s1",),
    orders=("o0", "o1", "o2"),
    baskets=("b1",),
)
LOAD = Load(rate=50, seconds_max=10, entities=2)
FAULT = 10.0
OVERCHARGED = {"invariant": "I3", "kind": "overcharged"}


# --- builders --------------------------------------------------------------------------------------------------------


def a_record(due: float, ended: float, status: int = 200, **others: Any) -> Record:
    """A call that began when it was due, unless `began` is given; `number` is its request."""
    began, key = others.pop("began", due), others.pop("key", None)
    outcome = Ok("yes") if status == 200 else Unknown()
    operation = Operation(Invocation("a client", "POST", "/stock/add/i1/1", key), outcome, began, ended)
    others.setdefault("expected", (200,))
    others.setdefault("retry_after_s", 1.0 if status == 503 else None)
    others.setdefault("number", round(due * 1000))
    return Record(operation, status, due=due, **others)


def a_request(due: float, ended: float, *, is_answered: bool = True, path: str = "/stock/add/i1/1") -> Request:
    return Request(due, ended, path, "200", has_key=False, is_answered=is_answered, failures=())


def a_measured(**fields: Any) -> Measured:
    waits = Waits(count=100, p50_s=0.01, p99_s=0.1, longest_s=0.2)
    well = Measured(
        before=waits,
        after=waits,
        silence_s=0.1,
        busy_until_s=0.0,
        answers={"200": 200},
        failures={},
        unanswered=0,
        soonest_503_s=None,
    )
    return replace(well, **fields)


def an_outcome(**fields: Any) -> Outcome:
    outcome = Outcome(
        measured=a_measured(),
        explained=Explained(),
        audit=Audit(is_clean=True),
        well_s=5.0,
        others_share=None,
        outlasted_s=0.0,
    )
    return replace(outcome, **fields)


def waited(seconds: float) -> Outcome:
    return an_outcome(measured=a_measured(after=Waits(count=9, p50_s=0.0, p99_s=0.0, longest_s=seconds)))


# --- schedule --------------------------------------------------------------------------------------------------------


def test_the_same_seed_plans_the_same_calls() -> None:
    assert schedule.plan(TOWN, Random("7"), LOAD) == schedule.plan(TOWN, Random("7"), LOAD)


def test_calls_are_due_at_a_steady_rate_whatever_is_repeated() -> None:
    planned = schedule.plan(TOWN, Random("7"), LOAD)

    firsts = {call.key or number: call.due_s for number, call in reversed(list(enumerate(planned)))}
    assert sorted(firsts.values()) == pytest.approx([number / 50 for number in range(500)])


def test_calls_are_planned_in_the_order_in_which_they_are_due() -> None:
    due = [call.due_s for call in schedule.plan(TOWN, Random("7"), LOAD)]

    assert due == sorted(due)
    assert due[-1] < 10


def test_every_order_is_checked_out_once_but_for_repeats_with_its_key() -> None:
    checkouts = [call for call in schedule.plan(TOWN, Random("7"), LOAD) if call.order is not None]

    orders = {call.order for call in checkouts}
    assert orders == set(range(len(orders)))
    assert len(orders) == len({(call.order, call.key) for call in checkouts}) < len(checkouts)


def test_every_kind_of_call_is_planned_and_some_are_refused() -> None:
    planned = schedule.plan(TOWN, Random("7"), LOAD)

    assert {call.path.split("/")[2] for call in planned} == {
        *("checkout", "addItem", "add", "subtract", "pay", "find", "find_user")
    }
    assert {call.expected for call in planned} == {(200,), (402,), (409,)}


def test_only_posts_have_keys() -> None:
    planned = schedule.plan(TOWN, Random("7"), LOAD)

    assert {call.method for call in planned if call.key} == {"POST"}
    assert any(call.key is None for call in planned if call.method == "POST")


# --- waits and gaps --------------------------------------------------------------------------------------------------


def test_a_wait_begins_when_the_call_was_due_not_when_it_was_sent() -> None:
    (request,) = requests_of([a_record(due=1.0, began=3.0, ended=4.0)])

    assert request.wait_s == 3.0


def test_a_wait_ends_with_the_yes_or_no_after_all_that_was_asked_again() -> None:
    (request,) = requests_of(
        [
            a_record(due=1.0, ended=2.0, status=CUT, key="k"),
            a_record(due=1.0, began=2.2, ended=22.2, status=503, key="k"),
            a_record(due=1.0, began=22.4, ended=23.0, key="k"),
        ]
    )

    assert request.wait_s == 22.0
    assert request.is_answered
    assert request.failures == ("cut", "503")


def test_calls_of_the_set_up_are_no_requests_of_the_load() -> None:
    assert requests_of([a_record(due=1.0, ended=2.0, number=None)]) == []


def test_who_was_under_way_at_the_fault_counts_as_after_it() -> None:
    records = [a_record(due=9.0, ended=9.1), a_record(due=9.9, ended=13.0), a_record(due=12.0, ended=12.1)]

    measured = measure(records, FAULT)

    assert (measured.before.count, measured.after.count) == (1, 2)
    assert measured.after.longest_s == pytest.approx(3.1)
    assert measured.gap_s == pytest.approx(3.1)


def test_silence_is_the_longest_time_without_a_yes_or_no_from_the_fault_on() -> None:
    requests = [a_request(due, due + 0.1) for due in (2.0, 9.0, 12.0, 12.5, 13.0)]

    assert silence_s(requests, FAULT) == pytest.approx(2.1)


def test_an_error_does_not_break_the_silence() -> None:
    requests = [a_request(11.0, 11.1, is_answered=False), a_request(13.0, 14.0), a_request(13.5, 14.1)]

    assert silence_s(requests, FAULT) == pytest.approx(4.0)


def test_silence_goes_on_until_the_next_answer_though_nothing_is_due_any_more() -> None:
    requests = [a_request(10.5, 10.6), a_request(11.0, 15.0), a_request(11.5, 16.0)]

    assert silence_s(requests, FAULT) == pytest.approx(4.4)


def test_nobody_who_asks_is_no_silence() -> None:
    assert silence_s([a_request(1.0, 1.1), a_request(2.0, 2.1)], FAULT) == 0.0


def test_the_longest_wait_is_the_gap_where_others_were_served_meanwhile() -> None:
    records = [a_record(due=10.0 + number / 10, ended=10.05 + number / 10) for number in range(50)]

    measured = measure([*records, a_record(due=10.01, ended=14.51)], FAULT)

    assert measured.silence_s < 0.2
    assert measured.gap_s == pytest.approx(4.5)
    assert measured.busy_until_s == pytest.approx(4.51)


def test_a_request_with_a_key_that_never_had_an_answer_is_counted() -> None:
    records = [a_record(due=11.0, ended=31.0, status=503, key="k"), a_record(due=12.0, ended=32.0, status=503)]

    measured = measure(records, FAULT)

    assert measured.unanswered == 1
    assert measured.failures == {"503": 2}
    assert measured.soonest_503_s == 20.0


@pytest.mark.parametrize(
    ("status", "expected", "retry_after_s", "failures"),
    [
        (200, (200,), None, {}),
        (409, (409,), None, {}),
        (CUT, (200,), None, {"cut": 1}),
        (504, (200,), 2.0, {"504": 1}),
        (429, (200,), 1.0, {"429": 1}),
        (503, (200,), None, {"wrong 503": 1}),
        (409, (200,), None, {"wrong 409": 1}),
        (200, (402,), None, {"wrong 200": 1}),
    ],
)
def test_a_failure_is_an_error_a_cut_or_an_answer_that_should_be_another(
    status: int, expected: tuple[int, ...], retry_after_s: float | None, failures: dict[str, int]
) -> None:
    record = a_record(11.0, 11.1, status, expected=expected, retry_after_s=retry_after_s)

    assert measure([record], FAULT).failures == failures


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (99, 10), (100, 10), (10, 1), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert percentile(range(1, 11), percent) == value


def test_throughput_counts_answers_within_its_time() -> None:
    requests = [a_request(0, ended) for ended in (1.0, 2.0, 3.0, 4.0)]

    assert throughput([*requests, a_request(0, 2.5, is_answered=False)], Span(2.0, 4.0)) == 1.0


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_quiet_drill_misses_nothing() -> None:
    assert missed(replace(NOTHING_FAILS, gap_s_max=2.0), an_outcome()) == []


@pytest.mark.parametrize(
    ("outcome", "phrase"),
    [
        (an_outcome(measured=a_measured(failures={"503": 2})), "2 x 503"),
        (an_outcome(measured=a_measured(unanswered=1)), "1 with a key never answered"),
        (an_outcome(explained=Explained(violations=["a", "b"])), "2 answers cannot be explained"),
        (an_outcome(explained=Explained(undecided=["a"])), "1 undecided"),
        (an_outcome(audit=Audit(is_clean=False, findings=[OVERCHARGED])), "audit: 1 x I3 overcharged"),
        (an_outcome(audit=Audit(is_clean=False, cannot_tell="no log")), "audit: no log"),
        (an_outcome(well_s=None), "not well within 60 s"),
        (an_outcome(outlasted_s=9.0), "the load ended 9 s before the fault did: not measured"),
        (an_outcome(well_s=61.0), "not well within 60 s"),
        (waited(2.5), "gap 2.5 s > 2 s"),
        (an_outcome(measured=a_measured(silence_s=3.0)), "gap 3.0 s > 2 s"),
    ],
)
def test_whatever_is_not_as_required_is_said(outcome: Outcome, phrase: str) -> None:
    assert missed(replace(NOTHING_FAILS, gap_s_max=2.0), outcome) == [phrase]


def test_more_time_is_allowed_where_the_controller_is_hit() -> None:
    requirement = replace(NOTHING_FAILS, gap_s_max=4.5, controller_gap_s_max=7.0)

    assert missed(requirement, waited(6.0)) == ["gap 6.0 s > 4.5 s"]
    assert missed(of_controller(requirement), waited(6.0)) == []
    assert of_controller(replace(NOTHING_FAILS, gap_s_max=2.0)).gap_s_max == 2.0


def test_only_the_failures_that_a_requirement_names_are_allowed() -> None:
    requirement = Requirement(failures=frozenset({"503"}))
    outcome = an_outcome(measured=a_measured(failures={"503": 9, "cut": 1, "wrong 404": 2}))

    assert missed(requirement, outcome) == ["1 x cut", "2 x wrong 404"]


@pytest.mark.parametrize(("soonest_s", "phrases"), [(20.0, []), (None, []), (0.1, ["503 after 0.1 s"])])
def test_a_503_that_was_not_waited_for_is_said(soonest_s: float | None, phrases: list[str]) -> None:
    requirement = Requirement(failures=frozenset({"503"}), is_503_late=True)

    assert missed(requirement, an_outcome(measured=a_measured(soonest_503_s=soonest_s))) == phrases


@pytest.mark.parametrize(("share", "phrases"), [(0.9, []), (0.5, ["throughput of the others 0.50 < 0.6"])])
def test_others_that_suffer_too_are_said(share: float, phrases: list[str]) -> None:
    assert missed(Requirement(others_share_min=0.6), an_outcome(others_share=share)) == phrases


# --- faults and logs -------------------------------------------------------------------------------------------------


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_fault_is_chosen_by_its_name_or_by_how_it_begins() -> None:
    assert [fault.name for fault in chosen("everything")] == ["everything"]
    assert [fault.name for fault in chosen("web-kill")] == [
        *("web-kill-order", "web-kill-stock", "web-kill-payment"),
    ]
    assert chosen("") == list(FAULTS)
    assert chosen("nothing") == []


def test_an_excerpt_has_few_lines_of_each_kind_and_says_how_many_are_missing() -> None:
    lines = [f"12:00:{number:02} refused by node {number}" for number in range(20)]

    assert excerpt("\n".join([*lines, "gave up"])).splitlines() == [*lines[:3], "gave up", "... 17 lines left out"]


def test_an_excerpt_is_no_longer_than_people_read() -> None:
    lines = [f"{letter}{other}{third}" for letter in "ghijk" for other in "ghijk" for third in "ghijk"]

    assert len(excerpt("\n".join(lines)).splitlines()) == LINES_MAX + 1


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (1, 22), (2, 22), (3, 44), (9, 44)])
def test_a_segment_is_cut_in_front_of_the_batch_that_has_the_offset(offset: int, length: int) -> None:
    segment = b"".join(HEADER.pack(first, 10) + bytes(10) for first in (0, 2))

    assert bytes_before(segment, offset) == length


def test_a_batch_that_is_torn_already_stays_as_it_is() -> None:
    segment = HEADER.pack(0, 10) + bytes(10) + HEADER.pack(1, 10) + bytes(4)

    assert bytes_before(segment, 9) == len(segment)


def test_logs_are_what_was_written_since_also_in_a_new_file(tmp_path: Any) -> None:
    for name in ("grown", "silent", "rotated"):
        (tmp_path / f"{name}.log").write_text("before before\n")
    logs = Logs(tmp_path)
    with (tmp_path / "grown.log").open("a") as grown:
        grown.write("after\n")
    (tmp_path / "rotated.log").write_text("new\n")

    assert logs.since() == {"grown": "after", "rotated": "new"}


def test_a_refusal_because_too_many_wait_already_is_no_503_before_its_time() -> None:
    patient = a_record(11.0, 31.0, 503, problem='{"type":"about:blank","title":"no outcome in time","status":503}')
    refused = a_record(
        12.0, 12.01, 503, problem='{"type":"about:blank","title":"too busy","status":503,"detail":"..."}'
    )

    assert measure([patient, refused], FAULT).soonest_503_s == pytest.approx(20.0)
