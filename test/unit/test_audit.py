"""The audit: what is clean is called clean, and what is said of what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from audited import (
    a_shop,
    buy,
    evidence_of,
    fail,
    fill,
    found,
    nothing_stored,
    raises_always,
    sold,
    stored,
    wrong,
)
from click.testing import CliRunner
from world import World

from audit import Kind, audit, cluster, source
from audit.__main__ import main
from audit.command import tell
from audit.findings import invariant_of
from audit.history import EVENTS_MAX
from common.config import load
from common.decision import Arrival, Decision, State
from common.fold import ATTEMPT_RETENTION_MS
from common.messages import (
    AMOUNT_MAX,
    Done,
    PriceTold,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
)
from common.redelivery import again
from order.checkout import SETTLED_LEAST
from order.domain import MACHINE as ORDER
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders
from payment.domain import MACHINE as PAYMENT
from payment.domain import Account, AddFunds, InitUsers, Pay
from stock.domain import MACHINE as STOCK
from stock.domain import CreateItem, InitItems, Item, SubtractStock

# --- clean worlds ----------------------------------------------------------------------------------------------------


def test_an_empty_world_is_clean() -> None:
    world = World()
    world.run()

    assert audit(evidence_of(world)).is_clean


def test_a_shop_that_sells_and_refuses_is_clean() -> None:
    world = a_shop()
    assert isinstance(buy(world), Done)
    assert isinstance(fail(world), Refused)
    assert isinstance(buy(world, "o-3", pear=9), Done)
    assert isinstance(buy(world, "o-4", "nobody", apple=1), Refused)
    assert isinstance(buy(world, "o-5", "ann", apple=7, pear=1), Refused)
    world.carry_out("order", "o-6", CreateOrder("o-6", "ann"))
    assert isinstance(world.carry_out("order", "o-6", CheckOut("o-6")), Done)

    report = audit(evidence_of(world))

    assert report.findings == ()
    counts = report.counts
    assert (counts.orders, counts.paid, counts.failed, counts.open) == (6, 3, 3, 0)


def test_direct_calls_and_their_refusals_are_clean() -> None:
    world = a_shop()
    world.carry_out("payment", "ann", Pay("ann", 30))
    world.carry_out("payment", "ann", Pay("ann", 300))
    world.carry_out("payment", "ann", AddFunds("ann", AMOUNT_MAX))
    world.carry_out("payment", "nobody", Pay("nobody", 1))
    world.carry_out("stock", "apple", SubtractStock("apple", 3))
    world.carry_out("stock", "apple", SubtractStock("apple", 30))
    world.carry_out("stock", "apple", CreateItem("apple", 9))
    world.carry_out("order", "o-1", AddItem("o-1", "apple", 1))
    buy(world)
    world.carry_out("order", "o-1", AddItem("o-1", "apple", 1))
    world.carry_out("order", "o-1", AddItem("o-1", "no-such-item", 1))

    assert audit(evidence_of(world)).findings == ()


def test_requests_that_are_repeated_with_the_same_key_are_clean() -> None:
    world = a_shop()
    fill(world, "o-1", apple=1)
    for _ in range(3):
        world.ask("order", "o-1", CheckOut("o-1"), "key/k1", is_client_key=True)
        world.ask("payment", "ann", AddFunds("ann", 5), "key/k2", is_client_key=True)
    world.run()
    world.ask("order", "o-1", CheckOut("o-1"), "key/k1", is_client_key=True)
    world.carry_out("order", "o-1", CheckOut("o-1"))

    assert audit(evidence_of(world)).findings == ()


def test_a_request_that_comes_again_after_its_result_was_forgotten_is_clean() -> None:
    world = a_shop()
    for _ in range(2):
        world.carry_out("payment", "ann", AddFunds("ann", 5), "attempt/a1")
        world.log.now_ms += ATTEMPT_RETENTION_MS + 1
        world.carry_out("payment", "ann", AddFunds("ann", AMOUNT_MAX))  # a record forgets two pages at most

    assert world.entity(Account, "payment", "ann") == Account(110)
    assert audit(evidence_of(world)).findings == ()


def test_large_sales_that_are_settled_and_large_holds_that_are_undone_are_clean() -> None:
    world = a_shop(stock=3 * SETTLED_LEAST, credit=30 * SETTLED_LEAST)
    assert isinstance(buy(world, apple=SETTLED_LEAST, pear=1), Done)
    assert isinstance(buy(world, "o-2", apple=SETTLED_LEAST, pear=4 * SETTLED_LEAST), Refused)
    assert isinstance(buy(world, "o-3", apple=SETTLED_LEAST - 1), Done)

    assert world.entity(Item, "stock", "apple") == Item(3, SETTLED_LEAST + 1, SETTLED_LEAST - 1)
    assert audit(evidence_of(world)).findings == ()


def test_batch_init_over_what_is_sold_paid_and_being_checked_out_is_clean() -> None:
    world = World(letters_max=1, records_max=1)
    for _ in range(2):
        world.carry_out("stock", "i", InitItems(20, 10, 5))
        world.carry_out("payment", "u", InitUsers(10, 100))
        world.carry_out("order", "o", InitOrders(30, 20, 10, 5))
        for number in range(20):
            world.carry_out("order", str(number), CheckOut(str(number)))
    for number in range(30):
        world.ask("order", str(number), CheckOut(str(number)))
        world.owners[f"order-{number % 2}"].step(1)
    for service, command in (("order", InitOrders(30, 20, 10, 5)), ("stock", InitItems(20, 0, 5))):
        world.ask(service, "x", command)
    world.run()

    report = audit(evidence_of(world))

    assert report.findings == ()
    assert report.counts.paid > 40


@pytest.mark.parametrize("records_max", [1, 3, 500])
def test_crashes_between_publish_and_apply_are_clean(records_max: int) -> None:
    """Letters are sent twice, and dropped the second time."""
    world = a_shop()
    fill(world, "o-1", apple=2, pear=1)
    fill(world, "o-2", apple=1, pear=11)
    for order_id in ("o-1", "o-2"):
        world.ask("order", order_id, CheckOut(order_id))
    for _ in range(12):
        for owner in world.owners.values():
            folded = owner.fold(records_max)
            if folded is not None:
                owner.publish(folded)
            owner.load()
    world.run()

    assert sum(folded.repeats for folded in world.folded) > 0
    assert audit(evidence_of(world)).findings == ()


def test_a_dead_letter_that_was_delivered_again_is_clean() -> None:
    is_corrected = False

    def raises(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
        assert is_corrected, "the planted bug"
        return decision

    world = a_shop(wrong(STOCK, ReleaseStock, raises))
    fill(world, "o-2", apple=1, pear=11)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.run()
    (dead,) = world.buried
    stuck = evidence_of(world)
    is_corrected = True
    world.log.append(dead.partition, [again(STOCK, dead)])
    world.run()

    assert audit(evidence_of(world)).findings == ()
    assert (Kind.STILL_OPEN, "Checkout:order-0-6-0") in found(stuck)
    assert (Kind.DEAD_LETTER_UNDELIVERED, f"{dead.partition}-{dead.offset}-{dead.index}") in found(stuck)


@pytest.mark.parametrize("kind", [StockReserved, UserCharged, StockReleased, UserRefunded, PriceTold])
def test_an_answer_that_died_and_was_delivered_again_is_clean(kind: type) -> None:
    met: list[str] = []

    def raises_first(_state: State, _message: Any, arrival: Arrival, decision: Decision) -> Decision:
        met.append(arrival.id)
        assert len(met) > 1, "the planted bug"
        return decision

    world = a_shop(wrong(ORDER, kind, raises_first))
    world.carry_out("order", "o-2", CreateOrder("o-2", "ann"))
    for item_id, quantity in (("apple", 1), ("pear", 11)):
        world.ask("order", "o-2", AddItem("o-2", item_id, quantity))
        world.run()
        deliver_again(world)
    world.ask("order", "o-2", CheckOut("o-2"))
    world.run()
    deliver_again(world)

    assert len(world.buried) == 1
    assert found(evidence_of(world)) == set()


def deliver_again(world: World) -> None:
    """Do what a person does about a dead letter."""
    for dead in world.buried:
        world.log.append(dead.partition, [again(ORDER, dead)])
    world.run()


def test_dead_letters_that_were_answered_are_clean() -> None:
    """A reservation is refused, a client's request is told 500: nothing waits for a person."""
    world = a_shop(wrong(STOCK, ReserveStock | SubtractStock, raises_always))
    assert isinstance(buy(world), Refused)
    assert isinstance(world.carry_out("stock", "apple", SubtractStock("apple", 1)), Refused)

    report = audit(evidence_of(world))

    assert report.findings == ()
    assert report.counts.dead_letters == 3


# --- what is said ----------------------------------------------------------------------------------------------------


def test_an_offender_is_told_with_its_history_from_all_partitions() -> None:
    machines = wrong(PAYMENT, RefundUser, nothing_stored)
    world = a_shop(machines)
    fail(world)

    (finding,) = [each for each in audit(evidence_of(world), machines).findings if each.invariant == "I3"]

    assert (finding.kind, finding.partition) == (Kind.FAILED_BUT_CHARGED, "payment-1")
    assert finding.messages == ("payment-1-3-0",)
    said = [event.said.partition("(")[0] for event in finding.history]
    assert {"CreateOrder", "CheckOut", "ReserveStock", "ChargeUser", "RefundUser", "UserRefunded"} <= set(said)
    assert next(event for event in finding.history if event.message_id == "payment-1-3-0").changed == (
        "Account:ann: Account(credit=100, held=0) -> Account(credit=53, held=47)",
        "emits UserCharged(checkout_id='order-0-6-0')",
    )


def test_a_report_reads_as_text_and_as_json() -> None:
    evidence = sold()
    stored(evidence, "stock-0", "Item:apple", None)
    report = audit(evidence)

    text, content = report.text(), json.loads(report.json())

    assert "I6: state missing: Item:apple, in stock-0" in text
    assert "CreateItem(item_id='apple', price=3)" in text
    assert "1 x I6 state missing" in text
    assert (content["is_clean"], content["counts"]["paid"]) == (False, 1)
    (told,) = content["findings"]
    assert (told["invariant"], told["kind"], told["entity"]) == ("I6", "state missing", "Item:apple")
    assert any(event["said"].startswith("CreateItem") for event in told["history"])


def test_a_clean_report_says_so() -> None:
    report = audit(sold())

    assert "Clean." in report.text()
    assert json.loads(report.json())["findings"] == []


def test_a_long_history_keeps_the_newest_and_says_how_many_it_left_out() -> None:
    world = a_shop()
    for _ in range(EVENTS_MAX + 5):
        world.ask("payment", "ann", AddFunds("ann", 1))
    world.run()
    evidence = evidence_of(world)
    stored(evidence, "payment-1", "Account:ann", None)

    (finding,) = audit(evidence).findings

    assert (len(finding.history), finding.left_out) == (EVENTS_MAX, 7)
    assert finding.history[-1].message_id == f"payment-1-{world.log.end('payment-1') - 1}-0"


def test_every_kind_belongs_to_an_invariant() -> None:
    invariants = [invariant_of(kind) for kind in Kind]

    assert sorted(set(invariants)) == ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "letters"]
    assert invariants == sorted(invariants)
    assert invariant_of(Kind.CHARGED_TWICE) == "I3"
    assert invariant_of(Kind.LETTER_LOST) == "letters"


@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_status_says_whether_it_is_clean(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 -- a parameter of the test
    clean, corrupt = sold(), sold()
    corrupt.partitions["stock-1"].position += 3

    assert (tell(clean, as_json=as_json), tell(corrupt, as_json=as_json)) == (0, 1)
    assert "position beyond log" in capsys.readouterr().out


def test_a_system_that_cannot_be_reached_is_not_called_clean() -> None:
    environment = {"CHECKOUT_KAFKA": "127.0.0.1:1", "CHECKOUT_REDIS": "127.0.0.1:1"}

    done = CliRunner().invoke(main, [], env=environment)

    assert done.exit_code == 2
    assert done.output.startswith("Cannot audit: ")


def test_each_service_may_have_a_redis_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(source, "Store", lambda settings, _: asked.append(settings.redis))

    source.Source(load({"CHECKOUT_KAFKA": "k:1", "CHECKOUT_REDIS": "all:1"}), {"stock": "its:1,own:1"})

    assert asked == ["all:1", "its:1,own:1", "all:1"]


def test_an_audit_in_a_cluster_exits_as_any_other() -> None:
    done = CliRunner().invoke(cluster.main, ["--redis", "order=127.0.0.1:1"], env={"CHECKOUT_KAFKA": "127.0.0.1:1"})

    assert done.exit_code == 2
    assert done.output.startswith("Cannot audit: ")


def test_a_wrong_configuration_is_not_called_clean() -> None:
    done = CliRunner().invoke(main, [], env={"CHECKOUT_KAFKA": "nowhere"})

    assert done.exit_code == 2
    assert "CHECKOUT_KAFKA" in done.output


def test_evidence_that_lacks_a_partition_cannot_be_judged() -> None:
    evidence = sold()
    del evidence.partitions["stock-1"]

    with pytest.raises(ValueError, match="nothing is known of stock-1"):
        audit(evidence)
