"""Orders: what a user wants to buy, and whether it is paid.

Pure: replaying a partition's log from offset zero rebuilds its state byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import assert_never
from zlib import crc32

import msgspec

from common import batch_init
from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Arrival, Decision, Entity, Machine, Reply, Send, State, done, find, key, refused
from common.messages import (
    AMOUNT_MAX,
    Asker,
    AskPrice,
    ChargeRefused,
    Done,
    Message,
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
from order.checkout import (
    TOO_MANY,
    Checkout,
    Step,
    accept,
    acknowledge_undo,
    join,
    open_checkout,
    refuse,
    supersede,
)

SERVICE = "order"
LINES_MAX = 100


class Order(Entity, frozen=True):
    """One order.  `checkout_id` names its open checkout; `total_cost` has each item at the price when it was added."""

    user_id: str
    lines: tuple[tuple[str, int], ...] = ()
    total_cost: int = 0
    paid: bool = False
    checkout_id: str = ""


class Addition(Entity, frozen=True):
    """An addItem that waits for the price."""

    asker: Asker
    order_id: str
    item_id: str
    quantity: int


class CreateOrder(Message, frozen=True):
    """Start an order without items."""

    order_id: str
    user_id: str


class AddItem(Message, frozen=True):
    """Add so many of an item, at the price that stock tells."""

    order_id: str
    item_id: str
    quantity: int


class CheckOut(Message, frozen=True):
    """Take the goods and the money, or neither."""

    order_id: str


class InitOrders(Message, frozen=True):
    """Replace the orders "0".."count-1" by orders of two random items for a random user."""

    count: int
    items: int
    users: int
    price: int


Command = CreateOrder | AddItem | CheckOut | InitOrders
StockAnswer = StockReserved | StockRefused | StockReleased
PaymentAnswer = UserCharged | ChargeRefused | UserRefunded
OrderMessage = Command | PriceTold | PriceRefused | StockAnswer | PaymentAnswer | FillChunk | ChunkFilled
OrderEntity = Order | Addition | Checkout | BatchInit

NO_ORDER = Refused(Reason.NOT_FOUND, "there is no such order: create one with POST /orders/create/{user_id}")
NO_ITEM = Refused(Reason.NOT_FOUND, "there is no such item: create it with POST /stock/item/create/{price}")
PAID = Refused(Reason.CONFLICT, "the order is paid: create another one")
CHECKING_OUT = Refused(Reason.CONFLICT, "the order is being checked out: add to another one, or wait for the outcome")
TOO_LONG = Refused(Reason.CONFLICT, f"an order may not have more than {LINES_MAX} different items")
TOO_MUCH = Refused(Reason.CONFLICT, f"an order's total and its quantities may not pass {AMOUNT_MAX}")


def keys(message: OrderMessage, arrival: Arrival) -> Iterable[str]:
    """Return the entities that deciding `message` needs for sure, to read them in one go."""
    match message:
        case CreateOrder() | AddItem() | CheckOut():
            return [key(Order, message.order_id)]
        case PriceTold() | PriceRefused():
            return [key(Addition, message.addition_id)]
        case StockReserved() | StockRefused() | StockReleased() | UserCharged() | ChargeRefused() | UserRefunded():
            return [key(Checkout, message.checkout_id)]
        case FillChunk():
            return [key(Order, order_id) for order_id in batch_init.numbers_here(SERVICE, message, arrival)]
        case ChunkFilled():
            return [key(BatchInit, message.init_id)]
        case InitOrders():
            return []
        case _:
            assert_never(message)


def decide(state: State, message: OrderMessage, arrival: Arrival) -> Decision:
    """Answer `message`, whatever state the orders are in."""
    match message:
        case CreateOrder():
            return create(find(state, Order, message.order_id), message)
        case AddItem():
            return add_item(find(state, Order, message.order_id), message, arrival)
        case PriceTold():
            return add_line(state, message)
        case PriceRefused():
            return give_up_adding(state, message)
        case CheckOut():
            return check_out(state, message, arrival)
        case StockReserved() | UserCharged():
            return continue_checkout(state, accept(_checkout(state, message.checkout_id), arrival))
        case StockRefused() | ChargeRefused():
            return continue_checkout(state, refuse(_checkout(state, message.checkout_id), message.refusal, arrival))
        case StockReleased() | UserRefunded():
            return continue_checkout(state, acknowledge_undo(_checkout(state, message.checkout_id), arrival))
        case InitOrders():
            return init_orders(message, arrival)
        case FillChunk():
            return fill(state, message, arrival)
        case ChunkFilled():
            return batch_init.advance(state, message, SERVICE, arrival)
        case _:
            assert_never(message)


def excuse(_message: OrderMessage) -> tuple[Message, ...]:
    """Order asks and others answer: nobody but a client waits for it."""
    return ()


def create(order: Order | None, command: CreateOrder) -> Decision:
    """Create once: an id that exists already is told again and nothing changes."""
    if order is not None:
        return done({}, command.order_id)
    return done({key(Order, command.order_id): Order(command.user_id)}, command.order_id)


def add_item(order: Order | None, command: AddItem, arrival: Arrival) -> Decision:
    """Ask stock for the price; the line is added when the answer comes."""
    refusal = _closed(order)
    if refusal is not None:
        return refused(refusal)
    assert arrival.asker is not None
    addition = Addition(arrival.asker, command.order_id, command.item_id, command.quantity)
    stock = partition_of("stock", command.item_id, arrival.topology)
    ask = Send(stock, AskPrice(arrival.id, command.item_id))
    return Decision({key(Addition, arrival.id): addition}, (ask,))


def add_line(state: State, message: PriceTold) -> Decision:
    """Add the line at the price told, unless the order has been closed meanwhile or would grow too large."""
    addition = _addition(state, message.addition_id)
    gone = {key(Addition, message.addition_id): None}
    order = find(state, Order, addition.order_id)
    refusal = NO_ITEM if message.price is None else _closed(order)
    if refusal is not None:
        return Decision(gone, (Reply(addition.asker, refusal),))
    assert order is not None
    assert message.price is not None
    longer = _with_line(order, addition.item_id, addition.quantity, message.price)
    if isinstance(longer, Refused):
        return Decision(gone, (Reply(addition.asker, longer),))
    return Decision({**gone, key(Order, addition.order_id): longer}, (Reply(addition.asker, Done()),))


def give_up_adding(state: State, message: PriceRefused) -> Decision:
    """Pass on why there is no price."""
    addition = _addition(state, message.addition_id)
    return Decision({key(Addition, message.addition_id): None}, (Reply(addition.asker, message.refusal),))


def check_out(state: State, command: CheckOut, arrival: Arrival) -> Decision:
    """Open a checkout, join the open one, or say that the order is paid."""
    order = find(state, Order, command.order_id)
    if order is None:
        return refused(NO_ORDER)
    if order.paid:
        return done({}, command.order_id)
    if order.checkout_id:
        return join_checkout(_checkout(state, order.checkout_id), arrival)
    step = open_checkout(command.order_id, order.user_id, order.total_cost, order.lines, arrival)
    being_checked_out = msgspec.structs.replace(order, checkout_id=arrival.id)
    changes = {key(Order, command.order_id): being_checked_out, key(Checkout, arrival.id): step.checkout}
    return Decision(changes, step.messages)


def join_checkout(checkout: Checkout, arrival: Arrival) -> Decision:
    """Wait for the outcome of the checkout that is open."""
    assert arrival.asker is not None
    joined = join(checkout, arrival.asker)
    return refused(TOO_MANY) if joined is None else Decision({key(Checkout, checkout.id): joined})


def continue_checkout(state: State, step: Step) -> Decision:
    """Keep the checkout, or end it and let its order remember the outcome."""
    checkout = step.checkout
    if step.outcome is None:
        return Decision({key(Checkout, checkout.id): checkout}, step.messages)
    changes: dict[str, Entity | None] = {key(Checkout, checkout.id): None}
    order = find(state, Order, checkout.order_id)
    if order is not None and order.checkout_id == checkout.id:
        paid = isinstance(step.outcome, Done)
        changes[key(Order, checkout.order_id)] = msgspec.structs.replace(order, paid=paid, checkout_id="")
    return Decision(changes, step.messages)


def init_orders(command: InitOrders, arrival: Arrival) -> Decision:
    """Start the batch initialisation; its random choices derive from the request id."""
    assert arrival.asker is not None
    if 2 * command.price > AMOUNT_MAX:
        return refused(TOO_MUCH)
    seed = crc32(arrival.asker.request_id.encode())
    parameters = (command.items, command.users, command.price, seed)
    return batch_init.start(SERVICE, command.count, parameters, arrival)


def fill(state: State, chunk: FillChunk, arrival: Arrival) -> Decision:
    """Replace the orders of a chunk; an open checkout of one that is replaced undoes itself."""
    changes: dict[str, Entity | None] = {}
    for order_id in batch_init.numbers_here(SERVICE, chunk, arrival):
        replaced = find(state, Order, order_id)
        if replaced is not None and replaced.checkout_id:
            checkout = _checkout(state, replaced.checkout_id)
            changes[key(Checkout, checkout.id)] = supersede(checkout)
        changes[key(Order, order_id)] = random_order(order_id, chunk.parameters)
    return Decision(changes, (ChunkFilled(chunk.init_id, chunk.stop),))


def random_order(order_id: str, parameters: tuple[int, ...]) -> Order:
    """Return an order of two different items (where there are two), the same one for the same parameters."""
    items, users, price, seed = parameters
    digest = hashlib.blake2b(f"{seed}/{order_id}".encode(), digest_size=24).digest()
    first, step, user = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8, 16))
    first %= items
    second = (first + 1 + step % max(items - 1, 1)) % items
    lines = ((str(first), 2),) if first == second else ((str(first), 1), (str(second), 1))
    return Order(str(user % users), lines, 2 * price)


def _checkout(state: State, checkout_id: str) -> Checkout:
    checkout = find(state, Checkout, checkout_id)
    assert checkout is not None, f"an answer to checkout {checkout_id}, which is not open"
    return checkout


def _addition(state: State, addition_id: str) -> Addition:
    addition = find(state, Addition, addition_id)
    assert addition is not None, f"a price for {addition_id}, which nobody waits for"
    return addition


def _closed(order: Order | None) -> Refused | None:
    if order is None:
        return NO_ORDER
    if order.paid:
        return PAID
    return CHECKING_OUT if order.checkout_id else None


def _with_line(order: Order, item_id: str, quantity: int, price: int) -> Order | Refused:
    lines = dict(order.lines)
    lines[item_id] = lines.get(item_id, 0) + quantity
    total_cost = order.total_cost + quantity * price
    if len(lines) > LINES_MAX:
        return TOO_LONG
    if total_cost > AMOUNT_MAX or lines[item_id] > AMOUNT_MAX:
        return TOO_MUCH
    return msgspec.structs.replace(order, lines=tuple(lines.items()), total_cost=total_cost)


MACHINE = Machine(SERVICE, OrderMessage, OrderEntity, keys, decide, excuse)
