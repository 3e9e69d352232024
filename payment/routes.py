"""Payment's HTTP: parse, build a command, answer with its outcome."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from common.http import INIT_MAX, ask, entity_id, find, json, new_id, number, text
from common.openapi import answers
from payment.domain import Account, AddFunds, CreateUser, InitUsers, Pay

routes = Blueprint("payment", __name__)


class UserCreated(msgspec.Struct):
    """The new user."""

    user_id: str


class UserFound(msgspec.Struct):
    """What the user can spend."""

    user_id: str
    credit: int


class Initialised(msgspec.Struct):
    """What was made."""

    msg: str


@routes.post("/create_user")
@answers(UserCreated)
def create_user() -> Response:
    """Open an account."""
    user_id = new_id()
    ask(user_id, CreateUser(user_id))
    return json(UserCreated(user_id))


@routes.get("/find_user/<user_id>")
@answers(UserFound, 404)
def find_user(user_id: str) -> Response:
    """Show a user's credit."""
    account = find(Account, user_id, "user")
    return json(UserFound(user_id, account.credit))


@routes.post("/add_funds/<user_id>/<amount>")
@answers(None, 404, 409)
def add_funds(user_id: str, amount: str) -> Response:
    """Add credit."""
    added = AddFunds(entity_id(user_id), number(amount, "amount", least=1))
    return text(f"User: {user_id} credit updated to: {ask(user_id, added).value}")


@routes.post("/pay/<user_id>/<amount>")
@answers(None, 402, 404)
def pay(user_id: str, amount: str) -> Response:
    """Take credit, not by a checkout."""
    paid = Pay(entity_id(user_id), number(amount, "amount", least=1))
    return text(f"User: {user_id} credit updated to: {ask(user_id, paid).value}")


@routes.post("/batch_init/<n>/<starting_money>")
@answers(Initialised)
def init_users(n: str, starting_money: str) -> Response:
    """Replace the users "0".."n-1"."""
    count = number(n, "n", least=1, most=INIT_MAX)
    ask(new_id(), InitUsers(count, number(starting_money, "starting_money")), is_batch_init=True)
    return json(Initialised(f"{count} users initialised"))
