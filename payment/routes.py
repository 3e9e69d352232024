"""Payment's HTTP: parse, build a command, answer with its outcome."""

from __future__ import annotations

from flask import Blueprint, Response

from common.http import INIT_MAX, ask, entity_id, find, json, new_id, number, text
from payment.domain import Account, AddFunds, CreateUser, InitUsers, Pay

routes = Blueprint("payment", __name__)


@routes.post("/create_user")
def create_user() -> Response:
    """Open an account."""
    user_id = new_id()
    ask(user_id, CreateUser(user_id))
    return json({"user_id": user_id})


@routes.get("/find_user/<user_id>")
def find_user(user_id: str) -> Response:
    """Show a user's credit."""
    account = find(Account, user_id, "user")
    return json({"user_id": user_id, "credit": account.credit})


@routes.post("/add_funds/<user_id>/<amount>")
def add_funds(user_id: str, amount: str) -> Response:
    """Add credit."""
    added = AddFunds(entity_id(user_id), number(amount, "amount", least=1))
    return text(f"User: {user_id} credit updated to: {ask(user_id, added).value}")


@routes.post("/pay/<user_id>/<amount>")
def pay(user_id: str, amount: str) -> Response:
    """Take credit, not by a checkout."""
    paid = Pay(entity_id(user_id), number(amount, "amount", least=1))
    return text(f"User: {user_id} credit updated to: {ask(user_id, paid).value}")


@routes.post("/batch_init/<n>/<starting_money>")
def init_users(n: str, starting_money: str) -> Response:
    """Replace the users "0".."n-1"."""
    count = number(n, "n", least=1, most=INIT_MAX)
    ask(new_id(), InitUsers(count, number(starting_money, "starting_money")), is_batch_init=True)
    return json({"msg": f"{count} users initialised"})
