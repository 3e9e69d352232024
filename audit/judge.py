"""The audit itself: two passes over the logs.  The first finds the offenders, the second tells their histories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Protocol

from audit.amounts import Amounts
from audit.checkouts import Case, Checkouts
from audit.ends import still_open, unapplied
from audit.evidence import Evidence
from audit.facts import Fact
from audit.findings import Finding
from audit.history import Histories
from audit.join import join
from audit.keys import letter_decoder
from audit.letters import Letters
from audit.movements import Hold, Move, Movements, Settle, claims
from audit.opening import Opening, is_before
from audit.orders import Orders
from audit.replay import Replay
from audit.report import Counts, Report, Trimmed
from audit.requests import Requests
from audit.sums import does_not_add_up, settlements
from common.decision import Machine
from order.domain import MACHINE as ORDER
from order.domain import Order
from payment.domain import MACHINE as PAYMENT
from stock.domain import MACHINE as STOCK

MACHINES = (ORDER, STOCK, PAYMENT)
HISTORIES_MAX = 1_000
"""Offenders whose history is told: when there are more, something is wrong that needs no history."""


class Ledger(Protocol):
    """Whatever looks at each message."""

    def take(self, fact: Fact) -> None:
        """Look at one."""


class _Ledgers:
    """All that is kept of the first pass."""

    def __init__(self) -> None:
        self.letters = Letters()
        self.requests = Requests()
        self.amounts = Amounts()
        self.movements = Movements()
        self.orders = Orders()
        self.checkouts = Checkouts()
        self.begun = (self.letters, self.requests, self.amounts, self.checkouts)
        self.all = (self.letters, self.requests, self.amounts, self.movements, self.orders, self.checkouts)


def audit(evidence: Evidence, machines: Iterable[Machine] = MACHINES) -> Report:
    """Return every offender against I1 to I7 but I4's timing, with its history.

    `machines` are those that decided, one a service.  A ValueError says that the evidence lacks a partition.
    """
    by_service = {machine.service: machine for machine in machines}
    replays = _replays(evidence, by_service)
    ledgers = _Ledgers()
    for name, replay in replays.items():
        for ledger in ledgers.begun:
            ledger.begin(name, replay.opening)
    _pass(replays, ledgers.all)
    _note_unseen(replays, ledgers)
    findings = sorted(_findings(evidence, replays, ledgers), key=_order)
    told = tuple(_with_histories(findings, evidence, by_service))
    return Report(told, _counts(replays, ledgers), _trimmed(replays, ledgers))


def _replays(evidence: Evidence, machines: Mapping[str, Machine]) -> dict[str, Replay]:
    missing = [name for name in evidence.names() if name not in evidence.partitions]
    if missing:
        raise ValueError(f"nothing is known of {', '.join(missing)}")
    return {
        name: Replay(name, machines[name.rpartition("-")[0]], evidence.partitions[name], evidence.topology)
        for name in evidence.names()
    }


def _pass(replays: Mapping[str, Replay], ledgers: Iterable[Ledger]) -> None:
    takes = [ledger.take for ledger in ledgers]
    for replay in replays.values():
        for fact in replay.facts():
            for take in takes:
                take(fact)


def _note_unseen(replays: Mapping[str, Replay], ledgers: _Ledgers) -> None:
    """Note of each checkout what is older than the logs."""
    cases = ledgers.checkouts.cases
    openings = {name: replay.opening for name, replay in replays.items()}
    for target, raw in ledgers.letters.unseen(replays):
        message = letter_decoder.decode(raw).message
        if isinstance(message, Hold | Settle) and message.checkout_id in cases:
            case, keys = cases[message.checkout_id], claims(message).keys()
            if isinstance(message, Hold):
                case.unseen.update(dict.fromkeys(keys, target))
            else:
                case.settled_unseen |= keys - case.moved(Move.SETTLE, "").keys()
    for case in cases.values():
        _note_begun_before(case, openings)


def _note_begun_before(case: Case, openings: Mapping[str, Opening]) -> None:
    decided = {partition for partition, _ in case.decided}
    case.unseen.update({key: partition for key, partition in case.wanted.items() if partition not in decided})
    if case.order is None and is_before(case.id, openings):
        case.is_before, case.outcome = True, "before"


def _order(finding: Finding) -> tuple[str, str, str, str]:
    return finding.invariant, finding.kind, finding.entity, finding.detail


def _with_histories(findings: list[Finding], evidence: Evidence, machines: Mapping[str, Machine]) -> Iterator[Finding]:
    if not findings:
        return
    told = findings[:HISTORIES_MAX]
    histories = Histories(told)
    _pass(_replays(evidence, machines), [histories])
    yield from (histories.of(finding) for finding in told)
    yield from findings[HISTORIES_MAX:]


def _counts(replays: Mapping[str, Replay], ledgers: _Ledgers) -> Counts:
    cases = ledgers.checkouts.cases.values()
    holds = [each for case in cases for each in case.movements if each.move is Move.HOLD]
    outcomes = [case.outcome for case in cases]
    return Counts(
        partitions=len(replays),
        records=sum(len(replay.evidence.records) for replay in replays.values()),
        messages=sum(replay.messages for replay in replays.values()),
        dead_letters=sum(len(replay.evidence.dead_letters) for replay in replays.values()),
        orders=sum(isinstance(entity, Order) for replay in replays.values() for entity in replay.memory.values()),
        paid=outcomes.count("paid"),
        failed=outcomes.count("failed"),
        open=outcomes.count("open"),
        charges=sum(each.key.startswith("Account:") for each in holds),
        deductions=sum(each.key.startswith("Item:") for each in holds),
    )


def _trimmed(replays: Mapping[str, Replay], ledgers: _Ledgers) -> Trimmed | None:
    begins = {name: replay.opening.position for name, replay in replays.items() if replay.opening.position}
    if not begins:
        return None
    opened = chain.from_iterable(replay.opening.entities.values() for replay in replays.values())
    return Trimmed(
        begins,
        orders_paid_before=sum(isinstance(entity, Order) and entity.paid for entity in opened),
        checkouts_in_part=sum(case.is_in_part for case in ledgers.checkouts.cases.values()),
    )


# --- what the first pass comes to


def _findings(evidence: Evidence, replays: Mapping[str, Replay], ledgers: _Ledgers) -> Iterator[Finding]:
    yield from chain.from_iterable(replay.findings for replay in replays.values())
    yield from chain.from_iterable(ledger.findings for ledger in ledgers.all)
    yield from ledgers.letters.join(replays)
    in_flight = settlements(ledgers.letters.in_flight(replays))
    cases = ledgers.checkouts.cases.values()
    for case in cases:
        yield from join(case, in_flight)
    yield from does_not_add_up(replays.values(), cases, ledgers.movements.added, in_flight)
    for replay in replays.values():
        yield from ledgers.requests.never_told(replay)
        yield from still_open(replay, evidence.now_ms())
        yield from unapplied(replay, evidence.now_ms())
