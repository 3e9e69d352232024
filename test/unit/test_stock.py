"""Stock's rules, one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builders import TWO_EACH, after, an_arrival, asked, given, sent_by
from world import World, entities_of

from common.batch_init import CHUNK_ENTITIES, BatchInit, ChunkFilled, FillChunk
from common.decision import Decision, NotLoaded, Reply, Send
from common.fold import Memory
from common.messages import (
    AMOUNT_MAX,
    AskPrice,
    Done,
    Letter,
    PriceRefused,
    PriceTold,
    Reason,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleStock,
    StockRefused,
    StockReleased,
    StockReserved,
    partition_of,
)
from stock.domain import (
    MACHINE,
    NO_ITEM,
    SHORTAGE,
    TOO_MUCH,
    AddStock,
    CreateItem,
    InitItems,
    Item,
    StockMessage,
    SubtractStock,
    decide,
    excuse,
    keys,
)

COMMAND = asked("stock-0-9-0")
FROM_ORDER = sent_by("order-0", "stock-0-9-0")


def an_item(price: int = 5, available: int = 0, held: int = 0) -> Item:
    return Item(price, available, held)


def reserve(*lines: tuple[str, int]) -> ReserveStock:
    return ReserveStock("c1", lines)


# --- commands


def test_a_new_item_has_its_price_and_no_stock() -> None:
    decision = decide(given(), CreateItem("apple", 5), COMMAND)

    assert decision == Decision({"Item:apple": an_item(price=5)}, (Done("apple"),))


def test_creating_an_item_that_exists_tells_its_id_and_changes_nothing() -> None:
    decision = decide(given(apple=an_item(price=5, available=3)), CreateItem("apple", 9), COMMAND)

    assert decision == Decision({}, (Done("apple"),))


def test_adding_stock_tells_the_new_stock() -> None:
    decision = decide(given(apple=an_item(available=1, held=4)), AddStock("apple", 2), COMMAND)

    assert decision == Decision({"Item:apple": an_item(available=3, held=4)}, (Done("3"),))


def test_stock_and_holds_together_may_reach_the_limit() -> None:
    decision = decide(given(apple=an_item(held=10)), AddStock("apple", AMOUNT_MAX - 10), COMMAND)

    assert decision.state == {"Item:apple": an_item(available=AMOUNT_MAX - 10, held=10)}


def test_stock_and_holds_together_may_not_pass_the_limit() -> None:
    decision = decide(given(apple=an_item(held=10)), AddStock("apple", AMOUNT_MAX - 9), COMMAND)

    assert decision == Decision({}, (TOO_MUCH,))


def test_the_last_piece_can_be_subtracted() -> None:
    decision = decide(given(apple=an_item(available=2)), SubtractStock("apple", 2), COMMAND)

    assert decision == Decision({"Item:apple": an_item(available=0)}, (Done("0"),))


def test_subtracting_more_than_is_available_is_refused_and_changes_nothing() -> None:
    decision = decide(given(apple=an_item(available=1)), SubtractStock("apple", 2), COMMAND)

    assert decision == Decision({}, (SHORTAGE,))


def test_what_a_checkout_holds_cannot_be_subtracted() -> None:
    decision = decide(given(apple=an_item(available=0, held=5)), SubtractStock("apple", 1), COMMAND)

    assert decision == Decision({}, (SHORTAGE,))


@pytest.mark.parametrize("command", [AddStock("apple", 1), SubtractStock("apple", 1)])
def test_an_unknown_item_cannot_be_changed(command: StockMessage) -> None:
    assert decide(given(), command, COMMAND) == Decision({}, (NO_ITEM,))


def test_refusals_have_the_reasons_that_become_404_and_409() -> None:
    assert (NO_ITEM.reason, SHORTAGE.reason, TOO_MUCH.reason) == (Reason.NOT_FOUND, Reason.CONFLICT, Reason.CONFLICT)


# --- prices


def test_the_price_of_an_item_is_told() -> None:
    decision = decide(given(apple=an_item(price=5)), AskPrice("a1", "apple"), FROM_ORDER)

    assert decision == Decision({}, (PriceTold("a1", 5),))


def test_a_free_item_has_the_price_zero() -> None:
    decision = decide(given(apple=an_item(price=0)), AskPrice("a1", "apple"), FROM_ORDER)

    assert decision == Decision({}, (PriceTold("a1", 0),))


def test_an_unknown_item_has_no_price() -> None:
    assert decide(given(), AskPrice("a1", "apple"), FROM_ORDER) == Decision({}, (PriceTold("a1", None),))


# --- checkouts


def test_a_reservation_holds_all_its_lines() -> None:
    state = given(apple=an_item(available=3), pear=an_item(price=7, available=1, held=1))

    decision = decide(state, reserve(("apple", 2), ("pear", 1)), FROM_ORDER)

    assert decision.state == {"Item:apple": an_item(available=1, held=2), "Item:pear": an_item(price=7, held=2)}
    assert decision.messages == (StockReserved("c1"),)


def test_a_shortage_is_refused_and_changes_nothing() -> None:
    decision = decide(given(apple=an_item(available=1)), reserve(("apple", 2)), FROM_ORDER)

    assert decision == Decision({}, (StockRefused("c1", SHORTAGE),))


def test_a_shortage_of_the_last_line_holds_none_of_the_lines() -> None:
    state = given(apple=an_item(available=9), pear=an_item(available=0))

    decision = decide(state, reserve(("apple", 2), ("pear", 1)), FROM_ORDER)

    assert decision == Decision({}, (StockRefused("c1", SHORTAGE),))


def test_a_reservation_of_an_unknown_item_is_refused() -> None:
    decision = decide(given(apple=an_item(available=9)), reserve(("apple", 2), ("kiwi", 1)), FROM_ORDER)

    assert decision == Decision({}, (StockRefused("c1", NO_ITEM),))


def test_what_is_held_cannot_be_reserved_again() -> None:
    decision = decide(given(apple=an_item(available=0, held=2)), reserve(("apple", 1)), FROM_ORDER)

    assert decision == Decision({}, (StockRefused("c1", SHORTAGE),))


def test_what_is_settled_is_gone_and_nobody_is_told() -> None:
    decision = decide(given(apple=an_item(available=1, held=2)), SettleStock("c1", (("apple", 2),)), FROM_ORDER)

    assert decision == Decision({"Item:apple": an_item(available=1, held=0)})


def test_what_is_released_is_available_again() -> None:
    decision = decide(given(apple=an_item(available=1, held=3)), ReleaseStock("c1", (("apple", 2),)), FROM_ORDER)

    assert decision == Decision({"Item:apple": an_item(available=3, held=1)}, (StockReleased("c1"),))


@pytest.mark.parametrize("undo", [SettleStock("c1", (("apple", 2),)), ReleaseStock("c1", (("apple", 2),))])
@pytest.mark.parametrize("state", [given(), given(apple=an_item(available=9, held=1))])
def test_only_what_was_reserved_is_settled_or_released(undo: StockMessage, state: Memory) -> None:
    with pytest.raises(AssertionError, match="only what was reserved"):
        decide(state, undo, FROM_ORDER)


# --- batch_init


def test_batch_init_sends_every_partition_its_first_chunk() -> None:
    arrival = asked("stock-1-9-0", topology=TWO_EACH)

    decision = decide(given(), InitItems(10, 100, 5), arrival)

    chunk = FillChunk("stock-1-9-0", 0, 10, (100, 5))
    assert decision.messages == (Send("stock-0", chunk), Send("stock-1", chunk))
    assert decision.state == {
        "BatchInit:stock-1-9-0": BatchInit(arrival.asker, 10, (100, 5), ("stock-0", "stock-1")),
    }


def test_a_chunk_makes_the_items_that_live_here_and_no_others() -> None:
    decision = decide(given(), FillChunk("i1", 0, 50, (100, 5)), sent_by("stock-1", "stock-0-9-0", topology=TWO_EACH))

    here = [str(number) for number in range(50) if partition_of("stock", str(number), TWO_EACH) == "stock-0"]
    assert decision.state == {f"Item:{item_id}": an_item(price=5, available=100) for item_id in here}
    assert decision.messages == (ChunkFilled("i1", 50),)


def test_a_chunk_keeps_what_open_checkouts_hold() -> None:
    state = given(**{"0": an_item(price=1, available=9, held=3)})

    decision = decide(state, FillChunk("i1", 0, 1, (100, 5)), FROM_ORDER)

    assert decision.state == {"Item:0": an_item(price=5, available=100, held=3)}


def test_a_chunk_and_what_is_held_may_not_pass_the_limit_together() -> None:
    state = given(**{"0": an_item(held=3)})

    decision = decide(state, FillChunk("i1", 0, 1, (AMOUNT_MAX, 5)), FROM_ORDER)

    assert decision.state == {"Item:0": an_item(available=AMOUNT_MAX - 3, held=3)}


def test_a_large_batch_init_goes_chunk_by_chunk() -> None:
    arrival = asked("stock-0-9-0", topology=TWO_EACH)
    count = 2 * CHUNK_ENTITIES + 1
    first = decide(given(), InitItems(count, 100, 5), arrival)
    state = after(given(), first.state)

    second = decide(state, ChunkFilled(arrival.id, count - 1), sent_by("stock-1", "stock-0-10-0", topology=TWO_EACH))

    assert first.messages[0] == Send("stock-0", FillChunk(arrival.id, 0, count - 1, (100, 5)))
    assert second == Decision({}, (FillChunk(arrival.id, count - 1, count, (100, 5)),))


def test_batch_init_is_answered_when_every_partition_is_filled() -> None:
    arrival = asked("stock-0-9-0", topology=TWO_EACH)
    state = after(given(), decide(given(), InitItems(10, 100, 5), arrival).state)

    one = decide(state, ChunkFilled(arrival.id, 10), sent_by("stock-1", topology=TWO_EACH))
    state = after(state, one.state)
    other = decide(state, ChunkFilled(arrival.id, 10), sent_by("stock-0", topology=TWO_EACH))

    assert one.messages == ()
    assert other == Decision({f"BatchInit:{arrival.id}": None}, (Reply(arrival.asker, Done("10")),))


# --- all messages

LETTERS = [
    AskPrice("a1", "apple"),
    reserve(("apple", 1)),
    SettleStock("c1", (("apple", 1),)),
    ReleaseStock("c1", (("apple", 1),)),
    FillChunk("i1", 0, 1, (100, 5)),
]
COMMANDS = [CreateItem("kiwi", 5), AddStock("apple", 1), SubtractStock("apple", 1), InitItems(3, 100, 5)]


@pytest.mark.parametrize("message", [*LETTERS, *COMMANDS])
def test_every_key_that_a_message_needs_for_sure_is_named_beforehand(message: StockMessage) -> None:
    arrival = an_arrival("stock-0-9-0", "order-0", asked().asker)
    memory = Memory(dict.fromkeys(keys(message, arrival), an_item(available=9, held=9)))

    try:
        decide(memory, message, arrival)
    except NotLoaded as missing:
        pytest.fail(f"{missing.key} was not named")


@pytest.mark.parametrize("ask", [decide, lambda _, message, arrival: list(keys(message, arrival))])
def test_a_message_for_another_service_is_a_bug(ask: Callable[..., object]) -> None:
    with pytest.raises(AssertionError):
        ask(given(), PriceTold("a1", 5), FROM_ORDER)


def a_world() -> World:
    """A stock partition with an item, some of it held for checkout c1."""
    world = World({"order": 1, "stock": 1, "payment": 1}, [MACHINE])
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("stock", "apple", AddStock("apple", 10))
    world.log.append("stock-0", [Letter("order-0", 1, reserve(("apple", 5)))])
    world.run()
    return world


@pytest.mark.parametrize("command", COMMANDS)
def test_a_repeat_is_answered_alike_and_changes_nothing(command: StockMessage) -> None:
    world = a_world()
    first = world.carry_out("stock", "apple", command, "key/k1")
    before = entities_of(world.store)

    again = world.carry_out("stock", "apple", command, "key/k1")

    assert again == first
    assert entities_of(world.store) == before
    assert world.folded[-1].letters == {}


@pytest.mark.parametrize("letter", LETTERS)
def test_a_repeated_letter_is_dropped_and_changes_nothing(letter: StockMessage) -> None:
    world = a_world()
    world.log.append("stock-0", [Letter("order-0", 2, letter)])
    world.run()
    before = entities_of(world.store)

    world.log.append("stock-0", [Letter("order-0", 2, letter)])
    world.run()

    assert entities_of(world.store) == before
    assert world.folded[-1].repeats == 1
    assert world.folded[-1].letters == {}


def test_a_reservation_that_could_not_be_decided_is_refused_so_that_its_checkout_ends() -> None:
    (answer,) = excuse(reserve(("apple", 1)))

    assert isinstance(answer, StockRefused)
    assert answer.refusal == Refused(Reason.INTERNAL, answer.refusal.detail)


def test_a_price_that_could_not_be_told_is_refused_so_that_its_addition_ends() -> None:
    (answer,) = excuse(AskPrice("a1", "apple"))

    assert isinstance(answer, PriceRefused)
    assert answer == PriceRefused("a1", Refused(Reason.INTERNAL, answer.refusal.detail))


@pytest.mark.parametrize(
    "message", [SettleStock("c1", ()), ReleaseStock("c1", ()), AddStock("apple", 1), FillChunk("i1", 0, 9, (1, 2))]
)
def test_nothing_else_has_an_excuse(message: StockMessage) -> None:
    assert excuse(message) == ()
