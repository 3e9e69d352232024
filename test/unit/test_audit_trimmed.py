"""The audit of trimmed logs, which begin with a snapshot: no false alarm, and what can still be known is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from audited import (
    Found,
    a_shop,
    append,
    buy,
    ends_of,
    evidence_of,
    fail,
    fill,
    found,
    last_letter,
    nothing_stored,
    raises_always,
    refold,
    rewrite,
    trim,
    wrong,
)
from builders import NOW_MS
from world import MemorySnapshotLog, World

from audit import Evidence, Kind, audit, source
from audit.facts import Fact
from audit.opening import Opening
from audit.requests import Requests
from common.decision import Arrival, Decision, Reply, State
from common.fold import ATTEMPT_RETENTION_MS, Header, Page, Result
from common.messages import (
    Asker,
    ChargeRefused,
    ChargeUser,
    Done,
    Letter,
    RefundUser,
    ReleaseStock,
    Request,
    ReserveStock,
    SettleStock,
    UserCharged,
    encode,
)
from common.redelivery import again
from common.snapshot import Snapshots
from order.checkout import SETTLED_LEAST
from order.domain import MACHINE as ORDER
from order.domain import CheckOut, InitOrders, Order
from payment.domain import MACHINE as PAYMENT
from payment.domain import Account, AddFunds, InitUsers, Pay
from stock.domain import MACHINE as STOCK
from stock.domain import AddStock, InitItems, SubtractStock

# --- no false alarm --------------------------------------------------------------------------------------------------


def a_small_shop() -> World:
    world = a_shop()
    buy(world)
    fail(world)
    return world


def a_large_shop() -> World:
    """Checkouts one inside another, direct calls, repeats, large ones that are settled and undone."""
    world = a_shop(stock=9 * SETTLED_LEAST, credit=90 * SETTLED_LEAST)
    world.records_max = world.letters_max = 1
    chance = random.Random(7)
    for number in range(24):
        pieces = chance.choice([1, 2, SETTLED_LEAST, 5 * SETTLED_LEAST])
        fill(world, f"o-{number}", "ann" if number % 5 else "nobody", apple=pieces, pear=chance.choice([1, pieces]))
    for number in range(24):
        for key in ("key/k1", "key/k2"):
            world.ask("order", f"o-{number}", CheckOut(f"o-{number}"), key, is_client_key=True)
        world.ask("payment", "ann", AddFunds("ann", 5) if number % 2 else Pay("ann", 3))
        world.ask("stock", "apple", SubtractStock("apple", 1))
        for name in chance.sample(sorted(world.owners), 5):
            world.owners[name].step(1)
    world.run()
    return world


def a_shop_by_batch_init() -> World:
    world = World(letters_max=1, records_max=1)
    for _ in range(2):
        world.carry_out("stock", "i", InitItems(20, 10, 5))
        world.carry_out("payment", "u", InitUsers(10, 100))
        world.carry_out("order", "o", InitOrders(30, 20, 10, 5))
        for number in range(30):
            world.ask("order", str(number), CheckOut(str(number)))
            world.owners[f"order-{number % 2}"].step(1)
    for service, command in (("order", InitOrders(30, 20, 10, 5)), ("stock", InitItems(20, 0, 5))):
        world.ask(service, "x", command)
    world.run()
    return world


def crashed() -> World:
    """Letters are sent twice."""
    world = a_shop()
    fill(world, "o-1", apple=2, pear=1)
    fill(world, "o-2", apple=1, pear=11)
    for order_id in ("o-1", "o-2"):
        world.ask("order", order_id, CheckOut(order_id))
    for _ in range(12):
        for owner in world.owners.values():
            folded = owner.fold(3)
            if folded is not None:
                owner.publish(folded)
            owner.load()
    world.run()
    return world


def delivered_again() -> World:
    """An undo and a settlement that raised, and were delivered again by a person."""
    is_corrected = False

    def raises(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
        assert is_corrected, "the planted bug"
        return decision

    world = a_shop(wrong(STOCK, ReleaseStock | SettleStock, raises), stock=9 * SETTLED_LEAST, credit=90 * SETTLED_LEAST)
    buy(world, "o-1", apple=SETTLED_LEAST)
    fill(world, "o-2", apple=1, pear=10 * SETTLED_LEAST)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.run()
    is_corrected = True
    assert len(world.buried) == 2  # the settlement and the undo
    for dead in world.buried:
        world.log.append(dead.partition, [again(STOCK, dead)])
    world.run()
    buy(world, "o-3", apple=1)
    return world


@pytest.mark.parametrize("make", [a_small_shop, a_large_shop, a_shop_by_batch_init, crashed, delivered_again])
def test_wherever_the_snapshots_are_a_clean_system_is_clean(make: Callable[[], World]) -> None:
    """Each partition's at any position of its own: checkouts straddle them in every way."""
    world = make()
    chance = random.Random(1)
    for _ in range(40):
        positions = {name: chance.randint(0, end) for name, end in ends_of(world).items()}

        assert audit(trim(evidence_of(world), positions)).findings == (), positions


# --- what is said of them --------------------------------------------------------------------------------------------


def begun_with_one_sale() -> World:
    """o-1 is paid (10 of ann's 100) before all logs begin."""
    world = a_shop()
    buy(world)
    return world


def test_what_is_not_joined_is_counted_and_said() -> None:
    world = begun_with_one_sale()
    ends = ends_of(world)
    buy(world, "o-2", apple=1)
    evidence = trim(evidence_of(world), ends | {"payment-1": world.log.end("payment-1")})

    report = audit(evidence)

    assert report.findings == ()
    assert report.counts.paid == 1
    assert report.trimmed is not None
    assert (report.trimmed.orders_paid_before, report.trimmed.checkouts_in_part) == (1, 1)
    assert "Not joined: 1 orders that were paid before; in part: 1 checkouts" in report.text()
    assert f"order-0 at {ends['order-0']}" in report.text()


def test_a_whole_log_says_nothing_of_it() -> None:
    report = audit(evidence_of(begun_with_one_sale()))

    assert report.trimmed is None
    assert "Not joined" not in report.text()


# --- which snapshot it begins with -----------------------------------------------------------------------------------


def snapshots_at(*positions: int) -> MemorySnapshotLog:
    log = MemorySnapshotLog()
    for position in positions:
        asyncio.run(Snapshots(log).take("stock-0", position, b"header %d" % position, {"Item:apple": b"%d" % position}))
    return log


def opening_at(log: MemorySnapshotLog, first: int) -> tuple[int, dict[str, bytes]]:
    return asyncio.run(source.opening(Snapshots(log), "stock-0", first))


def test_it_begins_with_the_oldest_snapshot_behind_which_the_log_is_whole() -> None:
    position, fields = opening_at(snapshots_at(10, 20, 30), 15)

    assert (position, fields) == (20, {"Item:apple": b"20", "header": b"header 20"})


def test_a_snapshot_that_cannot_be_read_is_passed_over() -> None:
    log = snapshots_at(10, 20, 30)
    log.chunk_log["stock-0"][1] = None

    assert opening_at(log, 20)[0] == 30


def test_a_trimmed_log_without_a_snapshot_cannot_be_judged() -> None:
    with pytest.raises(source.CannotAudit, match="begins at 31, and no snapshot"):
        opening_at(snapshots_at(10, 20, 30), 31)


# --- corrupted behind the snapshots: found as on a whole log ---------------------------------------------------------


def without(kind: type, checkout_id: str) -> Callable[[Any], list[Any]]:
    def change(envelope: Any) -> list[Any]:
        is_it = isinstance(envelope.message, kind) and envelope.message.checkout_id == checkout_id
        return [] if is_it else [envelope]

    return change


def two_sales() -> tuple[Evidence, dict[str, int]]:
    """Return the evidence, and where o-2 (checkout order-0-13-0) begins."""
    world = begun_with_one_sale()
    ends = ends_of(world)
    buy(world, "o-2", apple=1)
    assert world.entity(Order, "order", "o-2") == Order("ann", (("apple", 1),), 3, paid=True)
    return evidence_of(world), ends


def test_a_charge_that_is_gone_from_the_log_is_found() -> None:
    evidence, ends = two_sales()
    rewrite(evidence, "payment-1", without(ChargeUser, "order-0-13-0"))
    refold(evidence)

    assert found(trim(evidence, ends)) == {
        (Kind.PAID_WITHOUT_CHARGE, "Order:o-2"),
        (Kind.HEARD_OTHERWISE, "Order:o-2"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_LOST, "letter order-0>payment-1 2"),
        (Kind.LETTER_INVENTED, "letter payment-1>order-0 2"),
    }


def test_a_charge_of_another_amount_is_found() -> None:
    evidence, ends = two_sales()

    def dearer(envelope: Any) -> list[Any]:
        if isinstance(envelope.message, ChargeUser) and envelope.message.checkout_id == "order-0-13-0":
            return [msgspec.structs.replace(envelope, message=msgspec.structs.replace(envelope.message, amount=9))]
        return [envelope]

    rewrite(evidence, "payment-1", dearer)
    refold(evidence)

    assert found(trim(evidence, ends)) == {
        (Kind.CHARGE_OF_ANOTHER_AMOUNT, "Order:o-2"),
        (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
        (Kind.LETTER_DIFFERS, "letter order-0>payment-1 2"),
    }


def test_a_letter_that_was_sent_before_its_log_begins_and_never_taken_is_found() -> None:
    world = begun_with_one_sale()
    fill(world, "o-2", apple=1)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.owners["order-0"].step()
    evidence = evidence_of(world)
    evidence.partitions["payment-1"].records.pop()
    evidence.partitions["stock-0"].records.pop()

    assert found(trim(evidence, ends_of(world) | {"payment-1": 3, "stock-0": 4})) == {
        (Kind.LETTER_LOST, "letter order-0>payment-1 2"),
        (Kind.LETTER_LOST, "letter order-0>stock-0 4"),
        (Kind.STILL_OPEN, "Checkout:order-0-13-0"),
    }


def test_a_letter_that_was_taken_before_and_never_sent_is_found() -> None:
    evidence, ends = two_sales()
    append(evidence, "payment-1", Letter("order-0", 3, ChargeUser("order-0-99-0", "ann", 5)))
    refold(evidence)

    assert (Kind.LETTER_INVENTED, "letter order-0>payment-1 3") in found(
        trim(evidence, ends | {"payment-1": evidence.partitions["payment-1"].position})
    )


def test_a_repeat_of_what_was_taken_before_is_clean() -> None:
    evidence, ends = two_sales()
    append(evidence, "payment-1", last_letter(evidence, "payment-1", ChargeUser))
    refold(evidence)

    assert found(trim(evidence, ends | {"payment-1": 5})) == set()


# --- the snapshot or the store is wrong ------------------------------------------------------------------------------


def opening(evidence: Evidence, name: str, field: str, value: bytes) -> None:
    evidence.partitions[name].opening[field] = value


def a_header_that_has_sent_more(evidence: Evidence) -> None:
    header = msgspec.msgpack.decode(evidence.partitions["payment-1"].opening["header"], type=Header)
    header.sent["order-0"] += 1
    opening(evidence, "payment-1", "header", encode(header))


def a_store_that_is_older(evidence: Evidence) -> None:
    evidence.partitions["payment-1"].position = 1


def a_gap(evidence: Evidence) -> None:
    del evidence.partitions["payment-1"].records[0]


WRONG: dict[str, tuple[Callable[[Evidence], None], Found]] = {
    "an account that moves later": (
        lambda evidence: opening(evidence, "payment-1", "Account:ann", encode(Account(91, 10))),
        {(Kind.STATE_DIFFERS, "Account:ann"), (Kind.HEADER_DIFFERS, "header")},
    ),
    "an account that nobody has": (
        lambda evidence: opening(evidence, "payment-1", "Account:eve", encode(Account(5))),
        {(Kind.STATE_MISSING, "Account:eve")},
    ),
    "a negative amount": (
        lambda evidence: opening(evidence, "payment-0", "Account:eve", encode(Account(-5))),
        {(Kind.STATE_MISSING, "Account:eve"), (Kind.NEGATIVE, "Account:eve")},
    ),
    "something that cannot be decoded": (
        lambda evidence: opening(evidence, "payment-0", "Account:eve", b"\xc1"),
        {(Kind.RECORD_UNDECODABLE, "payment-0")},
    ),
    "a store whose position is older than the log": (a_store_that_is_older, {(Kind.UNAPPLIED, "payment-1")}),
}


@pytest.mark.parametrize(("corrupt", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_snapshot_or_a_store_that_does_not_fit_is_found(corrupt: Callable[[Evidence], None], expected: Found) -> None:
    evidence, ends = two_sales()
    trim(evidence, ends)

    corrupt(evidence)

    assert found(evidence) == expected


@pytest.mark.parametrize("corrupt", [a_header_that_has_sent_more, a_gap])
def test_a_header_or_a_first_record_that_does_not_fit_is_found(corrupt: Callable[[Evidence], None]) -> None:
    evidence, ends = two_sales()
    trim(evidence, ends)

    corrupt(evidence)

    assert {"I6", "letters"} & {finding.invariant for finding in audit(evidence).findings}


# --- checkouts that straddle the snapshots ---------------------------------------------------------------------------


def half_a_sale(machines: Any, **quantities: int) -> tuple[World, dict[str, int]]:
    """Return a world in which stock and payment have decided on o-2, and the order has not heard."""
    world = a_shop(machines)
    buy(world)
    fill(world, "o-2", **quantities)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.owners["order-0"].step()
    for name in ("stock-0", "stock-1", "payment-1"):
        world.owners[name].step()
    ends = ends_of(world)
    ends["order-0"] = world.owners["order-0"].position
    return world, ends


def no_refund(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
    sent = [each for each in decision.messages if not isinstance(getattr(each, "message", None), RefundUser)]
    waiting = tuple(each.partition for each in sent if hasattr(each, "partition"))
    state = {
        key: msgspec.structs.replace(entity, waiting=waiting) if key.startswith("Checkout:") and entity else entity
        for key, entity in decision.state.items()
    }
    return Decision(state, tuple(sent)) if waiting else decision


def test_a_failed_checkout_whose_charge_was_before_and_is_not_undone_is_found() -> None:
    machines = wrong(ORDER, UserCharged, no_refund)
    world, ends = half_a_sale(machines, apple=1, pear=11)
    world.run()

    assert found(trim(evidence_of(world), ends, machines), machines) == {(Kind.FAILED_BUT_CHARGED, "Order:o-2")}


def test_a_paid_order_whose_charge_was_refused_before_is_found() -> None:
    def paid_all_the_same(state: State, message: Any, arrival: Arrival, _decision: Decision) -> Decision:
        return ORDER.decide(state, UserCharged(message.checkout_id), arrival)

    machines = wrong(ORDER, ChargeRefused, paid_all_the_same)
    world = a_shop(machines, credit=11)
    buy(world)
    fill(world, "o-2", apple=1)
    world.ask("order", "o-2", CheckOut("o-2"))
    for name in ("order-0", "stock-0", "payment-1"):
        world.owners[name].step()
    ends = ends_of(world) | {"order-0": world.owners["order-0"].position}
    world.run()

    assert found(trim(evidence_of(world), ends, machines), machines) == {(Kind.PAID_WITHOUT_CHARGE, "Order:o-2")}


def test_an_undo_that_does_nothing_is_found_although_its_hold_was_before() -> None:
    machines = wrong(PAYMENT, RefundUser, nothing_stored)
    world, ends = half_a_sale(machines, apple=1, pear=11)
    world.run()

    assert found(trim(evidence_of(world), ends, machines), machines) == {(Kind.ACCOUNT_MOVED_WRONGLY, "Account:ann")}


def test_a_second_charge_is_found_although_the_first_was_before() -> None:
    world, ends = half_a_sale((ORDER, STOCK, PAYMENT), apple=1)
    world.run()
    evidence = evidence_of(world)
    letter = last_letter(evidence, "payment-1", ChargeUser)
    append(evidence, "payment-1", msgspec.structs.replace(letter, sequence=3))
    refold(evidence)

    kinds = found(trim(evidence, {"payment-1": ends["payment-1"]}))

    assert (Kind.CHARGED_TWICE, "Order:o-2") in kinds
    assert (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann") in kinds


@pytest.mark.parametrize(("kind", "expected"), [(ReserveStock, Kind.DEDUCTED_TWICE), (ReleaseStock, Kind.UNDONE_TWICE)])
def test_what_is_done_twice_for_a_checkout_that_ended_before_is_found(kind: type, expected: Kind) -> None:
    world = a_shop()
    buy(world, "o-1", apple=5)
    fail(world)
    evidence = evidence_of(world)
    letter = last_letter(evidence, "stock-0", kind)
    append(evidence, "stock-0", msgspec.structs.replace(letter, sequence=letter.sequence + (kind is ReserveStock) + 1))
    refold(evidence)

    assert (expected, "Checkout:order-0-12-0") in found(trim(evidence, {"order-0": world.log.end("order-0")}))


def test_an_order_that_was_paid_before_and_is_paid_again_is_found() -> None:
    def opens_again(state: State, message: CheckOut, arrival: Arrival, decision: Decision) -> Decision:
        order = state[f"Order:{message.order_id}"]
        assert isinstance(order, Order)
        unpaid = {**decision.state, f"Order:{message.order_id}": msgspec.structs.replace(order, paid=False)}
        return ORDER.decide(unpaid, message, arrival) if order.paid else decision

    machines = wrong(ORDER, CheckOut, opens_again)
    world = a_shop(machines)
    buy(world, apple=1)
    ends = ends_of(world)
    world.carry_out("order", "o-1", CheckOut("o-1"))

    assert {(Kind.PAID_TWICE, "Order:o-1"), (Kind.PAID_AND_FORGOTTEN, "Order:o-1")} <= found(
        trim(evidence_of(world), ends, machines), machines
    )


# --- dead letters and requests from before ---------------------------------------------------------------------------


def test_a_dead_letter_from_before_that_nobody_delivered_is_found_and_delivered_is_clean() -> None:
    is_corrected = False

    def raises(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
        assert is_corrected, "the planted bug"
        return decision

    world = a_shop(wrong(STOCK, ReleaseStock, raises))
    fill(world, "o-2", apple=1, pear=11)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.run()
    (dead,) = world.buried
    stuck, ends = evidence_of(world), ends_of(world)
    is_corrected = True
    world.log.append(dead.partition, [again(STOCK, dead)])
    world.run()

    assert (Kind.DEAD_LETTER_UNDELIVERED, dead.partition) in found(trim(stuck, {dead.partition: ends[dead.partition]}))
    assert found(trim(evidence_of(world), {dead.partition: ends[dead.partition]})) == set()
    assert found(trim(evidence_of(world), ends_of(world))) == set()


def test_a_dead_letter_that_was_answered_before_is_clean() -> None:
    machines = wrong(STOCK, ReserveStock, raises_always)
    world = a_shop(machines)
    buy(world)

    assert found(trim(evidence_of(world), ends_of(world), machines), machines) == set()


@pytest.mark.parametrize(("later_ms", "expected"), [(0, [Kind.DECIDED_TWICE]), (ATTEMPT_RETENTION_MS + 1, [])])
def test_a_request_that_was_decided_before_is_decided_once(later_ms: int, expected: list[Kind]) -> None:
    requests = Requests()
    request = Request(Asker("apple/attempt/a1", 7, "web-1"), NOW_MS, AddStock("apple", 1))
    page = Page(NOW_MS, ("apple/attempt/a1",))
    requests.begin("stock-0", Opening(5, NOW_MS, entities={"Page:attempt-1": page}))

    decision = Decision({}, (Done(),))
    requests.take(Fact("stock-0-5-0", "stock-0", NOW_MS + later_ms, request, encode(request), decision))

    assert [finding.kind for finding in requests.findings] == expected


def test_a_request_that_was_pending_before_is_never_decided_again() -> None:
    requests = Requests()
    request = Request(Asker("o-1/attempt/a1", 7, "web-1"), NOW_MS, CheckOut("o-1"))
    pending = {"Result:o-1/attempt/a1": Result(7, None)}
    requests.begin("order-0", Opening(5, NOW_MS, entities=pending))

    requests.take(Fact("order-0-5-0", "order-0", NOW_MS, request, encode(request), Decision()))

    assert [finding.kind for finding in requests.findings] == [Kind.DECIDED_TWICE]


def test_a_request_that_was_pending_before_and_is_forgotten_may_be_decided_again() -> None:
    requests = Requests()
    request = Request(Asker("o-1/attempt/a1", 7, "web-1"), NOW_MS, CheckOut("o-1"))
    requests.begin("order-0", Opening(5, NOW_MS, entities={"Result:o-1/attempt/a1": Result(7, None)}))
    told = Decision({}, (Reply(request.asker, Done()),))
    answer = Letter("stock-0", 1, UserCharged("order-0-4-0"))

    requests.take(Fact("order-0-5-0", "order-0", NOW_MS, answer, encode(answer), told))
    later_ms = NOW_MS + ATTEMPT_RETENTION_MS + 1
    requests.take(Fact("order-0-6-0", "order-0", later_ms, request, encode(request), Decision()))

    assert requests.findings == []


def test_the_time_by_which_results_are_forgotten_is_the_snapshots_at_first() -> None:
    requests = Requests()
    request = Request(Asker("apple/attempt/a1", 7, "web-1"), NOW_MS, AddStock("apple", 1))
    page = Page(NOW_MS, ("apple/attempt/a1",))
    now_ms = NOW_MS + ATTEMPT_RETENTION_MS + 1
    requests.begin("stock-0", Opening(5, now_ms, entities={"Page:attempt-1": page}))

    requests.take(Fact("stock-0-5-0", "stock-0", NOW_MS, request, encode(request), Decision({}, (Done(),))))

    assert requests.findings == []


def test_what_was_opened_before_and_is_open_has_been_so_since_the_snapshot_at_least() -> None:
    world = begun_with_one_sale()
    fill(world, "o-2", apple=1)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.owners["order-0"].step()
    evidence = trim(evidence_of(world), ends_of(world) | {"payment-1": 3, "stock-0": 4})
    evidence.read_ms = NOW_MS + 31_000

    details = [finding.detail for finding in audit(evidence).findings if finding.kind is Kind.STILL_OPEN]

    assert [detail.partition(":")[0] for detail in details] == ["for 31.0 s"]
