"""Users, items and orders to test with, and what the system says of them."""

from collections.abc import Iterable
from typing import Any

from e2e.client import Answer, get, post

AMOUNT_MAX = 10**15 - 1


def a_user(credit: int = 0) -> str:
    """Return the id of a new user."""
    user_id: str = done(post("/payment/create_user")).json["user_id"]
    if credit:
        done(post(f"/payment/add_funds/{user_id}/{credit}"))
    return user_id


def an_item(stock: int = 0, price: int = 1) -> str:
    """Return the id of a new item."""
    item_id: str = done(post(f"/stock/item/create/{price}")).json["item_id"]
    if stock:
        done(post(f"/stock/add/{item_id}/{stock}"))
    return item_id


def an_order(user_id: str, lines: Iterable[tuple[str, int]] = ()) -> str:
    """Return the id of a new order."""
    order_id: str = done(post(f"/orders/create/{user_id}")).json["order_id"]
    for item_id, quantity in lines:
        done(post(f"/orders/addItem/{order_id}/{item_id}/{quantity}"))
    return order_id


def credit(user_id: str) -> int:
    """Return what a user has."""
    found: int = done(get(f"/payment/find_user/{user_id}")).json["credit"]
    return found


def stock(item_id: str) -> int:
    """Return how much there is of an item."""
    found: int = done(get(f"/stock/find/{item_id}")).json["stock"]
    return found


def order(order_id: str) -> dict[str, Any]:
    """Return an order, its lines in an order of ours."""
    found: dict[str, Any] = done(get(f"/orders/find/{order_id}")).json
    return found | {"items": sorted(found["items"])}


def done(answer: Answer) -> Answer:
    """Return the answer, which is a success."""
    assert answer.status == 200, (answer.status, answer.body)
    return answer


def assert_problem(answer: Answer, status: int, detail: str = "") -> None:
    """The answer is a refusal as RFC 9457 has it, for people, and shows nothing of the inside."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.content_type == "application/problem+json"
    problem = answer.json
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert detail in problem["detail"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
