"""Order's HTTP: parse, build a command, answer with its outcome."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from common.http import INIT_MAX, ask, entity_id, find, json, new_id, number, text
from common.openapi import answers
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders, Order

routes = Blueprint("orders", __name__)


class OrderCreated(msgspec.Struct):
    """The new order."""

    order_id: str


class OrderFound(msgspec.Struct):
    """An order; `items` are pairs of item id and quantity."""

    order_id: str
    paid: bool
    items: tuple[tuple[str, int], ...]
    user_id: str
    total_cost: int


class Initialised(msgspec.Struct):
    """What was made."""

    msg: str


@routes.post("/create/<user_id>")
@answers(OrderCreated)
def create_order(user_id: str) -> Response:
    """Start an order without items."""
    order_id = new_id()
    ask(order_id, CreateOrder(order_id, entity_id(user_id)))
    return json(OrderCreated(order_id))


@routes.get("/find/<order_id>")
@answers(OrderFound, 404)
def find_order(order_id: str) -> Response:
    """Show an order."""
    order = find(Order, order_id, "order")
    return json(OrderFound(order_id, order.paid, order.lines, order.user_id, order.total_cost))


@routes.post("/addItem/<order_id>/<item_id>/<quantity>")
@answers(None, 404, 409)
def add_item(order_id: str, item_id: str, quantity: str) -> Response:
    """Add so many of an item."""
    added = AddItem(entity_id(order_id), entity_id(item_id), number(quantity, "quantity", least=1))
    ask(order_id, added)
    return text(f"Item: {item_id} added to: {order_id}")


@routes.post("/checkout/<order_id>")
@answers(None, 402, 404, 409)
def checkout(order_id: str) -> Response:
    """Take the goods and the money, or neither."""
    ask(order_id, CheckOut(entity_id(order_id)))
    return text("Checkout successful")


@routes.post("/batch_init/<n>/<n_items>/<n_users>/<item_price>")
@answers(Initialised, 409)
def init_orders(n: str, n_items: str, n_users: str, item_price: str) -> Response:
    """Replace the orders "0".."n-1"."""
    count = number(n, "n", least=1, most=INIT_MAX)
    items, users = number(n_items, "n_items", least=1), number(n_users, "n_users", least=1)
    ask(new_id(), InitOrders(count, items, users, number(item_price, "item_price")), is_batch_init=True)
    return json(Initialised(f"{count} orders initialised"))
