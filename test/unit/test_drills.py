"""The drills' own arithmetic: schedule, waits, gaps, and what is held against a requirement."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from drills import schedule
from drills.clients import Clients
from drills.drill import Course, Plan, Point, Result, Run, result
from drills.fault import Fault
from drills.faults import FAULTS, chosen
from drills.judge import Audit, Explained
from drills.logs import LINES_MAX, Logs, excerpt
from drills.measure import (
    Measured,
    Request,
    Span,
    Waits,
    Window,
    measure,
    percentile,
    requests_of,
    silence_s,
    throughput,
    windows,
)
from drills.records import CUT, Record
from drills.report import Report, table
from drills.requirement import NOTHING_FAILS, Outcome, Requirement, missed, of_controller
from drills.scene import Scene
from drills.schedule import Load, Town
from drills.series import Series, batches
from drills.torn import HEADER, bytes_before
from drills.wire import Wire
from histories.model import Invocation, Ok, Operation, Unknown
from msgspec.structs import replace

from local.system import System

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
        well_s=5.0,
        others_share=None,
        outlasted_s=0.0,
    )
    return replace(outcome, **fields)


def a_run(number: int = 0, **fields: Any) -> Result:
    run = Result(
        fault="redis-kill",
        what="a Redis primary: kill -9",
        required="0 failed",
        number=number,
        seed=f"1/redis-kill/{number}",
        course=Course(victims=[], events=[], fault_s=Span(4.0, 4.1), deaths={}, load_average=1.0, logs={}),
        outcome=an_outcome(),
        missed=[],
        points=[Point(5.0, 0.1)],
        problems=[],
    )
    return replace(run, **fields)


def a_fault(**fields: Any) -> Fault:
    fields = {"name": "kill", "what": "a process: kill -9", "requirement": NOTHING_FAILS, **fields}
    return Fault(inject=lambda _scene: None, **fields)


def a_series(*runs: Result, **fields: Any) -> Series:
    clean = Audit(is_clean=True, counts=dict.fromkeys(("messages", "paid", "failed", "charges", "deductions"), 9))
    return replace(Series(runs=list(runs or [a_run()]), explained=Explained(), audit=clean, seconds=40.0), **fields)


def a_report(*series: Series, **fields: Any) -> Report:
    return Report(list(series), Plan(rate=80.0, seconds=10.0, seed=1), "ha", "v1", **fields)


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

    measured = measure(records, Window(FAULT))

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

    measured = measure([*records, a_record(due=10.01, ended=14.51)], Window(FAULT))

    assert measured.silence_s < 0.2
    assert measured.gap_s == pytest.approx(4.5)
    assert measured.busy_until_s == pytest.approx(4.51)


def test_a_request_with_a_key_that_never_had_an_answer_is_counted() -> None:
    records = [a_record(due=11.0, ended=31.0, status=503, key="k"), a_record(due=12.0, ended=32.0, status=503)]

    measured = measure(records, Window(FAULT))

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

    assert measure([record], Window(FAULT)).failures == failures


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (99, 10), (100, 10), (10, 1), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent: int, value: float) -> None:
    assert percentile(range(1, 11), percent) == value


def test_throughput_counts_answers_within_its_time() -> None:
    requests = [a_request(0, ended) for ended in (1.0, 2.0, 3.0, 4.0)]

    assert throughput([*requests, a_request(0, 2.5, is_answered=False)], Span(2.0, 4.0)) == 1.0


# --- several faults under one load -----------------------------------------------------------------------------------

FIRST, SECOND = windows(faults=[10.0, 20.0], calms=[15.0, 26.0])


def test_a_load_has_a_part_for_each_fault_that_ends_with_the_next_one() -> None:
    assert windows([10.0], [15.0]) == [Window(10.0)]
    assert windows([10.0, 20.0], [15.0, 26.0]) == [Window(10.0, until=20.0), Window(20.0, calm=15.0)]


def test_before_a_later_fault_is_what_was_due_since_all_was_well_again() -> None:
    records = [a_record(due=due, ended=due + 0.1) for due in (9.0, 14.0, 16.0, 19.0, 21.0)]

    assert measure(records, FIRST).before.count == 1
    assert measure(records, SECOND).before.count == 2


def test_a_wait_that_the_next_fault_makes_long_is_the_next_ones() -> None:
    records = [a_record(due=19.9, ended=24.0), *(a_record(due=due, ended=due + 0.1) for due in (11.0, 19.0, 21.0))]

    first, second = measure(records, FIRST), measure(records, SECOND)

    assert first.after.longest_s == pytest.approx(0.1)
    assert second.after.longest_s == pytest.approx(4.1)
    assert (first.busy_until_s, second.busy_until_s) == (0.0, pytest.approx(4.0))


def test_a_wait_that_began_long_before_the_next_fault_is_both_faults() -> None:
    records = [a_record(due=11.0, ended=24.0), a_record(due=12.0, ended=12.1), a_record(due=19.9, ended=19.95)]

    assert measure(records, FIRST).gap_s == pytest.approx(9.0)
    assert measure(records, SECOND).gap_s == pytest.approx(13.0)


def test_silence_after_the_next_fault_is_the_next_ones() -> None:
    dues = (10.1, *(11.0 + number / 10 for number in range(90)), 23.0)
    records = [a_record(due=due, ended=due + 0.05) for due in dues]

    assert measure(records, FIRST).silence_s < 1.0
    assert measure(records, SECOND).silence_s == pytest.approx(3.05)


def test_every_call_is_counted_once_with_the_last_fault_before_its_end() -> None:
    records = [
        a_record(9.0, 9.1, 504),
        a_record(9.9, 10.1, CUT),
        a_record(16.0, 16.1, 503),
        a_record(19.9, 20.1, CUT, key="k"),
        a_record(25.0, 25.1),
    ]

    first, second = measure(records, FIRST), measure(records, SECOND)

    assert first.failures == {"503": 1, "504": 1, "cut": 1}
    assert second.failures == {"cut": 1}
    assert (first.answers, second.answers) == ({"503": 1, "504": 1, "cut": 1}, {"200": 1, "cut": 1})
    assert (first.soonest_503_s, second.soonest_503_s) == (pytest.approx(0.1), None)


def test_who_is_never_answered_is_counted_once_where_it_was_due() -> None:
    record = a_record(due=12.0, ended=102.0, status=CUT, key="k")

    assert measure([record], FIRST).unanswered == 1
    assert measure([record], SECOND).unanswered == 0


def test_clients_are_kept_waiting_as_long_as_anybody_lately_was_or_still_is() -> None:
    clients, now = Clients(Wire("127.0.0.1", 1), Random(1), LOAD), time.monotonic()
    clients.records += [a_record(now - 60.0, now - 50.0), a_record(now - 1.5, now - 1.0)]

    assert clients.longest_wait_s() == pytest.approx(0.5)


def test_a_fault_after_the_end_of_the_load_was_not_felt() -> None:
    records = [a_record(due=due, ended=due + 0.1) for due in (9.0, 11.0, 17.0)]
    run = Run(Scene(System("test")), chosen("redis-kill")[0], 1, "1/redis-kill/1", Span(20.0, 20.1), well_s=5.0)

    found = result(run, SECOND, records, start=0.0)

    assert found.missed == ["the load ended 3 s before the fault did: not measured"]
    assert [point.due_s for point in found.points] == [17.0]


def test_runs_are_put_together_as_far_as_their_fault_allows() -> None:
    many, few = a_fault(together_max=100), a_fault(name="long", together_max=2)

    parts = [(batch.fault.name, batch.numbers) for batch in batches([many, few], runs=5, together=3)]

    assert parts == [("kill", (0, 1, 2)), ("kill", (3, 4)), ("long", (0, 1)), ("long", (2, 3)), ("long", (4,))]


def test_a_load_may_last_so_much_longer_as_there_are_runs_in_it() -> None:
    (batch,) = batches([a_fault(load_s_max=60.0)], runs=4, together=10)

    assert batch.load_s_max == 240.0
    assert batch.after(3).numbers == (3,)


def test_files_about_a_series_have_the_numbers_of_its_runs() -> None:
    assert a_series(a_run(3)).name == "redis-kill-3"
    assert a_series(a_run(3), a_run(4), a_run(5)).name == "redis-kill-3-5"


def test_a_run_that_broke_off_was_begun() -> None:
    assert a_series(a_run(0), a_run(1)).begun == 2
    assert a_series(a_run(0), a_run(1), broke_off="nobody leads").begun == 3


@pytest.mark.parametrize(
    ("series", "phrase"),
    [
        (a_series(explained=Explained(violations=["a", "b"])), "2 answers cannot be explained"),
        (a_series(explained=Explained(undecided=["a"])), "1 undecided"),
        (a_series(audit=Audit(is_clean=False, findings=[OVERCHARGED])), "audit: 1 x I3 overcharged"),
        (a_series(audit=Audit(is_clean=False, cannot_tell="no log")), "audit: no log"),
    ],
)
def test_what_does_not_fit_together_is_said_of_the_series(series: Series, phrase: str) -> None:
    assert series.inconsistencies == [phrase]
    assert not series.is_as_required


def test_a_series_is_as_required_if_every_run_is() -> None:
    assert a_series(a_run(0), a_run(1)).is_as_required
    assert not a_series(a_run(0), a_run(1, missed=["1 x 503"])).is_as_required


# --- report ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_counted_by_series_and_the_rest_by_run() -> None:
    broken = a_series(a_run(0, missed=["1 x 503"]), a_run(1), explained=Explained(violations=["two charges"]))

    (row,) = a_report(broken, a_series(a_run(2), a_run(3))).rows

    assert row.verdict == "1 of 4 runs: 1 x 503; 1 of 2 series: 1 answers cannot be explained"
    assert (row.wrong, row.unclean) == ("1", 0)
    assert not row.is_as_required


def test_a_broken_series_is_shown_though_no_run_missed_anything() -> None:
    unclean = Audit(is_clean=False, findings=[OVERCHARGED])

    report = a_report(a_series(a_run(0), a_run(1), audit=unclean, explained=Explained(undecided=["slow"])))

    (row,) = report.rows
    assert row.missed == []
    assert row.cells()[-3:] == ("0, 1 undecided", "1 of 1 not clean", row.verdict)
    assert table(report).rows[0].style == "red"
    assert "Series 0-1: 2 runs" in report.page({"redis-kill-0": ""})


def test_a_row_without_a_miss_says_nothing() -> None:
    report = a_report(a_series(a_run(0), a_run(1)))

    assert report.rows[0].verdict == ""
    assert report.rows[0].is_as_required
    assert "As required." in report.page({"redis-kill-0": ""})


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_quiet_drill_misses_nothing() -> None:
    assert missed(replace(NOTHING_FAILS, gap_s_max=2.0), an_outcome()) == []


@pytest.mark.parametrize(
    ("outcome", "phrase"),
    [
        (an_outcome(measured=a_measured(failures={"503": 2})), "2 x 503"),
        (an_outcome(measured=a_measured(unanswered=1)), "1 with a key never answered"),
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

    assert measure([patient, refused], Window(FAULT)).soonest_503_s == pytest.approx(20.0)
