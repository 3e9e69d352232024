"""The soak's own arithmetic: what is felt of each fault, and how fast processes grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drills.chapters import check
from drills.judge import Audit, Explained
from drills.measure import Request, Span
from drills.records import Record, dump
from drills.resources import FILLING_S, FLOOR_S, OBSERVED_S_MIN, Growth, Sample, floor, growths, settled, slope
from drills.soak import NONE, Plan, Result, Strike, incidents, leaks, together
from drills.soak_report import fault_rows, growth_row
from histories.notation import told
from msgspec.structs import replace


def a_request(due: float, ended: float, *failures: str) -> Request:
    return Request(due, ended, "/stock/add/i1/1", "200", has_key=False, is_answered=True, failures=failures)


def a_strike(began: float, fault: str = "web-kill-stock", **others: Any) -> Strike:
    return Strike(fault=fault, span=Span(began, began + 0.1), **others)


def a_growth(**fields: Any) -> Growth:
    return replace(Growth("order-web", 1800.0, 70.0, 40, 0.0, 0.0), **fields)


def a_result(**fields: Any) -> Result:
    quiet = Result(
        plan=Plan(minutes=1, rate=80, seed=1),
        requests=100,
        unanswered=0,
        incidents=[],
        explained=Explained(),
        audit=Audit(is_clean=True),
        growths=[],
        samples=[],
        points=[],
        problems=[],
    )
    return replace(quiet, **fields)


def samples(name: str, pid: int, at: range, mb_a_second: float) -> list[Sample]:
    return [Sample(float(time), name, pid, 50 + mb_a_second * time, 20) for time in at]


# --- what is felt ----------------------------------------------------------------------------------------------------


def test_a_fault_is_felt_until_the_next_one() -> None:
    strikes = [a_strike(0.0, NONE), a_strike(10.0), a_strike(40.0, "redis-kill")]
    steady = [a_request(float(second), second + 0.1) for second in range(60)]

    found = incidents(strikes, [*steady, a_request(9.5, 12.5), a_request(41.0, 45.0)])

    assert [(incident.fault, incident.gap_s) for incident in found] == [
        (NONE, 3.0),
        ("web-kill-stock", 3.0),
        ("redis-kill", 4.0),
    ]


def test_silence_is_a_gap_too() -> None:
    answered = [a_request(time, time + 0.1) for time in (9.0, 10.1, 16.0, 17.0)]

    assert incidents([a_strike(0.0, NONE), a_strike(10.0)], answered)[1].gap_s == pytest.approx(5.9)


def test_a_failure_belongs_to_the_fault_before_it() -> None:
    strikes = [a_strike(0.0, NONE), a_strike(10.0), a_strike(40.0, "gateway-kill", allowed=frozenset({"cut"}))]
    requests = [a_request(11.0, 12.0, "503"), a_request(39.9, 40.2, "cut"), a_request(41.0, 41.1, "503", "cut")]

    found = incidents(strikes, requests)

    assert [incident.failures for incident in found] == [{}, {"503": 1}, {"cut": 2, "503": 1}]
    assert [incident.forbidden for incident in found] == [{}, {"503": 1}, {"503": 1}]


@pytest.mark.parametrize(
    ("fields", "missed"),
    [
        ({}, []),
        ({"unanswered": 2}, ["2 with a key never answered"]),
        ({"explained": Explained(violations=["a"])}, ["1 answers cannot be explained"]),
        ({"explained": Explained(undecided=["a"])}, ["1 undecided"]),
        ({"audit": Audit(is_clean=False, cannot_tell="no log")}, ["audit: no log"]),
        ({"growths": [a_growth(mb_per_hour=99.0)]}, ["order-web grows by 99 MB an hour"]),
    ],
)
def test_whatever_is_not_as_required_is_said(fields: dict[str, Any], missed: list[str]) -> None:
    assert a_result(**fields).missed == missed


def test_a_failure_and_a_system_that_stays_unwell_are_said_with_their_fault() -> None:
    found = incidents(
        [a_strike(0.0, NONE), a_strike(10.0, well_s=None)], [a_request(1.0, 1.1), a_request(11.0, 12.0, "503")]
    )

    assert a_result(incidents=found).missed == ["web-kill-stock: 1 x 503", "web-kill-stock: not well again"]


def test_all_chapters_are_told_as_one() -> None:
    assert together([Explained(["a"]), Explained([], ["b"]), Explained(["c"])]) == Explained(["a", "c"], ["b"])


def test_a_row_counts_what_was_allowed_apart() -> None:
    strikes = [a_strike(0.0, "gateway-kill", allowed=frozenset({"cut"}), well_s=2.0)]

    (row,) = fault_rows(incidents(strikes, [a_request(1.0, 2.5, "cut"), a_request(2.0, 3.0, "503")]))

    assert row == ("gateway-kill", "1", "2", "1", "2.50", "2.0")


# --- growth ----------------------------------------------------------------------------------------------------------


def test_one_slope_fits_lines_of_different_levels() -> None:
    assert slope([[(0.0, 5.0), (1.0, 7.0)], [(10.0, 100.0), (12.0, 104.0)]]) == pytest.approx(2.0)


def test_a_line_without_a_length_has_no_slope() -> None:
    assert slope([[(1.0, 5.0)], [(2.0, 50.0)]]) == 0.0


def test_a_restart_is_no_growth_and_hides_none() -> None:
    seconds = int(FILLING_S + OBSERVED_S_MIN)
    first, second = (
        samples("order-web-0", 1, range(0, seconds, 5), 0.01),
        samples("order-web-0", 2, range(0, seconds, 5), 0.01),
    )

    (growth,) = growths([*first, *second])

    assert growth.mb_per_hour == pytest.approx(36.0)
    assert growth.descriptors_per_hour == 0.0


def test_what_a_process_does_in_its_first_minutes_says_nothing() -> None:
    life = samples("redis-0", 1, range(0, 900, 5), 1.0)

    assert settled(life) == [life[int(FILLING_S) // 5 :]]
    assert settled(life[:10]) == []


def test_what_was_seen_for_too_short_has_no_slope() -> None:
    (growth,) = growths(samples("gateway", 1, range(0, 900, 5), 1.0))

    assert (growth.kind, growth.mb_per_hour, growth.descriptors_per_hour) == ("gateway", None, None)
    assert leaks([growth]) == []
    assert growth_row(growth) == ("gateway", "5", "945", "", "20", "")


@pytest.mark.parametrize(
    ("growth", "phrases"),
    [
        (a_growth(mb_per_hour=-50.0, descriptors_per_hour=-50.0), []),
        (a_growth(kind="redis", mb_per_hour=500.0), []),
        (a_growth(kind="redis", descriptors_per_hour=500.0), ["redis opens 500 descriptors an hour"]),
        (a_growth(mb_per_hour=61.0, descriptors_per_hour=5.0), ["order-web grows by 61 MB an hour"]),
        (a_growth(kind="order-snapshotter", mb_per_hour=61.0), ["order-snapshotter grows by 61 MB an hour"]),
    ],
)
def test_who_grows_is_said_but_for_data_that_are_kept(growth: Growth, phrases: list[str]) -> None:
    assert leaks([growth]) == phrases


def test_a_snapshotter_may_grow_as_the_data_do_that_it_holds() -> None:
    redis = a_growth(kind="redis", mb_per_hour=10.0)
    assert leaks([redis, a_growth(kind="order-snapshotter", mb_per_hour=149.0)]) == []
    phrases = leaks([redis, a_growth(kind="order-snapshotter", mb_per_hour=151.0)])
    assert phrases == ["order-snapshotter grows by 151 MB an hour"]


def test_what_is_needed_for_a_moment_is_no_leak() -> None:
    assert floor([(0, 5.0), (60, 90.0), (119, 7.0), (120, 6.0)]) == [(0.0, 5.0), (FLOOR_S / 3600, 6.0)]


# --- chapters --------------------------------------------------------------------------------------------------------


def test_the_calls_of_a_chapter_are_kept_only_if_something_is_wrong(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    found = '0-1 /stock/item/create/5 -> {"item_id": "apple"}\n2-3 /stock/find/apple -> {"stock": %d, "price": 5}'
    for path, stock in ((good, 0), (bad, 7)):
        dump((Record(operation, 200, (200,)) for operation in told(found % stock)), path)

    assert check(good) == Explained()
    assert len(check(bad).violations) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
