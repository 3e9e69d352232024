"""The audit: wrong code is found although log and store are its honest fold."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from audited import (
    Found,
    a_shop,
    buy,
    ends_of,
    evidence_of,
    fail,
    fill,
    found,
    nothing_stored,
    trim,
    with_state,
    wrong,
)
from world import World

from audit import Kind
from common.decision import Arrival, Decision, Machine, Reply, Send, State
from common.messages import (
    AMOUNT_MAX,
    ChargeRefused,
    ChargeUser,
    Done,
    PriceTold,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    StockRefused,
    StockReserved,
    UserCharged,
)
from order.checkout import SETTLED_LEAST
from order.domain import MACHINE as ORDER
from order.domain import AddItem, CheckOut, CreateOrder, Order
from payment.domain import MACHINE as PAYMENT
from payment.domain import Account, AddFunds, CreateUser
from stock.domain import MACHINE as STOCK
from stock.domain import AddStock, SubtractStock

# --- the code is wrong, and log and store are its honest fold --------------------------------------------------------


def stored_otherwise(**fields: Any) -> Callable[..., Decision]:
    """Write entities with these fields, whatever they should be."""
    return lambda _state, _message, _arrival, decision: with_state(decision, **fields)


def charges_twice_as_much(_state: State, message: ChargeUser, _arrival: Arrival, decision: Decision) -> Decision:
    return with_state(decision, credit=100 - 2 * message.amount, held=2 * message.amount)


def charges_eve(state: State, message: ChargeUser, _arrival: Arrival, decision: Decision) -> Decision:
    del state
    return Decision({f"Account:eve{message.user_id}": Account(-message.amount, message.amount)}, decision.messages)


def accepts(_state: State, message: Any, _arrival: Arrival, _decision: Decision) -> Decision:
    return Decision({}, (StockReserved(message.checkout_id),))


def sends(change: Callable[[Send], list[Send]]) -> Callable[..., Decision]:
    """Send something else than what was decided."""

    def twist(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
        changed: list[Any] = []
        for each in decision.messages:
            changed += change(each) if isinstance(each, Send) else [each]
        return Decision(decision.state, tuple(changed))

    return twist


def no_send(kind: type) -> Callable[..., Decision]:
    return sends(lambda send: [] if isinstance(send.message, kind) else [send])


def twice(kind: type) -> Callable[..., Decision]:
    return sends(lambda send: [send, send] if isinstance(send.message, kind) else [send])


def otherwise(kind: type, **fields: Any) -> Callable[..., Decision]:
    def change(send: Send) -> list[Send]:
        is_one = isinstance(send.message, kind)
        return [Send(send.partition, msgspec.structs.replace(send.message, **fields))] if is_one else [send]

    return sends(change)


def forgets_refund(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
    """Undo at stock only, and wait for nobody else."""
    sent = [each for each in decision.messages if not (isinstance(each, Send) and isinstance(each.message, RefundUser))]
    waiting = tuple(each.partition for each in sent if isinstance(each, Send))
    return with_state(Decision(decision.state, tuple(sent)), waiting=waiting) if waiting else decision


def takes_refusal_for_yes(state: State, message: Any, arrival: Arrival, _decision: Decision) -> Decision:
    accepted = UserCharged if isinstance(message, ChargeRefused) else StockReserved
    return ORDER.decide(state, accepted(message.checkout_id), arrival)


def paid_at_once(state: State, message: CheckOut, _arrival: Arrival, _decision: Decision) -> Decision:
    order = state[f"Order:{message.order_id}"]
    assert isinstance(order, Order)
    paid = msgspec.structs.replace(order, paid=True)
    return Decision({f"Order:{message.order_id}": paid}, (Done(message.order_id),))


def opens_again(state: State, message: CheckOut, arrival: Arrival, decision: Decision) -> Decision:
    order = state[f"Order:{message.order_id}"]
    assert isinstance(order, Order)
    unpaid = msgspec.structs.replace(order, paid=False)
    again = ORDER.decide({**decision.state, f"Order:{message.order_id}": unpaid}, message, arrival)
    return with_state(again, paid=True) if order.paid else decision


def tells_otherwise(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
    refusal = Refused(Reason.CONFLICT, "no")
    told = [Reply(each.asker, refusal) if isinstance(each, Reply) else each for each in decision.messages]
    return Decision(decision.state, tuple(told))


def tells_nobody(_state: State, _message: Any, _arrival: Arrival, decision: Decision) -> Decision:
    return Decision(decision.state, tuple(each for each in decision.messages if not isinstance(each, Reply)))


def fails_at_once(state: State, message: StockRefused, arrival: Arrival, decision: Decision) -> Decision:
    """Tell of the failure before anything is undone."""
    del arrival, decision
    checkout: Any = state[f"Checkout:{message.checkout_id}"]
    order: Any = state[f"Order:{checkout.order_id}"]
    closed = msgspec.structs.replace(order, checkout_id="")
    replies = tuple(Reply(asker, message.refusal) for asker in checkout.askers)
    return Decision({f"Checkout:{checkout.id}": None, f"Order:{checkout.order_id}": closed}, replies)


def sell(world: World) -> None:
    buy(world)


def sell_nothing(world: World) -> None:
    fail(world)


def sell_twice(world: World) -> None:
    buy(world)
    world.carry_out("order", "o-1", CheckOut("o-1"))


def sell_much(world: World) -> None:
    world.carry_out("stock", "apple", AddStock("apple", 2 * SETTLED_LEAST))
    world.carry_out("payment", "ann", AddFunds("ann", 9 * SETTLED_LEAST))
    buy(world, apple=SETTLED_LEAST, pear=1)


def sell_and_add(world: World) -> None:
    buy(world)
    world.carry_out("order", "o-1", AddItem("o-1", "apple", 1))


def only_open_a_shop(world: World) -> None:
    world.carry_out("stock", "pear", SubtractStock("pear", 1))


def sell_and_go_on(world: World) -> None:
    """The checkout of o-1 is order-0-4-0; it is paid, and its small holds stay held.  Then comes order o-3."""
    buy(world, "o-1", apple=1)
    world.carry_out("order", "o-3", CreateOrder("o-3", "ann"))


def when_o_3_is_created(partition: str, message: Any) -> tuple[Machine, ...]:
    """Return an order machine that sends one message too many."""

    def twist(_state: State, created: CreateOrder, _arrival: Arrival, decision: Decision) -> Decision:
        more = (Send(partition, message),) if created.order_id == "o-3" else ()
        return Decision(decision.state, (*decision.messages, *more))

    return wrong(ORDER, CreateOrder, twist)


MONEY = {(Kind.ACCOUNT_MOVED_WRONGLY, "Account:ann"), (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann")}
APPLES = {(Kind.ITEM_MOVED_WRONGLY, "Item:apple"), (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple")}
PEARS = {(Kind.ITEM_MOVED_WRONGLY, "Item:pear"), (Kind.GOODS_DO_NOT_ADD_UP, "Item:pear")}

CODE_CASES: dict[str, tuple[tuple[Machine, ...], Callable[[World], None], Found]] = {
    "payment charges twice as much": (
        wrong(PAYMENT, ChargeUser, charges_twice_as_much),
        sell,
        {(Kind.CHARGE_OF_ANOTHER_AMOUNT, "Order:o-1"), *MONEY},
    ),
    "payment accepts without charging": (
        wrong(PAYMENT, ChargeUser, nothing_stored),
        sell,
        {(Kind.PAID_WITHOUT_CHARGE, "Order:o-1"), *MONEY},
    ),
    "payment charges somebody else, who has nothing": (
        wrong(PAYMENT, ChargeUser, charges_eve),
        sell,
        {
            (Kind.CHARGE_OF_ANOTHER_USER, "Order:o-1"),
            (Kind.ACCOUNT_MOVED_WRONGLY, "Account:eveann"),
            (Kind.MONEY_DOES_NOT_ADD_UP, "Account:eveann"),
            (Kind.NEGATIVE, "Account:eveann"),
            *MONEY,
        },
    ),
    "payment acknowledges a refund and makes none": (
        wrong(PAYMENT, RefundUser, nothing_stored),
        sell_nothing,
        {(Kind.FAILED_BUT_CHARGED, "Order:o-2"), *MONEY},
    ),
    "payment refunds too much": (
        wrong(PAYMENT, RefundUser, stored_otherwise(credit=101)),
        sell_nothing,
        {(Kind.UNDO_OF_ANOTHER_AMOUNT, "Order:o-2"), *MONEY},
    ),
    "payment adds less than was paid in": (
        wrong(PAYMENT, AddFunds, stored_otherwise(credit=99)),
        sell,
        MONEY,
    ),
    "payment counts in fractions": (
        wrong(PAYMENT, CreateUser, stored_otherwise(credit=0.0)),
        only_open_a_shop,
        {(Kind.NOT_AN_INTEGER, "Account:ann")},
    ),
    "stock accepts without deducting": (
        wrong(STOCK, ReserveStock, accepts),
        sell,
        {(Kind.DEDUCTION_MISSING, "Order:o-1"), *APPLES, *PEARS},
    ),
    "stock deducts another quantity": (
        wrong(STOCK, ReserveStock, stored_otherwise(available=9, held=1)),
        lambda world: void(buy(world, apple=2)),
        {(Kind.DEDUCTION_OF_ANOTHER_QUANTITY, "Order:o-1"), *APPLES},
    ),
    "stock sells what it does not have": (
        wrong(STOCK, SubtractStock, stored_otherwise(available=-1)),
        only_open_a_shop,
        {(Kind.NEGATIVE, "Item:pear"), *PEARS},
    ),
    "stock has more than can be counted": (
        wrong(STOCK, SubtractStock, stored_otherwise(available=AMOUNT_MAX, held=1)),
        only_open_a_shop,
        {(Kind.TOO_LARGE, "Item:pear"), *PEARS},
    ),
    "stock acknowledges a release and makes none": (
        wrong(STOCK, ReleaseStock, nothing_stored),
        sell_nothing,
        {(Kind.FAILED_BUT_DEDUCTED, "Order:o-2"), *APPLES},
    ),
    "stock releases another quantity": (
        wrong(STOCK, ReleaseStock, stored_otherwise(available=12)),
        sell_nothing,
        {(Kind.UNDO_OF_ANOTHER_AMOUNT, "Order:o-2"), *APPLES},
    ),
    "order pays after a refusal": (
        wrong(ORDER, StockRefused, takes_refusal_for_yes),
        sell_nothing,
        {
            (Kind.DEDUCTION_MISSING, "Order:o-2"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:pear"),
        },
    ),
    "order forgets a refund": (
        wrong(ORDER, UserCharged, forgets_refund),
        sell_nothing,
        {(Kind.FAILED_BUT_CHARGED, "Order:o-2"), (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann")},
    ),
    "order charges another amount": (
        wrong(ORDER, CheckOut, otherwise(ChargeUser, amount=9)),
        sell,
        {(Kind.CHARGE_OF_ANOTHER_AMOUNT, "Order:o-1"), (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann")},
    ),
    "order reserves another item": (
        wrong(ORDER, CheckOut, otherwise(ReserveStock, lines=(("apple", 1),))),
        lambda world: void(fill(world, "o-9", apple=1), buy(world, apple=2)),
        {
            (Kind.DEDUCTION_OF_ANOTHER_QUANTITY, "Order:o-1"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
        },
    ),
    "order sells lines that it never reserved": (
        wrong(ORDER, CheckOut, otherwise(ReserveStock, lines=())),
        sell,
        {
            (Kind.DEDUCTION_MISSING, "Order:o-1"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:pear"),
        },
    ),
    "order charges for a checkout of its own invention": (
        when_o_3_is_created("payment-1", ChargeUser("order-0-66-0", "ann", 5)),
        sell_and_go_on,
        {
            (Kind.CHARGE_WITHOUT_ORDER, "Checkout:order-0-66-0"),
            (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
            (Kind.DEAD_LETTER_UNDELIVERED, "order-0-8-0"),
        },
    ),
    "order refunds what is paid": (
        when_o_3_is_created("payment-1", RefundUser("order-0-4-0", "ann", 3)),
        sell_and_go_on,
        {
            (Kind.PAID_BUT_UNDONE, "Order:o-1"),
            (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
            (Kind.DEAD_LETTER_UNDELIVERED, "order-0-8-0"),
        },
    ),
    "order releases what it never reserved": (
        when_o_3_is_created("stock-0", ReleaseStock("order-0-66-0", (("apple", 1),))),
        sell_and_go_on,
        {
            (Kind.UNDO_WITHOUT_HOLD, "Checkout:order-0-66-0"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple"),
            (Kind.DEAD_LETTER_UNDELIVERED, "order-0-8-0"),
        },
    ),
    "order reserves what is not in the order": (
        when_o_3_is_created("stock-1", ReserveStock("order-0-4-0", (("pear", 1),))),
        sell_and_go_on,
        {
            (Kind.DEDUCTION_WITHOUT_LINE, "Order:o-1"),
            (Kind.GOODS_DO_NOT_ADD_UP, "Item:pear"),
            (Kind.DEAD_LETTER_UNDELIVERED, "order-0-8-0"),
        },
    ),
    "order is paid without a checkout": (
        wrong(ORDER, CheckOut, paid_at_once),
        sell,
        {(Kind.PAID_WITHOUT_CHECKOUT, "Order:o-1")},
    ),
    "order opens a checkout of what is paid": (
        wrong(ORDER, CheckOut, opens_again),
        sell_twice,
        {(Kind.PAID_TWICE, "Order:o-1")},
    ),
    "order forgets that it is paid": (
        wrong(
            ORDER, AddItem, lambda _s, message, _a, _d: Decision({f"Order:{message.order_id}": Order("ann")}, (Done(),))
        ),
        lambda world: void(
            world.carry_out("order", "o-1", CreateOrder("o-1", "ann")),
            world.carry_out("order", "o-1", CheckOut("o-1")),
            world.carry_out("order", "o-1", AddItem("o-1", "apple", 1)),
        ),
        {(Kind.PAID_AND_FORGOTTEN, "Order:o-1")},
    ),
    "order adds a line at another price": (
        wrong(ORDER, PriceTold, stored_otherwise(total_cost=1)),
        lambda world: void(fill(world, "o-1", apple=1)),
        {(Kind.ORDER_CHANGED_WRONGLY, "Order:o-1")},
    ),
    "order tells a buyer that it failed, and is paid": (
        wrong(ORDER, UserCharged, tells_otherwise),
        sell,
        {(Kind.TOLD_OTHERWISE, "Order:o-1")},
    ),
    "order tells a buyer nothing": (
        wrong(ORDER, UserCharged, tells_nobody),
        lambda world: void(
            fill(world, "o-1", apple=1), world.ask("order", "o-1", CheckOut("o-1"), "key/k"), world.run()
        ),
        {(Kind.NEVER_TOLD, "Result:o-1/key/k")},
    ),
    "order fails before anything is undone": (
        wrong(ORDER, StockRefused, fails_at_once),
        lambda world: void(fill(world, "o-2", pear=11), world.ask("order", "o-2", CheckOut("o-2")), world.run()),
        {
            (Kind.ENDED_EARLY, "Order:o-2"),
            (Kind.FAILED_BUT_CHARGED, "Order:o-2"),
            (Kind.MONEY_DOES_NOT_ADD_UP, "Account:ann"),
            (Kind.DEAD_LETTER_UNDELIVERED, "order-0-6-0"),
        },
    ),
    "order does not settle what is large": (
        wrong(ORDER, UserCharged, no_send(SettleStock)),
        sell_much,
        {(Kind.SETTLED_WRONGLY, "Order:o-1"), (Kind.GOODS_DO_NOT_ADD_UP, "Item:apple")},
    ),
    "payment does not settle what is large": (
        wrong(PAYMENT, SettleCharge, lambda _s, _m, _a, _d: Decision()),
        sell_much,
        {(Kind.SETTLED_WRONGLY, "Order:o-1"), *MONEY},
    ),
}


def void(*_: object) -> None:
    """Return nothing, whatever was done."""


@pytest.mark.parametrize(("machines", "trade", "expected"), CODE_CASES.values(), ids=CODE_CASES.keys())
def test_wrong_code_is_found_although_the_store_is_its_honest_fold(
    machines: tuple[Machine, ...], trade: Callable[[World], None], expected: Found
) -> None:
    world = a_shop(machines)

    trade(world)

    assert found(evidence_of(world), machines) == expected


@pytest.mark.parametrize(
    ("machines", "trade", "expected"),
    [case for case in CODE_CASES.values() if case[1] is not only_open_a_shop and case[2] != MONEY],
    ids=[name for name, case in CODE_CASES.items() if case[1] is not only_open_a_shop and case[2] != MONEY],
)
def test_wrong_code_is_found_as_well_behind_a_snapshot(
    machines: tuple[Machine, ...], trade: Callable[[World], None], expected: Found
) -> None:
    world = a_shop(machines)
    opened = ends_of(world)

    trade(world)

    assert found(trim(evidence_of(world), opened, machines), machines) == expected


OF_SNAPSHOTS = {
    Kind.DEAD_LETTER_UNDELIVERED,  # named by its partition, once its place is gone
    Kind.HEARD_OTHERWISE,
    Kind.RECORD_UNDECODABLE,
    Kind.UNDO_OF_ANOTHER_AMOUNT,
}
"""What wrong code that is older than the log may show instead."""


@pytest.mark.parametrize(("machines", "trade", "expected"), CODE_CASES.values(), ids=CODE_CASES.keys())
def test_wherever_the_snapshots_are_wrong_code_is_not_called_something_else(
    machines: tuple[Machine, ...], trade: Callable[[World], None], expected: Found
) -> None:
    world = a_shop(machines)
    trade(world)
    chance = random.Random(3)
    for _ in range(30):
        positions = {name: chance.randint(0, end) for name, end in ends_of(world).items()}
        more = found(trim(evidence_of(world), positions, machines), machines) - expected
        assert {kind for kind, _ in more} <= OF_SNAPSHOTS, positions


def pays_without_charge(_state: State, _message: CheckOut, _arrival: Arrival, decision: Decision) -> Decision:
    """Do not charge, and do not wait for payment."""
    kept = [each for each in decision.messages if not (isinstance(each, Send) and isinstance(each.message, ChargeUser))]
    waiting = tuple(each.partition for each in kept if isinstance(each, Send))
    return with_state(Decision(decision.state, tuple(kept)), waiting=waiting)


def test_two_opposite_mistakes_that_cancel_in_the_sums_are_both_found() -> None:
    """o-1 is paid and took no money; o-2 failed and kept as much: ann's credit is what it should be."""

    def twist(state: State, message: Any, arrival: Arrival, decision: Decision) -> Decision:
        if isinstance(message, UserCharged):
            return forgets_refund(state, message, arrival, decision)
        is_first = message.order_id == "o-1"
        return pays_without_charge(state, message, arrival, decision) if is_first else decision

    machines = wrong(ORDER, CheckOut | UserCharged, twist)
    world = a_shop(machines, stock=2)
    assert isinstance(buy(world, "o-1", apple=1, pear=2), Done)
    assert isinstance(buy(world, "o-2", apple=1, pear=2), Refused)

    assert world.entity(Account, "payment", "ann") == Account(89, 11)
    assert found(evidence_of(world), machines) == {
        (Kind.PAID_WITHOUT_CHARGE, "Order:o-1"),
        (Kind.FAILED_BUT_CHARGED, "Order:o-2"),
    }
