"""Stock: how many of each item are free to sell.

Pure: replaying a partition's log from offset zero rebuilds its state byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from common import batch_init
from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Arrival, Decision, Entity, Machine, State, done, find, key, refused
from common.messages import (
    AMOUNT_MAX,
    AskPrice,
    Message,
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
)

SERVICE = "stock"


class Item(Entity, frozen=True):
    """One item.  `available` never counts what a checkout has reserved.

    `held` is what was reserved and neither released nor settled: at least all that may come back.
    """

    price: int
    available: int = 0
    held: int = 0


class CreateItem(Message, frozen=True):
    """Put a new item on sale, with no stock."""

    item_id: str
    price: int


class AddStock(Message, frozen=True):
    """More pieces have come in."""

    item_id: str
    amount: int


class SubtractStock(Message, frozen=True):
    """Pieces have gone out, not by a checkout."""

    item_id: str
    amount: int


class InitItems(Message, frozen=True):
    """Replace the items "0".."count-1"."""

    count: int
    starting_stock: int
    price: int


Command = CreateItem | AddStock | SubtractStock | InitItems
StockMessage = Command | AskPrice | ReserveStock | SettleStock | ReleaseStock | FillChunk | ChunkFilled
StockEntity = Item | BatchInit

NO_ITEM = Refused(Reason.NOT_FOUND, "there is no such item: create it with POST /stock/item/create/{price}")
SHORTAGE = Refused(Reason.CONFLICT, "out of stock")
FAILED = Refused(Reason.INTERNAL, "a bug of ours in stock: it is on record there as a dead letter")
TOO_MUCH = Refused(Reason.CONFLICT, f"an item's stock, holds included, may not pass {AMOUNT_MAX}")


def keys(message: StockMessage, arrival: Arrival) -> Iterable[str]:
    """Return the entities that deciding `message` needs, to read them in one go."""
    match message:
        case CreateItem() | AddStock() | SubtractStock() | AskPrice():
            return [key(Item, message.item_id)]
        case ReserveStock() | SettleStock() | ReleaseStock():
            return [key(Item, item_id) for item_id, _ in message.lines]
        case FillChunk():
            return [key(Item, item_id) for item_id in batch_init.numbers_here(SERVICE, message, arrival)]
        case ChunkFilled():
            return [key(BatchInit, message.init_id)]
        case InitItems():
            return []
        case _:
            assert_never(message)


def decide(state: State, message: StockMessage, arrival: Arrival) -> Decision:
    """Answer `message`, whatever state the items are in."""
    match message:
        case CreateItem():
            return create(find(state, Item, message.item_id), message)
        case AddStock():
            return add(find(state, Item, message.item_id), message)
        case SubtractStock():
            return subtract(find(state, Item, message.item_id), message)
        case AskPrice():
            return tell_price(find(state, Item, message.item_id), message)
        case ReserveStock():
            return reserve(state, message)
        case SettleStock():
            return settle(state, message)
        case ReleaseStock():
            return release(state, message)
        case InitItems():
            return batch_init.start(SERVICE, message.count, (message.starting_stock, message.price), arrival)
        case FillChunk():
            return fill(state, message, arrival)
        case ChunkFilled():
            return batch_init.advance(state, message, SERVICE, arrival)
        case _:
            assert_never(message)


def excuse(message: StockMessage) -> tuple[Message, ...]:
    """Return the answer to a message that could not be decided because of a bug of ours."""
    match message:
        case ReserveStock():
            return (StockRefused(message.checkout_id, FAILED),)
        case AskPrice():
            return (PriceRefused(message.addition_id, FAILED),)
        case _:
            return ()


def create(item: Item | None, command: CreateItem) -> Decision:
    """Create once: an id that exists already is told again and nothing changes."""
    if item is not None:
        return done({}, command.item_id)
    return done({key(Item, command.item_id): Item(command.price)}, command.item_id)


def add(item: Item | None, command: AddStock) -> Decision:
    """Add, unless the stock would pass what can be counted."""
    if item is None:
        return refused(NO_ITEM)
    if item.available + item.held + command.amount > AMOUNT_MAX:
        return refused(TOO_MUCH)
    return _change(command.item_id, item, command.amount)


def subtract(item: Item | None, command: SubtractStock) -> Decision:
    """Subtract, unless fewer are available."""
    if item is None:
        return refused(NO_ITEM)
    if item.available < command.amount:
        return refused(SHORTAGE)
    return _change(command.item_id, item, -command.amount)


def tell_price(item: Item | None, message: AskPrice) -> Decision:
    """Answer with the price of this moment."""
    return Decision({}, (PriceTold(message.addition_id, item.price if item else None),))


def reserve(state: State, message: ReserveStock) -> Decision:
    """Hold all lines or none."""
    held = {}
    for item_id, quantity in message.lines:
        item = find(state, Item, item_id)
        if item is None or item.available < quantity:
            refusal = SHORTAGE if item else NO_ITEM
            return Decision({}, (StockRefused(message.checkout_id, refusal),))
        held[key(Item, item_id)] = Item(item.price, item.available - quantity, item.held + quantity)
    return Decision(held, (StockReserved(message.checkout_id),))


def settle(state: State, message: SettleStock) -> Decision:
    """What a paid checkout held is sold."""
    return Decision({key(Item, item_id): _unheld(state, item_id, quantity, 0) for item_id, quantity in message.lines})


def release(state: State, message: ReleaseStock) -> Decision:
    """What a failed checkout held is available again."""
    free = {key(Item, item_id): _unheld(state, item_id, quantity, quantity) for item_id, quantity in message.lines}
    return Decision(free, (StockReleased(message.checkout_id),))


def fill(state: State, chunk: FillChunk, arrival: Arrival) -> Decision:
    """Replace the items of a chunk; what is held stays held, within the limit of what can be counted."""
    stock, price = chunk.parameters
    items = {}
    for item_id in batch_init.numbers_here(SERVICE, chunk, arrival):
        item = find(state, Item, item_id)
        held = item.held if item else 0
        items[key(Item, item_id)] = Item(price, min(stock, AMOUNT_MAX - held), held)
    return Decision(items, (ChunkFilled(chunk.init_id, chunk.stop),))


def _change(item_id: str, item: Item, amount: int) -> Decision:
    changed = Item(item.price, item.available + amount, item.held)
    return done({key(Item, item_id): changed}, str(changed.available))


def _unheld(state: State, item_id: str, quantity: int, freed: int) -> Item:
    item = find(state, Item, item_id)
    assert item is not None, "only what was reserved is settled or released"
    assert item.held >= quantity, "only what was reserved is settled or released"
    return Item(item.price, item.available + freed, item.held - quantity)


MACHINE = Machine(SERVICE, StockMessage, StockEntity, keys, decide, excuse)
