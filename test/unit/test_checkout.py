"""The checkout: every row of the table in order/checkout.py, the rows that are not there, and whole checkouts."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from builders import NOW_MS, ONE_EACH, TWO_EACH, after, an_arrival, an_asker, asked, given, sent_by
from world import World, entities_of

from common.batch_init import FillChunk
from common.decision import Ended, Reply, Send
from common.messages import (
    AMOUNT_MAX,
    ChargeRefused,
    ChargeUser,
    Done,
    Outcome,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    StockRefused,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
    partition_of,
)
from order.checkout import (
    ASKERS_MAX,
    SETTLED_LEAST,
    SUPERSEDED,
    TOO_MANY,
    Checkout,
    accept,
    acknowledge_undo,
    join,
    open_checkout,
    refuse,
    split,
    supersede,
)
from order.domain import NO_ORDER, AddItem, CheckOut, CreateOrder, InitOrders, Order, decide
from payment.domain import Account, AddFunds, CreateUser, InitUsers
from stock.domain import AddStock, CreateItem, InitItems, Item

SHORTAGE = Refused(Reason.CONFLICT, "out of stock")
NO_CREDIT = Refused(Reason.NO_CREDIT, "not enough credit")
APPLES = (("apple", 2),)
PEARS = (("pear", 1),)
LARGE = SETTLED_LEAST
SMALL = SETTLED_LEAST - 1


def a_checkout(
    waiting: tuple[str, ...] = ("stock-0", "stock-1", "payment-0"),
    accepted: tuple[str, ...] = (),
    refusals: dict[str, Refused] | None = None,
    *,
    undoing: bool = False,
    askers: int = 1,
) -> Checkout:
    """Return checkout c1 of order o1: two apples (stock-0), a pear (stock-1), 17 of ann's money (payment-0)."""
    return Checkout(
        id="c1",
        order_id="o1",
        user_id="ann",
        amount=17,
        payment="payment-0",
        lines={"stock-0": APPLES, "stock-1": PEARS},
        opened_ms=NOW_MS,
        waiting=waiting,
        askers=tuple(an_asker(f"o1/attempt/{number}") for number in range(askers)),
        accepted=accepted,
        refusals=refusals or {},
        undoing=undoing,
    )


def told(outcome: Outcome, askers: int = 1) -> tuple[Reply, ...]:
    return tuple(Reply(an_asker(f"o1/attempt/{number}"), outcome) for number in range(askers))


def ended(outcome: str, took_ms: int = 0) -> Ended:
    return Ended("checkout", "c1", "o1", outcome, took_ms)


# --- the table: opening


def test_a_checkout_reserves_at_every_stock_partition_and_charges_the_user_in_parallel() -> None:
    lines = (("apple", 2), ("pear", 1), ("kiwi", 3), ("fig", 4))
    parts = split(lines, TWO_EACH)
    payment = partition_of("payment", "ann", TWO_EACH)

    step = open_checkout("o1", "ann", 17, lines, asked("order-0-9-0", topology=TWO_EACH))

    assert set(parts) == {"stock-0", "stock-1"}
    assert step.messages == (
        *(Send(partition, ReserveStock("order-0-9-0", part)) for partition, part in parts.items()),
        Send(payment, ChargeUser("order-0-9-0", "ann", 17)),
    )
    assert step.checkout.waiting == (*parts, payment)
    assert step.outcome is None


def test_all_lines_of_one_stock_partition_go_in_one_message() -> None:
    lines = (("apple", 2), ("pear", 1), ("kiwi", 3), ("fig", 4))

    parts = split(lines, TWO_EACH)

    assert sorted(line for part in parts.values() for line in part) == sorted(lines)
    assert all(
        partition_of("stock", item_id, TWO_EACH) == place for place, part in parts.items() for item_id, _ in part
    )


def test_a_checkout_is_named_after_the_place_of_its_command() -> None:
    decision = decide(given(o1=Order("ann")), CheckOut("o1"), asked("order-0-9-3"))

    assert decision.state["Order:o1"] == Order("ann", checkout_id="order-0-9-3")
    assert decision.state["Checkout:order-0-9-3"].id == "order-0-9-3"


def test_an_empty_order_charges_zero_and_reserves_nothing() -> None:
    decision = decide(given(o1=Order("ann")), CheckOut("o1"), asked())

    assert decision.messages == (Send("payment-0", ChargeUser("order-0-9-0", "ann", 0)),)


def test_an_unknown_order_is_not_checked_out() -> None:
    assert decide(given(), CheckOut("o1"), asked()).messages == (NO_ORDER,)


def test_a_paid_order_is_answered_without_charging_again() -> None:
    decision = decide(given(o1=Order("ann", paid=True)), CheckOut("o1"), asked())

    assert (decision.state, decision.messages) == ({}, (Done("o1"),))


# --- the table: open


@pytest.mark.parametrize("source", ["stock-0", "stock-1", "payment-0"])
def test_while_answers_are_outstanding_an_acceptance_is_remembered(source: str) -> None:
    step = accept(a_checkout(), sent_by(source))

    waiting = tuple(other for other in ("stock-0", "stock-1", "payment-0") if other != source)
    assert step.checkout == a_checkout(waiting, accepted=(source,))
    assert (step.messages, step.outcome) == ((), None)


@pytest.mark.parametrize("source", ["stock-0", "stock-1", "payment-0"])
def test_while_answers_are_outstanding_a_refusal_is_remembered_and_nothing_is_undone(source: str) -> None:
    step = refuse(a_checkout(), SHORTAGE, sent_by(source))

    waiting = tuple(other for other in ("stock-0", "stock-1", "payment-0") if other != source)
    assert step.checkout == a_checkout(waiting, refusals={source: SHORTAGE})
    assert (step.messages, step.outcome) == ((), None)


def test_undo_waits_until_all_answers_are_in() -> None:
    checkout = a_checkout(("stock-1", "payment-0"), refusals={"stock-0": SHORTAGE})

    step = accept(checkout, sent_by("payment-0"))

    assert step.checkout == a_checkout(("stock-1",), ("payment-0",), {"stock-0": SHORTAGE})
    assert (step.messages, step.outcome) == ((), None)


def test_when_all_have_accepted_everybody_is_told_and_nothing_small_is_settled() -> None:
    checkout = a_checkout(("stock-1",), accepted=("payment-0", "stock-0"), askers=3)

    step = accept(checkout, an_arrival(source="stock-1", time_ms=NOW_MS + 8))

    assert step.outcome == Done("o1")
    assert step.messages == (*told(Done("o1"), askers=3), ended("paid", took_ms=8))


@pytest.mark.parametrize(
    ("apples", "figs", "pears", "amount", "settled"),
    [
        (SMALL, SMALL, SMALL, SMALL, ()),
        (LARGE, SMALL, SMALL, SMALL, (Send("stock-0", SettleStock("c1", (("apple", LARGE),))),)),
        (SMALL, LARGE, SMALL, SMALL, (Send("stock-0", SettleStock("c1", (("fig", LARGE),))),)),
        (SMALL, SMALL, LARGE, SMALL, (Send("stock-1", SettleStock("c1", (("pear", LARGE),))),)),
        (SMALL, SMALL, SMALL, LARGE, (Send("payment-0", SettleCharge("c1", "ann", LARGE)),)),
        (
            LARGE,
            LARGE,
            LARGE,
            LARGE,
            (
                Send("stock-0", SettleStock("c1", (("apple", LARGE), ("fig", LARGE)))),
                Send("stock-1", SettleStock("c1", (("pear", LARGE),))),
                Send("payment-0", SettleCharge("c1", "ann", LARGE)),
            ),
        ),
    ],
    ids=["nothing", "the first line of two", "the second line of two", "the only line", "the charge", "everything"],
)
def test_only_what_is_large_is_settled_when_it_is_paid(
    apples: int, figs: int, pears: int, amount: int, settled: tuple[Send, ...]
) -> None:
    checkout = msgspec.structs.replace(
        a_checkout(("payment-0",), accepted=("stock-0", "stock-1"), askers=2),
        amount=amount,
        lines={"stock-0": (("apple", apples), ("fig", figs)), "stock-1": (("pear", pears),)},
    )

    step = accept(checkout, sent_by("payment-0"))

    assert SETTLED_LEAST == 1_000_000
    assert step.messages == (*settled, *told(Done("o1"), askers=2), ended("paid"))


def test_small_and_large_are_undone_alike() -> None:
    lines = {"stock-0": (("apple", LARGE), ("fig", SMALL)), "stock-1": PEARS}
    checkout = msgspec.structs.replace(a_checkout(("payment-0",), accepted=("stock-0", "stock-1")), lines=lines)

    step = refuse(checkout, NO_CREDIT, sent_by("payment-0"))

    assert step.messages == tuple(Send(place, ReleaseStock("c1", part)) for place, part in lines.items())


@pytest.mark.parametrize(
    ("accepted", "refused_by", "undos"),
    [
        (("stock-0", "stock-1"), "payment-0", [("stock-0", APPLES), ("stock-1", PEARS)]),
        (("payment-0", "stock-1"), "stock-0", [("payment-0", None), ("stock-1", PEARS)]),
        (("payment-0",), "stock-1", [("payment-0", None)]),
    ],
)
def test_when_one_has_refused_what_others_accepted_is_undone_and_nobody_is_told(
    accepted: tuple[str, ...], refused_by: str, undos: list[tuple[str, tuple[tuple[str, int], ...] | None]]
) -> None:
    earlier = {} if len(accepted) == 2 else {"stock-0": SHORTAGE}

    step = refuse(a_checkout((refused_by,), accepted, earlier), NO_CREDIT, sent_by(refused_by))

    refusals = {**earlier, refused_by: NO_CREDIT}
    assert step.checkout == a_checkout(accepted, accepted, refusals, undoing=True)
    assert step.outcome is None
    assert step.messages == tuple(
        Send(place, ReleaseStock("c1", lines) if lines else RefundUser("c1", "ann", 17)) for place, lines in undos
    )


def test_an_acceptance_that_comes_last_after_a_refusal_is_undone_as_well() -> None:
    checkout = a_checkout(("stock-1",), accepted=("stock-0",), refusals={"payment-0": NO_CREDIT})

    step = accept(checkout, sent_by("stock-1"))

    assert step.checkout.undoing
    assert step.messages == (
        Send("stock-0", ReleaseStock("c1", APPLES)),
        Send("stock-1", ReleaseStock("c1", PEARS)),
    )


def test_when_all_have_refused_there_is_nothing_to_undo_and_everybody_is_told() -> None:
    checkout = a_checkout(("payment-0",), refusals={"stock-0": SHORTAGE, "stock-1": SHORTAGE}, askers=2)

    step = refuse(checkout, NO_CREDIT, sent_by("payment-0"))

    assert step.outcome == SHORTAGE
    assert step.messages == (*told(SHORTAGE, askers=2), ended("conflict"))


# --- the table: undoing


def test_nobody_is_told_before_every_undo_is_acknowledged() -> None:
    checkout = a_checkout(("stock-0", "payment-0"), ("stock-0", "payment-0"), {"stock-1": SHORTAGE}, undoing=True)

    step = acknowledge_undo(checkout, sent_by("payment-0"))

    assert step.checkout.waiting == ("stock-0",)
    assert (step.messages, step.outcome) == ((), None)


def test_when_every_undo_is_acknowledged_everybody_is_told_why() -> None:
    checkout = a_checkout(("stock-0",), ("stock-0", "stock-1"), {"payment-0": NO_CREDIT}, undoing=True, askers=2)

    step = acknowledge_undo(checkout, an_arrival(source="stock-0", time_ms=NOW_MS + 9))

    assert step.outcome == NO_CREDIT
    assert step.messages == (*told(NO_CREDIT, askers=2), ended("not enough credit", took_ms=9))


@pytest.mark.parametrize("first", ["stock-1", "payment-0"])
def test_the_reason_of_stock_is_given_before_that_of_payment(first: str) -> None:
    refusals = {"stock-1": SHORTAGE, "payment-0": NO_CREDIT}
    in_order = {first: refusals[first], **refusals}

    step = acknowledge_undo(a_checkout(("stock-0",), ("stock-0",), in_order, undoing=True), sent_by("stock-0"))

    assert step.outcome == SHORTAGE


def test_of_two_stock_partitions_the_first_by_name_gives_the_reason_whatever_came_first() -> None:
    unknown = Refused(Reason.NOT_FOUND, "there is no such item")
    for refusals in ({"stock-0": SHORTAGE, "stock-1": unknown}, {"stock-1": unknown, "stock-0": SHORTAGE}):
        step = refuse(a_checkout(("payment-0",), refusals=refusals), NO_CREDIT, sent_by("payment-0"))
        assert step.outcome == SHORTAGE


# --- the rows that are not there

UNDOING = a_checkout(("stock-0",), ("stock-0",), {"payment-0": NO_CREDIT}, undoing=True)


@pytest.mark.parametrize(
    ("message", "checkout", "names"),
    [
        (accept, UNDOING, "answer from stock-0 .* undoing"),
        (lambda checkout, source: refuse(checkout, SHORTAGE, source), UNDOING, "answer from stock-0 .* undoing"),
        (acknowledge_undo, a_checkout(), "answer from stock-0 .* open"),
    ],
)
def test_a_message_that_the_state_does_not_wait_for_is_a_bug(
    message: Callable[..., object], checkout: Checkout, names: str
) -> None:
    with pytest.raises(AssertionError, match=names):
        message(checkout, sent_by("stock-0"))


@pytest.mark.parametrize(
    ("message", "checkout", "names"),
    [
        (accept, a_checkout(("stock-0",)), "stock-1 .* open"),
        (lambda checkout, source: refuse(checkout, SHORTAGE, source), a_checkout(("stock-0",)), "stock-1 .* open"),
        (acknowledge_undo, UNDOING, "stock-1 .* undoing"),
    ],
)
def test_a_second_answer_of_one_partition_is_a_bug(
    message: Callable[..., object], checkout: Checkout, names: str
) -> None:
    with pytest.raises(AssertionError, match=f"second answer from {names}"):
        message(checkout, sent_by("stock-1"))


@pytest.mark.parametrize(
    "message",
    [
        StockReserved("c1"),
        StockRefused("c1", SHORTAGE),
        StockReleased("c1"),
        UserCharged("c1"),
        ChargeRefused("c1", NO_CREDIT),
        UserRefunded("c1"),
    ],
)
def test_an_answer_to_a_checkout_that_has_ended_is_a_bug(message: StockReserved) -> None:
    with pytest.raises(AssertionError, match="checkout c1, which is not open"):
        decide(given(o1=Order("ann", paid=True)), message, sent_by("stock-0"))


# --- those who wait


def test_who_asks_while_the_order_is_being_checked_out_waits_for_the_outcome() -> None:
    state = given(o1=Order("ann", checkout_id="c1"), c1=a_checkout())

    decision = decide(state, CheckOut("o1"), asked(request_id="o1/attempt/1"))

    assert decision.state == {"Checkout:c1": a_checkout(askers=2)}
    assert decision.messages == ()


def test_who_asks_while_the_checkout_is_being_undone_waits_as_well() -> None:
    undoing = msgspec.structs.replace(UNDOING)
    state = given(o1=Order("ann", checkout_id="c1"), c1=undoing)

    decision = decide(state, CheckOut("o1"), asked(request_id="o1/attempt/1"))

    assert len(decision.state["Checkout:c1"].askers) == 2


def test_a_thousand_requests_may_wait_for_one_checkout() -> None:
    joined = join(a_checkout(askers=ASKERS_MAX - 1), an_asker("o1/attempt/last"))

    assert ASKERS_MAX == 1_000
    assert joined is not None
    assert len(joined.askers) == 1_000


def test_the_next_one_is_told_to_come_back_later() -> None:
    state = given(o1=Order("ann", checkout_id="c1"), c1=a_checkout(askers=ASKERS_MAX))

    decision = decide(state, CheckOut("o1"), asked())

    assert decision.state == {}
    assert decision.messages == (TOO_MANY,)
    assert TOO_MANY.reason == Reason.BUSY


# --- batch_init over an open checkout


def test_batch_init_over_an_open_checkout_makes_it_undo_everything() -> None:
    superseded = supersede(a_checkout(("payment-0",), accepted=("stock-0", "stock-1")))

    step = accept(superseded, sent_by("payment-0"))

    assert step.checkout.undoing
    assert step.messages == (
        Send("stock-0", ReleaseStock("c1", APPLES)),
        Send("stock-1", ReleaseStock("c1", PEARS)),
        Send("payment-0", RefundUser("c1", "ann", 17)),
    )
    assert step.checkout.refusals == {"batch_init": SUPERSEDED}


def test_batch_init_over_a_checkout_that_is_being_undone_changes_nothing_of_it() -> None:
    assert supersede(UNDOING) == UNDOING


def test_a_checkout_whose_order_was_replaced_leaves_the_new_order_alone() -> None:
    state = given(**{"0": Order("ann", APPLES, 17, checkout_id="c1")}, c1=a_checkout())
    chunk = decide(state, FillChunk("i1", 0, 1, (1, 1, 5, 1)), sent_by("order-0"))
    state = after(state, chunk.state)
    new_order = state["Order:0"]
    undoing = msgspec.structs.replace(
        state["Checkout:c1"], order_id="0", undoing=True, waiting=("stock-0",), accepted=("stock-0",)
    )

    decision = decide(after(state, {"Checkout:c1": undoing}), StockReleased("c1"), sent_by("stock-0"))

    assert new_order.checkout_id == ""
    assert decision.state == {"Checkout:c1": None}
    assert decision.messages[0] == Reply(an_asker("o1/attempt/0"), SUPERSEDED)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order("ann", checkout_id="c1"), {"Order:o1": Order("ann")}),
        (Order("ann", checkout_id="c2"), {}),
        (None, {}),
    ],
)
def test_only_the_order_that_the_checkout_belongs_to_remembers_its_end(
    order: Order | None, expected: dict[str, Order]
) -> None:
    state = after(given(c1=UNDOING), {"Order:o1": order})

    decision = decide(state, StockReleased("c1"), sent_by("stock-0"))

    assert decision.state == {"Checkout:c1": None, **expected}


@pytest.mark.parametrize(("accepted", "answer"), [("payment-0", StockReserved("c1")), ("stock-0", UserCharged("c1"))])
def test_an_order_is_paid_when_its_checkout_is(accepted: str, answer: StockReserved) -> None:
    other = "stock-0" if accepted == "payment-0" else "payment-0"
    checkout = msgspec.structs.replace(a_checkout((other,), (accepted,)), lines={"stock-0": APPLES})
    state = given(o1=Order("ann", APPLES, 17, checkout_id="c1"), c1=checkout)

    decision = decide(state, answer, sent_by(other))

    assert decision.state == {"Checkout:c1": None, "Order:o1": Order("ann", APPLES, 17, paid=True)}


# --- whole checkouts, through the log


class Shop:
    """A world with items of 5 each, users, and orders of one of everything."""

    def __init__(self, stock: dict[str, int], credit: int, world: World | None = None) -> None:
        self.world = world or World(TWO_EACH)
        self.items = stock
        self.carry_out("payment", "ann", CreateUser("ann"))
        if credit:
            self.carry_out("payment", "ann", AddFunds("ann", credit))
        self.carry_out("order", "o1", CreateOrder("o1", "ann"))
        for item_id, amount in stock.items():
            self.carry_out("stock", item_id, CreateItem(item_id, 5))
            self.carry_out("stock", item_id, AddStock(item_id, amount + 1))
            self.carry_out("order", "o1", AddItem("o1", item_id, amount + 1))
            self.carry_out("stock", item_id, AddStock(item_id, 1))

    def carry_out(self, *call: object) -> Outcome:
        return self.world.carry_out(*call)

    def checkout(self) -> Outcome:
        return self.carry_out("order", "o1", CheckOut("o1"))

    def available(self) -> dict[str, int]:
        return {item_id: self.world.entity(Item, "stock", item_id).available for item_id in self.items}

    def account(self) -> Account | None:
        return self.world.entity(Account, "payment", "ann")

    def order(self) -> Order | None:
        return self.world.entity(Order, "order", "o1")

    def held(self) -> int:
        return sum(self.reserved().values()) + self.account().held

    def reserved(self) -> dict[str, int]:
        return {item_id: self.world.entity(Item, "stock", item_id).held for item_id in self.items}

    def letters(self) -> int:
        """Return how many letters have been written."""
        return sum(len(letters) for folded in self.world.folded for letters in folded.letters.values())


def a_shop(credit: int = 100, world: World | None = None) -> Shop:
    """Return a shop with an order of an apple, two pears and three figs: 30 in all, one more of each in stock."""
    return Shop({"apple": 0, "pear": 1, "fig": 2}, credit, world)


def test_a_paid_checkout_takes_the_goods_and_the_money_once() -> None:
    shop = a_shop(credit=100)

    assert shop.checkout() == Done("o1")

    assert shop.order().paid
    assert shop.account() == Account(70, held=30)
    assert shop.available() == {"apple": 1, "pear": 1, "fig": 1}
    assert shop.reserved() == {"apple": 1, "pear": 2, "fig": 3}
    assert shop.world.open(Checkout) == 0


def test_a_small_checkout_is_paid_without_a_letter_after_the_answers() -> None:
    shop = a_shop()
    parts = {partition_of("stock", item_id, TWO_EACH) for item_id in shop.items}
    before = shop.letters()

    assert shop.checkout() == Done("o1")

    assert shop.letters() - before == 2 * (len(parts) + 1)  # a question and an answer each


def test_a_paid_checkout_settles_its_large_lines_and_its_large_amount_and_keeps_the_small_lines_held() -> None:
    shop = Shop({"apple": LARGE - 1, "pear": LARGE, "fig": SMALL - 1, "kiwi": 0}, credit=20 * LARGE)
    parts = {partition_of("stock", item_id, TWO_EACH) for item_id in shop.items}
    large_parts = {partition_of("stock", item_id, TWO_EACH) for item_id in ("apple", "pear")}
    before = shop.letters()

    assert shop.checkout() == Done("o1")

    assert shop.reserved() == {"apple": 0, "pear": 0, "fig": SMALL, "kiwi": 1}
    assert shop.available() == {"apple": 1, "pear": 1, "fig": 1, "kiwi": 1}
    assert shop.account() == Account(20 * LARGE - 5 * (LARGE + LARGE + 1 + SMALL + 1))
    assert shop.letters() - before == 2 * (len(parts) + 1) + len(large_parts) + 1
    assert shop.world.open(Checkout) == 0


def test_what_was_paid_and_not_settled_counts_against_the_limit_for_good() -> None:
    shop = a_shop(credit=AMOUNT_MAX)
    shop.checkout()

    assert shop.carry_out("payment", "ann", AddFunds("ann", 1)).reason == Reason.CONFLICT

    assert shop.account() == Account(AMOUNT_MAX - 30, held=30)


def test_a_failed_checkout_gives_back_its_own_and_not_what_an_earlier_one_has_paid() -> None:
    shop = a_shop(credit=30)
    shop.checkout()
    shop.carry_out("order", "o2", CreateOrder("o2", "ann"))
    shop.carry_out("order", "o2", AddItem("o2", "apple", 1))

    assert shop.carry_out("order", "o2", CheckOut("o2")).reason == Reason.NO_CREDIT

    assert shop.account() == Account(0, held=30)
    assert shop.available() == {"apple": 1, "pear": 1, "fig": 1}
    assert shop.reserved() == {"apple": 1, "pear": 2, "fig": 3}


def test_checking_out_again_is_answered_alike_and_takes_nothing() -> None:
    shop = a_shop()
    shop.checkout()
    before = shop.account(), shop.available()

    assert shop.checkout() == Done("o1")

    assert (shop.account(), shop.available()) == before


def test_a_checkout_without_credit_gives_the_goods_back() -> None:
    shop = a_shop(credit=29)

    assert shop.checkout().reason == Reason.NO_CREDIT

    assert not shop.order().paid
    assert shop.order().checkout_id == ""
    assert shop.account() == Account(29)
    assert shop.available() == {"apple": 2, "pear": 3, "fig": 4}
    assert (shop.held(), shop.world.open(Checkout)) == (0, 0)


def test_a_checkout_that_is_short_of_one_item_takes_neither_goods_nor_money() -> None:
    shop = a_shop()
    shop.carry_out("order", "o1", AddItem("o1", "apple", 2))

    outcome = shop.checkout()

    assert outcome == Refused(Reason.CONFLICT, "out of stock")
    assert shop.account() == Account(100)
    assert shop.available() == {"apple": 2, "pear": 3, "fig": 4}
    assert (shop.held(), shop.world.open(Checkout)) == (0, 0)


def test_a_failed_checkout_can_be_asked_for_again_and_succeed() -> None:
    shop = a_shop(credit=29)
    shop.checkout()
    shop.carry_out("payment", "ann", AddFunds("ann", 1))

    assert shop.checkout() == Done("o1")

    assert shop.account() == Account(0, held=30)


def test_without_stock_and_without_credit_the_reason_is_stock() -> None:
    shop = a_shop(credit=1)
    shop.carry_out("order", "o1", AddItem("o1", "apple", 9))

    assert shop.checkout() == Refused(Reason.CONFLICT, "out of stock")


def test_an_order_of_an_unknown_user_is_refused_when_it_is_checked_out() -> None:
    world = World(TWO_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "nobody"))

    assert world.carry_out("order", "o1", CheckOut("o1")).reason == Reason.NOT_FOUND


def test_an_empty_order_is_paid_for_nothing() -> None:
    world = World(TWO_EACH)
    world.carry_out("payment", "ann", CreateUser("ann"))
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))

    assert world.carry_out("order", "o1", CheckOut("o1")) == Done("o1")

    assert world.entity(Order, "order", "o1").paid
    assert world.entity(Account, "payment", "ann") == Account(0)


def test_everybody_who_waits_is_told_and_only_one_checkout_happens() -> None:
    shop = a_shop(credit=100)
    askers = [shop.world.ask("order", "o1", CheckOut("o1"), f"key/{number}") for number in range(5)]

    shop.world.run()

    assert [shop.world.told(asker) for asker in askers] == [[Done("o1")]] * 5
    assert shop.account() == Account(70, held=30)


def test_a_repeat_while_the_checkout_is_open_starts_nothing_and_is_told_once() -> None:
    shop = a_shop(credit=100)
    asker = shop.world.ask("order", "o1", CheckOut("o1"), "key/1")
    shop.world.ask("order", "o1", CheckOut("o1"), "key/1")

    shop.world.run()

    assert shop.world.told(asker) == [Done("o1")]
    assert shop.account() == Account(70, held=30)


def test_batch_init_over_an_open_checkout_gives_everything_back() -> None:
    world = World(ONE_EACH, records_max=1)
    world.carry_out("stock", "i", InitItems(2, 10, 5))
    world.carry_out("payment", "u", InitUsers(1, 100))
    world.carry_out("order", "o", InitOrders(1, 2, 1, 5))
    checkout = world.ask("order", "0", CheckOut("0"))
    again = world.ask("order", "o2", InitOrders(1, 2, 1, 5))
    for owner in (world.owners["order-0"],) * 3:  # the command, the init and its chunk, before any answer
        owner.step(1)
    assert world.open(Checkout) == 1

    world.run()

    assert world.told(checkout) == [SUPERSEDED]
    assert world.told(again) == [Done("1")]
    assert world.entity(Account, "payment", "0") == Account(100)
    assert [world.entity(Item, "stock", item_id) for item_id in "01"] == [Item(5, 10), Item(5, 10)]
    assert not world.entity(Order, "order", "0").paid
    assert world.open(Checkout) == 0


def test_a_user_cannot_become_richer_than_the_limit_by_a_refund() -> None:
    shop = a_shop(credit=AMOUNT_MAX)
    shop.carry_out("order", "o1", AddItem("o1", "apple", 9))  # short, so the charge is undone
    checkout = shop.world.ask("order", "o1", CheckOut("o1"))
    order = shop.world.owners[partition_of("order", "o1", TWO_EACH)]
    payment = shop.world.owners[partition_of("payment", "ann", TWO_EACH)]
    order.step()
    payment.step()
    assert shop.account().held == 75

    richer = shop.world.ask("payment", "ann", AddFunds("ann", 1))
    shop.world.run()

    assert shop.world.told(richer)[0].reason == Reason.CONFLICT
    assert shop.world.told(checkout)[0].reason == Reason.CONFLICT
    assert shop.account() == Account(AMOUNT_MAX)


@pytest.mark.parametrize("records_max", [1, 2, 3, 500])
@pytest.mark.parametrize("letters_max", [1, 2, 500])
def test_whatever_the_batches_are_the_entities_come_out_alike(records_max: int, letters_max: int) -> None:
    def run(world: World) -> object:
        shop = a_shop(credit=40, world=world)
        for number in range(5):
            order_id = f"o{number + 2}"
            shop.carry_out("order", order_id, CreateOrder(order_id, "ann"))
            shop.carry_out("order", order_id, AddItem(order_id, "apple", 1))
        askers = [world.ask("order", f"o{number + 1}", CheckOut(f"o{number + 1}"), "key/1") for number in range(6)]
        world.run()
        stored = entities_of(world.store)
        return [world.told(asker) for asker in askers], stored["stock-0"].keys(), shop.account(), shop.available()

    outcomes, keys, account, available = run(World(TWO_EACH, records_max=records_max, letters_max=letters_max))

    assert all(len(outcome) == 1 for outcome in outcomes)
    assert keys == run(World(TWO_EACH))[1]
    paid = [number for number, (outcome,) in enumerate(outcomes) if isinstance(outcome, Done)]
    spent = sum(30 if number == 0 else 5 for number in paid)
    assert account == Account(40 - spent, held=spent)
    assert available["apple"] == 2 - len(paid)
