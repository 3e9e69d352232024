"""The naive version: three services that call each other over HTTP and overwrite values in Redis.

It is what one writes first, and the bench's yardstick.  Nothing protects it: two requests that read the same item
both write what they computed, and a crash between two calls leaves one of them done.
"""
# ruff: noqa: D103 -- each route says what it serves

import os
import random
import uuid
from typing import Any

import msgspec
import redis
import requests
from flask import Flask, Response, abort
from requests.adapters import HTTPAdapter
from werkzeug.exceptions import HTTPException

Entity = dict[str, Any]
database = redis.Redis.from_url(os.environ["REDIS_URL"])
gateway = requests.Session()
gateway.mount("http://", HTTPAdapter(pool_maxsize=160))  # a connection for each of gunicorn's threads
stock, payment, order = Flask("stock"), Flask("payment"), Flask("order")
for service in (stock, payment, order):
    service.get("/health/ready")(lambda: "ready")


def read(noun: str, key: str) -> Entity:
    stored = database.get(key)
    return msgspec.msgpack.decode(stored) if stored else abort(404, f"{noun} {key} not found")


def write(key: str, entity: Entity) -> None:
    database.set(key, msgspec.msgpack.encode(entity))


def create(noun: str, entity: Entity) -> dict[str, str]:
    key = str(uuid.uuid4())
    write(key, entity)
    return {f"{noun}_id": key}


def write_numbered(entities: list[Entity]) -> dict[str, str]:
    database.mset({str(number): msgspec.msgpack.encode(entity) for number, entity in enumerate(entities)})
    return {"msg": f"{len(entities)} written"}


def call(method: str, path: str) -> requests.Response:
    answer = gateway.request(method, os.environ["GATEWAY_URL"] + path, timeout=20)
    return answer if answer.ok else abort(Response(answer.text, answer.status_code))


@stock.post("/item/create/<int:price>")
def create_item(price: int) -> dict[str, str]:
    return create("item", {"stock": 0, "price": price})


@stock.post("/batch_init/<int:n>/<int:starting_stock>/<int:price>")
def init_items(n: int, starting_stock: int, price: int) -> dict[str, str]:
    return write_numbered([{"stock": starting_stock, "price": price}] * n)


@stock.get("/find/<item_id>")
def find_item(item_id: str) -> Entity:
    return read("item", item_id)


@stock.post("/add/<item_id>/<int:amount>", defaults={"sign": 1})
@stock.post("/subtract/<item_id>/<int:amount>", defaults={"sign": -1})
def change_stock(item_id: str, amount: int, sign: int) -> str:
    item = read("item", item_id)
    item["stock"] += sign * amount
    if item["stock"] < 0:
        abort(409, f"Item {item_id} is out of stock")
    write(item_id, item)
    return str(item["stock"])


@payment.post("/create_user")
def create_user() -> dict[str, str]:
    return create("user", {"credit": 0})


@payment.post("/batch_init/<int:n>/<int:starting_money>")
def init_users(n: int, starting_money: int) -> dict[str, str]:
    return write_numbered([{"credit": starting_money}] * n)


@payment.get("/find_user/<user_id>")
def find_user(user_id: str) -> Entity:
    return {"user_id": user_id} | read("user", user_id)


@payment.post("/add_funds/<user_id>/<int:amount>", defaults={"sign": 1})
@payment.post("/pay/<user_id>/<int:amount>", defaults={"sign": -1})
def change_credit(user_id: str, amount: int, sign: int) -> str:
    user = read("user", user_id)
    user["credit"] += sign * amount
    if user["credit"] < 0:
        abort(Response(f"User {user_id} has not enough credit", 402))
    write(user_id, user)
    return str(user["credit"])


def unpaid(user_id: str, lines: list[tuple[str, int]], total_cost: int) -> Entity:
    return {"paid": False, "items": lines, "user_id": user_id, "total_cost": total_cost}


@order.post("/create/<user_id>")
def create_order(user_id: str) -> dict[str, str]:
    return create("order", unpaid(user_id, [], 0))


@order.post("/batch_init/<int:n>/<int:n_items>/<int:n_users>/<int:price>")
def init_orders(n: int, n_items: int, n_users: int, price: int) -> dict[str, str]:
    lines = [[(str(random.randrange(n_items)), 1) for _ in range(2)] for _ in range(n)]
    return write_numbered([unpaid(str(random.randrange(n_users)), pair, 2 * price) for pair in lines])


@order.get("/find/<order_id>")
def find_order(order_id: str) -> Entity:
    return {"order_id": order_id} | read("order", order_id)


@order.post("/addItem/<order_id>/<item_id>/<int:quantity>")
def add_item(order_id: str, item_id: str, quantity: int) -> str:
    changed = read("order", order_id)
    changed["total_cost"] += quantity * call("GET", f"/stock/find/{item_id}").json()["price"]
    changed["items"].append((item_id, quantity))
    write(order_id, changed)
    return str(changed["total_cost"])


@order.post("/checkout/<order_id>")
def checkout(order_id: str) -> str:
    wanted, undo = read("order", order_id), []
    try:
        for item_id, quantity in wanted["items"]:
            call("POST", f"/stock/subtract/{item_id}/{quantity}")
            undo.append(f"/stock/add/{item_id}/{quantity}")
        call("POST", f"/payment/pay/{wanted['user_id']}/{wanted['total_cost']}")
    except HTTPException:
        for path in undo:
            call("POST", path)
        raise
    write(order_id, wanted | {"paid": True})
    return "paid"
