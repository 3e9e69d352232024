"""Stock's HTTP: parse, build a command, answer with its outcome."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from common.http import INIT_MAX, ask, entity_id, find, json, new_id, number, text
from common.openapi import answers
from stock.domain import AddStock, CreateItem, InitItems, Item, SubtractStock

routes = Blueprint("stock", __name__)


class ItemCreated(msgspec.Struct):
    """The new item."""

    item_id: str


class ItemFound(msgspec.Struct):
    """What is free to sell, and for how much a piece."""

    stock: int
    price: int


class Initialised(msgspec.Struct):
    """What was made."""

    msg: str


@routes.post("/item/create/<price>")
@answers(ItemCreated)
def create_item(price: str) -> Response:
    """Put a new item on sale."""
    item_id = new_id()
    ask(item_id, CreateItem(item_id, number(price, "price")))
    return json(ItemCreated(item_id))


@routes.get("/find/<item_id>")
@answers(ItemFound, 404)
def find_item(item_id: str) -> Response:
    """Show an item's stock and price."""
    item = find(Item, item_id, "item")
    return json(ItemFound(item.available, item.price))


@routes.post("/add/<item_id>/<amount>")
@answers(None, 404, 409)
def add_stock(item_id: str, amount: str) -> Response:
    """Add pieces."""
    added = AddStock(entity_id(item_id), number(amount, "amount", least=1))
    return text(f"Item: {item_id} stock updated to: {ask(item_id, added).value}")


@routes.post("/subtract/<item_id>/<amount>")
@answers(None, 404, 409)
def subtract_stock(item_id: str, amount: str) -> Response:
    """Subtract pieces."""
    subtracted = SubtractStock(entity_id(item_id), number(amount, "amount", least=1))
    return text(f"Item: {item_id} stock updated to: {ask(item_id, subtracted).value}")


@routes.post("/batch_init/<n>/<starting_stock>/<item_price>")
@answers(Initialised)
def init_items(n: str, starting_stock: str, item_price: str) -> Response:
    """Replace the items "0".."n-1"."""
    count = number(n, "n", least=1, most=INIT_MAX)
    init = InitItems(count, number(starting_stock, "starting_stock"), number(item_price, "item_price"))
    ask(new_id(), init, is_batch_init=True)
    return json(Initialised(f"{count} items initialised"))
