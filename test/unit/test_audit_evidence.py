"""The audit: a store or a log that was corrupted is named for what it is, by kind and entity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from audited import (
    Found,
    a_shop,
    append,
    buy,
    drop,
    evidence_of,
    fail,
    fill,
    found,
    last_letter,
    raises_always,
    refold,
    rewrite,
    sold,
    stored,
    wrong,
)
from builders import NOW_MS

from audit import Evidence, Kind, audit
from audit.facts import Fact
from audit.letters import Letters
from audit.requests import Requests
from common.decision import Decision
from common.fold import ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS, Header
from common.messages import (
    Asker,
    ChargeUser,
    Done,
    Letter,
    PriceTold,
    RefundUser,
    ReleaseStock,
    Request,
    ReserveStock,
    encode,
)
from order.domain import CheckOut, Order
from payment.domain import Account, AddFunds
from stock.domain import MACHINE as STOCK
from stock.domain import AddStock, Item

# --- the store is not what the log says ------------------------------------------------------------------------------


def a_header(evidence: Evidence) -> None:
    header = msgspec.msgpack.decode(evidence.partitions["stock-0"].stored["header"], type=Header)
    header.taken["order-0"] += 1
    stored(evidence, "stock-0", "header", encode(header))


def paid_in_the_store_only(evidence: Evidence) -> None:
    order = Order("ann", (("apple", 1), ("pear", 11)), 47, paid=True)
    stored(evidence, "order-0", "Order:o-2", encode(order))


def an_older_state(evidence: Evidence) -> None:
    evidence.partitions["payment-1"].position -= 1


def a_tail(evidence: Evidence) -> None:
    asker = Asker("ann/attempt/x", 1, "web-1")
    append(evidence, "payment-1", Request(asker, NOW_MS, AddFunds("ann", 1)))


def a_position_too_far(evidence: Evidence) -> None:
    evidence.partitions["stock-1"].position += 3


def a_dead_letter_that_never_was(evidence: Evidence) -> None:
    evidence.partitions["stock-0"].dead_letters[99, 0] = 0


def no_genesis(evidence: Evidence) -> None:
    records = evidence.partitions["stock-0"].records
    records[0] = msgspec.structs.replace(records[0], value=encode(["batch", []]))
    refold(evidence)


def an_unknown_record(evidence: Evidence) -> None:
    partition = evidence.partitions["payment-0"]
    partition.records.append(msgspec.structs.replace(partition.records[0], offset=1, value=b"\x00"))


def a_gap_in_the_log(evidence: Evidence) -> None:
    """The last record of payment-0, an emptied one, stands one too far."""
    partition = evidence.partitions["payment-0"]
    partition.records.append(msgspec.structs.replace(partition.records[0], offset=2))
    refold(evidence)


STORE_CASES: dict[str, tuple[Callable[[Evidence], None], Found]] = {
    "a field is changed": (
        lambda evidence: stored(evidence, "payment-1", "Account:ann", encode(Account(91, 10))),
        {(Kind.STATE_DIFFERS, "Account:ann")},
    ),
    "a field is missing": (
        lambda evidence: stored(evidence, "stock-0", "Item:apple", None),
        {(Kind.STATE_MISSING, "Item:apple")},
    ),
    "a field is there too many": (
        lambda evidence: stored(evidence, "stock-0", "Item:kiwi", encode(Item(1, 1))),
        {(Kind.STATE_EXTRA, "Item:kiwi")},
    ),
    "a field is not decodable": (
        lambda evidence: stored(evidence, "stock-0", "Item:apple", b"\xc1"),
        {(Kind.STATE_DIFFERS, "Item:apple")},
    ),
    "an item's stock is negative": (
        lambda evidence: stored(evidence, "stock-0", "Item:apple", encode(Item(3, -1, 2))),
        {(Kind.STATE_DIFFERS, "Item:apple"), (Kind.NEGATIVE, "Item:apple")},
    ),
    "the header is changed": (a_header, {(Kind.HEADER_DIFFERS, "header")}),
    "the header is missing": (
        lambda evidence: stored(evidence, "stock-0", "header", None),
        {(Kind.HEADER_DIFFERS, "header")},
    ),
    "an order is paid in the store only": (paid_in_the_store_only, {(Kind.STATE_DIFFERS, "Order:o-2")}),
    "the position is too far": (a_position_too_far, {(Kind.POSITION_BEYOND_LOG, "stock-1")}),
    "the position is older than the state": (
        an_older_state,
        {(Kind.STATE_DIFFERS, "Account:ann"), (Kind.HEADER_DIFFERS, "header"), (Kind.UNAPPLIED, "payment-1")},
    ),
    "a record is not applied": (a_tail, {(Kind.UNAPPLIED, "payment-1")}),
    "a dead letter names no message": (
        a_dead_letter_that_never_was,
        {(Kind.DEAD_LETTER_WITHOUT_MESSAGE, "stock-0-99-0")},
    ),
    "record 0 is no genesis": (no_genesis, {(Kind.GENESIS_MISSING, "stock-0")}),
    "a record is not decodable": (
        an_unknown_record,
        {(Kind.RECORD_UNDECODABLE, "payment-0"), (Kind.UNAPPLIED, "payment-0")},
    ),
    "a record is missing": (a_gap_in_the_log, {(Kind.RECORD_MISSING, "payment-0")}),
}


@pytest.mark.parametrize(("corrupt", "expected"), STORE_CASES.values(), ids=STORE_CASES.keys())
def test_a_store_that_is_not_the_fold_is_found(corrupt: Callable[[Evidence], None], expected: Found) -> None:
    evidence = sold()

    corrupt(evidence)

    assert found(evidence) == expected


def test_a_dead_letter_that_was_forgotten_is_found() -> None:
    machines = wrong(STOCK, ReserveStock, raises_always)
    world = a_shop(machines)
    buy(world, apple=1)
    evidence = evidence_of(world)
    evidence.partitions["stock-0"].dead_letters.clear()

    assert found(evidence, machines) == {(Kind.DEAD_LETTER_MISSING, "stock-0-4-0")}


def test_a_dead_letter_of_what_was_decided_is_found() -> None:
    """The store has what a charge did, and the dead letters say that it was skipped."""
    world = a_shop()
    buy(world, apple=1)
    evidence = evidence_of(world)
    evidence.partitions["payment-1"].dead_letters[3, 0] = 0

    assert {(Kind.STATE_DIFFERS, "Account:ann"), (Kind.PAID_WITHOUT_CHARGE, "Order:o-1")} <= found(evidence)


# --- the log is not what the folds sent; the store is its honest fold ------------------------------------------------


def at_target(kind: type, change: Callable[[Letter[Any]], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda envelope: change(envelope) if isinstance(envelope.message, kind) else [envelope]


def replaced(envelope: Letter[Any], **fields: Any) -> Letter[Any]:
    return msgspec.structs.replace(envelope, message=msgspec.structs.replace(envelope.message, **fields))


def once_more(evidence: Evidence, name: str, kind: type, *, as_new: bool = True) -> None:
    """Append the last letter of a kind again, with the next sequence, and the store's honest fold of it."""
    letter = last_letter(evidence, name, kind)
    sequence = max(sequences(evidence, name, letter.source)) + 1 if as_new else letter.sequence
    append(evidence, name, msgspec.structs.replace(letter, sequence=sequence))
    refold(evidence)


def sequences(evidence: Evidence, name: str, source: str) -> list[int]:
    found: list[int] = []

    def keep(envelope: Any) -> list[Any]:
        if isinstance(envelope, Letter) and envelope.source == source:
            found.append(envelope.sequence)
        return [envelope]

    rewrite(evidence, name, keep)
    return found


def test_a_paid_orders_charge_that_is_gone_from_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    rewrite(evidence, "payment-1", drop(ChargeUser))
    refold(evidence)

    assert found(evidence) == {
        (Kind.PAID_WITHOUT_CHARGE, "Order:o-1"),
        (Kind.HEARD_OTHERWISE, "Order:o-1"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_LOST, "letter order-0>payment-1 1"),
        (Kind.LETTER_INVENTED, "letter payment-1>order-0 1"),
    }


def test_a_paid_orders_reservation_that_is_gone_from_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    rewrite(evidence, "stock-1", drop(ReserveStock))
    refold(evidence)

    assert found(evidence) == {
        (Kind.DEDUCTION_MISSING, "Order:o-1"),
        (Kind.HEARD_OTHERWISE, "Order:o-1"),
        (Kind.GOODS_DO_NOT_ADD_UP, "Item:pear"),
        (Kind.LETTER_LOST, "letter order-0>stock-1 2"),
        (Kind.LETTER_INVENTED, "letter stock-1>order-0 2"),
    }


def test_a_charge_that_stands_twice_in_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    once_more(evidence, "payment-1", ChargeUser)

    assert found(evidence) == {
        (Kind.CHARGED_TWICE, "Order:o-1"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_INVENTED, "letter order-0>payment-1 2"),
        (Kind.LETTER_LOST, "letter payment-1>order-0 2"),
    }


def test_a_reservation_that_stands_twice_in_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    once_more(evidence, "stock-0", ReserveStock)

    assert found(evidence) == {
        (Kind.DEDUCTED_TWICE, "Order:o-1"),
        (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
        (Kind.LETTER_INVENTED, "letter order-0>stock-0 3"),
        (Kind.LETTER_LOST, "letter stock-0>order-0 3"),
    }


def test_a_repeated_letter_is_clean() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    once_more(evidence, "payment-1", ChargeUser, as_new=False)

    assert found(evidence) == set()


def test_a_repeat_that_says_something_else_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)
    append(evidence, "payment-1", replaced(last_letter(evidence, "payment-1", ChargeUser), amount=11))
    refold(evidence)

    assert found(evidence) == {(Kind.LETTER_DIFFERS, "letter order-0>payment-1 1")}


def test_a_charge_of_another_amount_in_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    rewrite(evidence, "payment-1", at_target(ChargeUser, lambda envelope: [replaced(envelope, amount=9)]))
    refold(evidence)

    assert found(evidence) == {
        (Kind.CHARGE_OF_ANOTHER_AMOUNT, "Order:o-1"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_DIFFERS, "letter order-0>payment-1 1"),
    }


def test_a_deduction_of_another_quantity_in_the_log_is_found() -> None:
    world = a_shop()
    buy(world)
    evidence = evidence_of(world)

    lines = (("apple", 1),)
    rewrite(evidence, "stock-0", at_target(ReserveStock, lambda envelope: [replaced(envelope, lines=lines)]))
    refold(evidence)

    assert found(evidence) == {
        (Kind.DEDUCTION_OF_ANOTHER_QUANTITY, "Order:o-1"),
        (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
        (Kind.LETTER_DIFFERS, "letter order-0>stock-0 2"),
    }


def test_a_refund_that_is_gone_from_the_log_is_found() -> None:
    world = a_shop()
    fail(world)
    evidence = evidence_of(world)

    rewrite(evidence, "payment-1", drop(RefundUser))
    refold(evidence)

    assert found(evidence) == {
        (Kind.FAILED_BUT_CHARGED, "Order:o-2"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_LOST, "letter order-0>payment-1 2"),
        (Kind.LETTER_INVENTED, "letter payment-1>order-0 2"),
    }


def test_a_refund_that_stands_twice_in_the_log_is_found() -> None:
    """Money that a paid order holds is given back: the sum of credit and held stays what it was."""
    world = a_shop(credit=1_000)
    buy(world, "o-1", apple=9, pear=9)
    fail(world)
    evidence = evidence_of(world)

    once_more(evidence, "payment-1", RefundUser)

    assert found(evidence) == {
        (Kind.UNDONE_TWICE, "Order:o-2"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_INVENTED, "letter order-0>payment-1 4"),
        (Kind.LETTER_LOST, "letter payment-1>order-0 4"),
    }


def test_a_charge_for_a_checkout_that_nobody_opened_is_found() -> None:
    world = a_shop()
    evidence = evidence_of(world)

    append(evidence, "payment-1", Letter("order-0", 1, ChargeUser("order-0-77-0", "ann", 5)))
    append(evidence, "stock-0", Letter("order-0", 1, ReserveStock("order-0-77-0", (("apple", 1),))))
    refold(evidence)

    assert found(evidence) == {
        (Kind.CHARGE_WITHOUT_ORDER, "Checkout:order-0-77-0"),
        (Kind.DEDUCTION_WITHOUT_ORDER, "Checkout:order-0-77-0"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
        (Kind.LETTER_INVENTED, "letter order-0>payment-1 1"),
        (Kind.LETTER_INVENTED, "letter order-0>stock-0 1"),
        (Kind.LETTER_LOST, "letter payment-1>order-0 1"),
        (Kind.LETTER_LOST, "letter stock-0>order-0 1"),
    }


def test_a_letter_that_is_lost_while_all_sums_agree_is_found() -> None:
    """The price was asked and told; that the question is gone changes no amount."""
    world = a_shop()
    fill(world, "o-1", pear=1)
    evidence = evidence_of(world)

    rewrite(evidence, "order-0", drop(PriceTold))
    refold(evidence)

    assert found(evidence) == {
        (Kind.LETTER_LOST, "letter stock-1>order-0 1"),
        (Kind.STILL_OPEN, "Addition:order-0-2-0"),
    }


def test_a_letter_out_of_turn_is_found() -> None:
    world = a_shop()
    evidence = evidence_of(world)

    append(evidence, "stock-0", Letter("order-0", 2, ReleaseStock("c", ())))
    refold(evidence)

    assert found(evidence) == {(Kind.LETTER_OUT_OF_TURN, "letter order-0>stock-0 2")}


def test_a_letter_that_pretends_to_be_a_dead_one_is_found() -> None:
    world = a_shop()
    evidence = evidence_of(world)

    append(evidence, "stock-0", Letter("dead-letter-stock-0-1-0", 1, ReleaseStock("c", ()), "order-0"))
    refold(evidence)

    assert found(evidence) == {
        (Kind.LETTER_INVENTED, "letter dead-letter-stock-0-1-0>stock-0 1"),
        (Kind.LETTER_LOST, "letter stock-0>order-0 1"),
    }


def test_a_checkout_whose_answers_have_not_come_is_open() -> None:
    world = a_shop()
    fill(world, "o-1", apple=1)
    world.ask("order", "o-1", CheckOut("o-1"))
    world.owners["order-0"].step()
    evidence = evidence_of(world)
    evidence.read_ms = NOW_MS + 31_000

    report = audit(evidence)

    assert {(finding.kind, finding.entity) for finding in report.findings} == {
        (Kind.STILL_OPEN, "Checkout:order-0-4-0"),
        (Kind.UNAPPLIED, "stock-0"),
        (Kind.UNAPPLIED, "payment-1"),
    }
    assert {"for 31.0 s" in finding.detail for finding in report.findings} == {True}


# --- a fold that is wrong --------------------------------------------------------------------------------------------


def a_fact(envelope: Any, place: int, decision: Decision | None, time_ms: int = NOW_MS) -> Fact:
    return Fact(f"stock-0-{place}-0", "stock-0", time_ms, envelope, encode(envelope), decision)


def test_a_letter_that_is_decided_twice_is_found() -> None:
    letters = Letters()
    letter = Letter("order-0", 1, ReleaseStock("c", ()))

    for place in (1, 2):
        letters.take(a_fact(letter, place, Decision()))

    assert [finding.kind for finding in letters.findings] == [Kind.LETTER_TAKEN_TWICE]


def test_a_letter_that_is_next_and_not_decided_is_found() -> None:
    letters = Letters()

    letters.take(a_fact(Letter("order-0", 1, ReleaseStock("c", ())), 1, None))

    assert [finding.kind for finding in letters.findings] == [Kind.LETTER_NOT_TAKEN]


@pytest.mark.parametrize(
    ("is_client_key", "later_ms", "expected"),
    [
        (False, 0, [Kind.DECIDED_TWICE]),
        (False, ATTEMPT_RETENTION_MS, [Kind.DECIDED_TWICE]),
        (False, ATTEMPT_RETENTION_MS + 1, []),
        (True, ATTEMPT_RETENTION_MS + 1, [Kind.DECIDED_TWICE]),
        (True, CLIENT_KEY_RETENTION_MS + 1, []),
    ],
)
def test_a_request_is_decided_once_while_its_result_is_kept(
    is_client_key: bool,  # noqa: FBT001 -- a parameter of the test
    later_ms: int,
    expected: list[Kind],
) -> None:
    requests = Requests()
    request = Request(Asker("apple/key/k1", 7, "web-1", is_client_key), NOW_MS, AddStock("apple", 1))

    requests.take(a_fact(request, 1, Decision({}, (Done(),))))
    requests.take(a_fact(request, 2, Decision({}, (Done(),)), NOW_MS + later_ms))

    assert [finding.kind for finding in requests.findings] == expected


def test_a_request_that_is_pending_is_never_decided_again() -> None:
    requests = Requests()
    request = Request(Asker("o-1/key/k1", 7, "web-1"), NOW_MS, CheckOut("o-1"))

    requests.take(a_fact(request, 1, Decision()))
    requests.take(a_fact(request, 2, Decision(), NOW_MS + 10 * CLIENT_KEY_RETENTION_MS))

    assert [finding.kind for finding in requests.findings] == [Kind.DECIDED_TWICE]
