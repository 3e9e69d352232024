"""Order's rules, one by one; the checkout has a file of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builders import ONE_EACH, TWO_EACH, after, an_arrival, an_asker, asked, given, sent_by
from world import World, entities_of

from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Decision, NotLoaded, Reply, Send
from common.fold import Memory
from common.messages import (
    AMOUNT_MAX,
    AskPrice,
    ChargeRefused,
    Done,
    Letter,
    PriceRefused,
    PriceTold,
    Reason,
    Refused,
    StockRefused,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
    partition_of,
)
from order.domain import (
    CHECKING_OUT,
    LINES_MAX,
    NO_ITEM,
    NO_ORDER,
    PAID,
    TOO_LONG,
    TOO_MUCH,
    AddItem,
    Addition,
    CheckOut,
    CreateOrder,
    InitOrders,
    Order,
    OrderMessage,
    decide,
    excuse,
    keys,
    random_order,
)
from stock.domain import AddStock, CreateItem, InitItems

COMMAND = asked()
FROM_STOCK = sent_by("stock-0")


def an_order(
    *lines: tuple[str, int], total_cost: int = 0, paid: bool = False, checkout_id: str = "", user_id: str = "ann"
) -> Order:
    return Order(user_id, lines, total_cost, paid, checkout_id)


def an_addition(item_id: str = "apple", quantity: int = 1) -> Addition:
    return Addition(an_asker("o1/attempt/1"), "o1", item_id, quantity)


def told(outcome: Done | Refused) -> tuple[Reply]:
    """Return what tells the one who asked for the addition."""
    return (Reply(an_asker("o1/attempt/1"), outcome),)


# --- create


def test_a_new_order_is_empty_and_unpaid() -> None:
    decision = decide(given(), CreateOrder("o1", "ann"), COMMAND)

    assert decision == Decision({"Order:o1": an_order()}, (Done("o1"),))


def test_creating_an_order_that_exists_tells_its_id_and_changes_nothing() -> None:
    decision = decide(given(o1=an_order(paid=True)), CreateOrder("o1", "bob"), COMMAND)

    assert decision == Decision({}, (Done("o1"),))


# --- addItem


def test_adding_an_item_asks_its_stock_partition_for_the_price() -> None:
    arrival = asked(topology=TWO_EACH)

    decision = decide(given(o1=an_order()), AddItem("o1", "apple", 2), arrival)

    stock = partition_of("stock", "apple", TWO_EACH)
    assert decision == Decision(
        {"Addition:order-0-9-0": an_addition("apple", 2)}, (Send(stock, AskPrice("order-0-9-0", "apple")),)
    )


def test_the_line_is_added_when_the_price_is_told() -> None:
    state = given(o1=an_order(("pear", 1), total_cost=7), a1=an_addition("apple", 2))

    decision = decide(state, PriceTold("a1", 5), FROM_STOCK)

    assert decision.state == {"Addition:a1": None, "Order:o1": an_order(("pear", 1), ("apple", 2), total_cost=17)}
    assert decision.messages == told(Done())


def test_adding_the_same_item_twice_adds_the_quantities() -> None:
    state = given(o1=an_order(("apple", 1), ("pear", 1), total_cost=12), a1=an_addition("apple", 2))

    decision = decide(state, PriceTold("a1", 5), FROM_STOCK)

    assert decision.state["Order:o1"] == an_order(("apple", 3), ("pear", 1), total_cost=22)


def test_each_item_costs_what_it_cost_when_it_was_added() -> None:
    state = given(o1=an_order(), a1=an_addition("apple", 1), a2=an_addition("apple", 1))
    state = after(state, decide(state, PriceTold("a1", 5), FROM_STOCK).state)
    state = after(state, decide(state, PriceTold("a2", 9), FROM_STOCK).state)

    assert state["Order:o1"] == an_order(("apple", 2), total_cost=14)


def test_a_free_item_is_added_for_nothing() -> None:
    decision = decide(given(o1=an_order(), a1=an_addition("apple", 3)), PriceTold("a1", 0), FROM_STOCK)

    assert decision.state["Order:o1"] == an_order(("apple", 3), total_cost=0)


@pytest.mark.parametrize(
    ("order", "refusal"),
    [
        ({}, NO_ORDER),
        ({"o1": an_order(paid=True)}, PAID),
        ({"o1": an_order(checkout_id="c1")}, CHECKING_OUT),
    ],
)
def test_nothing_is_added_to_an_order_that_is_unknown_paid_or_being_checked_out(
    order: dict[str, Order], refusal: Refused
) -> None:
    assert decide(given(**order), AddItem("o1", "apple", 1), COMMAND) == Decision({}, (refusal,))


@pytest.mark.parametrize(
    ("order", "refusal"),
    [
        (an_order(paid=True), PAID),
        (an_order(checkout_id="c1"), CHECKING_OUT),
    ],
)
def test_nothing_is_added_to_an_order_that_was_closed_while_the_price_was_asked(order: Order, refusal: Refused) -> None:
    decision = decide(given(o1=order, a1=an_addition()), PriceTold("a1", 5), FROM_STOCK)

    assert decision == Decision({"Addition:a1": None}, told(refusal))


def test_an_unknown_item_is_not_added() -> None:
    decision = decide(given(o1=an_order(), a1=an_addition()), PriceTold("a1", None), FROM_STOCK)

    assert decision == Decision({"Addition:a1": None}, told(NO_ITEM))


def test_a_price_that_nobody_waits_for_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a price for a1, which nobody waits for"):
        decide(given(o1=an_order()), PriceTold("a1", 5), FROM_STOCK)


def test_when_there_is_no_price_the_one_who_asked_is_told_why_and_nothing_is_added() -> None:
    refusal = Refused(Reason.INTERNAL, "a bug")

    decision = decide(given(o1=an_order(), a1=an_addition()), PriceRefused("a1", refusal), FROM_STOCK)

    assert decision == Decision({"Addition:a1": None}, told(refusal))


@pytest.mark.parametrize("order", [{}, {"o1": an_order(paid=True)}, {"o1": an_order(checkout_id="c1")}])
def test_why_there_is_no_price_is_told_whatever_became_of_the_order(order: dict[str, Order]) -> None:
    refusal = Refused(Reason.INTERNAL, "a bug")

    decision = decide(given(a1=an_addition(), **order), PriceRefused("a1", refusal), FROM_STOCK)

    assert decision == Decision({"Addition:a1": None}, told(refusal))


def test_a_refused_price_that_nobody_waits_for_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a price for a1, which nobody waits for"):
        decide(given(o1=an_order()), PriceRefused("a1", NO_ITEM), FROM_STOCK)


def full(lines: int) -> Order:
    return an_order(*((f"item-{number}", 1) for number in range(lines)), total_cost=lines)


def test_an_order_may_have_100_lines() -> None:
    decision = decide(given(o1=full(LINES_MAX - 1), a1=an_addition()), PriceTold("a1", 1), FROM_STOCK)

    assert LINES_MAX == 100
    assert decision.messages == told(Done())
    assert len(decision.state["Order:o1"].lines) == 100


def test_an_order_may_not_have_101_lines() -> None:
    decision = decide(given(o1=full(LINES_MAX), a1=an_addition()), PriceTold("a1", 1), FROM_STOCK)

    assert decision == Decision({"Addition:a1": None}, told(TOO_LONG))


def test_a_full_order_takes_more_of_an_item_that_it_has() -> None:
    decision = decide(given(o1=full(LINES_MAX), a1=an_addition("item-7")), PriceTold("a1", 1), FROM_STOCK)

    assert decision.messages == told(Done())


def test_a_total_may_reach_the_limit() -> None:
    state = given(o1=an_order(("pear", 1), total_cost=AMOUNT_MAX - 10), a1=an_addition("apple", 2))

    decision = decide(state, PriceTold("a1", 5), FROM_STOCK)

    assert decision.state["Order:o1"].total_cost == AMOUNT_MAX


def test_a_total_may_not_pass_the_limit() -> None:
    state = given(o1=an_order(("pear", 1), total_cost=AMOUNT_MAX - 9), a1=an_addition("apple", 2))

    assert decide(state, PriceTold("a1", 5), FROM_STOCK) == Decision({"Addition:a1": None}, told(TOO_MUCH))


def test_the_largest_price_times_the_largest_quantity_is_refused() -> None:
    state = given(o1=an_order(), a1=an_addition("apple", AMOUNT_MAX))

    assert decide(state, PriceTold("a1", AMOUNT_MAX), FROM_STOCK).messages == told(TOO_MUCH)


def test_a_quantity_may_not_pass_the_limit_even_for_free() -> None:
    state = given(o1=an_order(("apple", AMOUNT_MAX)), a1=an_addition("apple", 1))

    assert decide(state, PriceTold("a1", 0), FROM_STOCK).messages == told(TOO_MUCH)


# --- batch_init


def test_batch_init_sends_every_partition_its_first_chunk_with_a_seed() -> None:
    arrival = asked("order-1-9-0", topology=TWO_EACH)

    decision = decide(given(), InitOrders(10, 20, 30, 5), arrival)

    (send, other) = decision.messages
    assert (send.partition, other.partition) == ("order-0", "order-1")
    assert send.message == other.message
    assert send.message.parameters[:3] == (20, 30, 5)
    assert isinstance(decision.state["BatchInit:order-1-9-0"], BatchInit)


def test_the_seed_derives_from_the_request_id() -> None:
    def seed(request_id: str) -> int:
        (send,) = decide(given(), InitOrders(10, 20, 30, 5), asked(request_id=request_id)).messages
        return send.message.parameters[3]

    assert seed("i1/key/a") == seed("i1/key/a")
    assert seed("i1/key/a") != seed("i1/key/b")


def test_batch_init_of_orders_beyond_the_limit_of_a_total_is_refused() -> None:
    assert decide(given(), InitOrders(1, 1, 1, AMOUNT_MAX), COMMAND) == Decision({}, (TOO_MUCH,))


def test_batch_init_of_orders_up_to_the_limit_of_a_total_is_taken() -> None:
    assert decide(given(), InitOrders(1, 1, 1, AMOUNT_MAX // 2), COMMAND).state != {}


def test_a_chunk_makes_the_orders_that_live_here_and_no_others() -> None:
    arrival = sent_by("order-1", topology=TWO_EACH)

    decision = decide(given(), FillChunk("i1", 0, 50, (20, 30, 5, 1)), arrival)

    here = [str(number) for number in range(50) if partition_of("order", str(number), TWO_EACH) == "order-0"]
    assert set(decision.state) == {f"Order:{order_id}" for order_id in here}
    assert decision.messages == (ChunkFilled("i1", 50),)


@pytest.mark.parametrize("order_id", [str(number) for number in range(100)])
def test_a_random_order_has_two_different_items_of_quantity_one(order_id: str) -> None:
    order = random_order(order_id, (3, 30, 5, 1))

    assert [quantity for _, quantity in order.lines] == [1, 1]
    assert len(dict(order.lines)) == 2
    assert all(0 <= int(item_id) < 3 for item_id, _ in order.lines)
    assert 0 <= int(order.user_id) < 30
    assert order.total_cost == 10
    assert not order.paid


def test_random_orders_have_all_items_and_all_users() -> None:
    orders = [random_order(str(number), (3, 4, 5, 1)) for number in range(100)]

    assert {item_id for order in orders for item_id, _ in order.lines} == {"0", "1", "2"}
    assert {order.user_id for order in orders} == {"0", "1", "2", "3"}


def test_a_random_order_of_the_only_item_has_two_of_it() -> None:
    assert random_order("7", (1, 1, 5, 1)) == an_order(("0", 2), total_cost=10, user_id="0")


def test_the_same_parameters_make_the_same_order_and_another_seed_another() -> None:
    assert random_order("7", (1000, 1000, 5, 1)) == random_order("7", (1000, 1000, 5, 1))
    assert random_order("7", (1000, 1000, 5, 1)) != random_order("7", (1000, 1000, 5, 2))


def test_random_orders_never_change() -> None:
    """Pinned: other choices would rebuild other orders from the same log."""
    assert random_order("7", (1000, 1000, 5, 1)) == PINNED_ORDER


PINNED_ORDER = Order("304", (("154", 1), ("859", 1)), 10)


def test_batch_init_is_answered_when_the_only_partition_is_filled() -> None:
    state = after(given(), decide(given(), InitOrders(10, 20, 30, 5), COMMAND).state)

    decision = decide(state, ChunkFilled("order-0-9-0", 10), sent_by("order-0"))

    assert decision == Decision({"BatchInit:order-0-9-0": None}, (Reply(COMMAND.asker, Done("10")),))


# --- all messages

ANSWERS = [
    PriceTold("order-0-4-0", 5),
    PriceRefused("order-0-4-0", NO_ITEM),
    StockReserved("c1"),
    StockRefused("c1", NO_ITEM),
    StockReleased("c1"),
    UserCharged("c1"),
    ChargeRefused("c1", NO_ITEM),
    UserRefunded("c1"),
]
COMMANDS = [CreateOrder("o2", "ann"), AddItem("o1", "apple", 1), CheckOut("o1"), InitOrders(3, 1, 1, 5)]


@pytest.mark.parametrize("message", [*ANSWERS, *COMMANDS, FillChunk("i1", 0, 1, (1, 1, 5, 1)), ChunkFilled("i1", 1)])
def test_the_keys_that_are_named_beforehand_are_read(message: OrderMessage) -> None:
    """Whatever else is needed depends on what is read first."""
    read = []

    class Reading(Memory):
        def __getitem__(self, key: str) -> None:
            read.append(key)
            raise NotLoaded(key)

    arrival = an_arrival("order-0-9-0", "order-0", an_asker())
    named = list(keys(message, arrival))

    if named:
        with pytest.raises(NotLoaded):
            decide(Reading(), message, arrival)
        assert set(read) <= set(named)


def a_world() -> World:
    """One item, one user, one order; everything in one partition a service."""
    world = World(ONE_EACH)
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("stock", "apple", AddStock("apple", 10))
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    return world


@pytest.mark.parametrize("command", COMMANDS)
def test_a_repeat_is_answered_alike_and_changes_nothing(command: OrderMessage) -> None:
    world = a_world()
    first = world.carry_out("order", "o1", command, "key/k1")
    before = entities_of(world.store)

    again = world.carry_out("order", "o1", command, "key/k1")

    assert again == first
    assert entities_of(world.store) == before
    assert world.folded[-1].letters == {}


def test_a_repeated_letter_is_dropped_and_changes_nothing() -> None:
    world = a_world()
    world.carry_out("order", "o1", AddItem("o1", "apple", 1))
    before = entities_of(world.store)

    world.log.append("order-0", [Letter("stock-0", 1, PriceTold("order-0-2-0", 5))])
    world.run()

    assert entities_of(world.store) == before
    assert world.folded[-1].repeats == 1


@pytest.mark.parametrize("message", [*ANSWERS, *COMMANDS])
def test_nobody_but_clients_waits_for_order(message: OrderMessage) -> None:
    assert excuse(message) == ()


@pytest.mark.parametrize("ask", [decide, lambda _, message, arrival: list(keys(message, arrival))])
def test_a_message_for_another_service_is_a_bug(ask: Callable[..., object]) -> None:
    with pytest.raises(AssertionError):
        ask(given(), AskPrice("a1", "apple"), FROM_STOCK)


# --- through the log


def test_an_order_remembers_the_prices_at_the_times_of_adding() -> None:
    world = World(ONE_EACH)
    world.carry_out("stock", "0", CreateItem("0", 5))
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    world.carry_out("order", "o1", AddItem("o1", "0", 1))
    world.carry_out("stock", "i", InitItems(1, 10, 9))

    assert world.carry_out("order", "o1", AddItem("o1", "0", 2)) == Done()

    assert world.entity(Order, "order", "o1") == an_order(("0", 3), total_cost=5 + 2 * 9)
    assert world.open(Addition) == 0


def test_adding_an_unknown_item_is_refused_with_404() -> None:
    world = a_world()

    outcome = world.carry_out("order", "o1", AddItem("o1", "kiwi", 1))

    assert outcome.reason == Reason.NOT_FOUND
    assert world.entity(Order, "order", "o1") == an_order()


def test_batch_init_makes_every_order_once_over_all_partitions() -> None:
    world = World(TWO_EACH)

    outcome = world.carry_out("order", "i1", InitOrders(300, 20, 30, 5))

    assert outcome == Done("300")
    assert world.open(Order) == 300
    assert world.open(BatchInit) == 0
    assert all(world.entity(Order, "order", str(number)) is not None for number in range(300))
