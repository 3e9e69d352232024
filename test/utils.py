"""The calls of the HTTP contract, for tests: `import utils as tu`.

create_* and find_* return the JSON as a dict; what adds, subtracts or pays returns the status code; checkout_order
returns the response.  The gateway is GATEWAY_URL where that is set (`minikube ip` will do), else what urls.json
says.
"""

import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

# Longer than a service's patience (20 s), and than the gateway's with a service (30 s).
TIMEOUT_S = 60


def base_url(key: str) -> str:
    """Return where the service of a key of urls.json is."""
    urls: dict[str, str] = json.loads(Path(__file__).with_name("urls.json").read_text())
    url = os.environ.get("GATEWAY_URL", urls[key]).rstrip("/")
    return url if "://" in url else f"http://{url}"


ORDER_URL = base_url("ORDER_URL")
PAYMENT_URL = base_url("PAYMENT_URL")
STOCK_URL = base_url("STOCK_URL")


def post(url: str) -> requests.Response:
    """Post without a body."""
    return requests.post(url, timeout=TIMEOUT_S)


def get(url: str) -> requests.Response:
    """Get, whatever the status."""
    return requests.get(url, timeout=TIMEOUT_S)


# Stock


def create_item(price: int) -> dict[str, Any]:
    """Return {"item_id"} of a new item without stock."""
    return dict(post(f"{STOCK_URL}/stock/item/create/{price}").json())


def find_item(item_id: str) -> dict[str, Any]:
    """Return {"stock", "price"}."""
    return dict(get(f"{STOCK_URL}/stock/find/{item_id}").json())


def add_stock(item_id: str, amount: int) -> int:
    """Return the status code."""
    return post(f"{STOCK_URL}/stock/add/{item_id}/{amount}").status_code


def subtract_stock(item_id: str, amount: int) -> int:
    """Return the status code."""
    return post(f"{STOCK_URL}/stock/subtract/{item_id}/{amount}").status_code


# Payment


def create_user() -> dict[str, Any]:
    """Return {"user_id"} of a new user without credit."""
    return dict(post(f"{PAYMENT_URL}/payment/create_user").json())


def find_user(user_id: str) -> dict[str, Any]:
    """Return {"user_id", "credit"}."""
    return dict(get(f"{PAYMENT_URL}/payment/find_user/{user_id}").json())


def add_credit_to_user(user_id: str, amount: int) -> int:
    """Return the status code."""
    return post(f"{PAYMENT_URL}/payment/add_funds/{user_id}/{amount}").status_code


def payment_pay(user_id: str, amount: int) -> int:
    """Return the status code."""
    return post(f"{PAYMENT_URL}/payment/pay/{user_id}/{amount}").status_code


# Order


def create_order(user_id: str) -> dict[str, Any]:
    """Return {"order_id"} of a new order without items."""
    return dict(post(f"{ORDER_URL}/orders/create/{user_id}").json())


def find_order(order_id: str) -> dict[str, Any]:
    """Return {"order_id", "paid", "items", "user_id", "total_cost"}."""
    return dict(get(f"{ORDER_URL}/orders/find/{order_id}").json())


def add_item_to_order(order_id: str, item_id: str, quantity: int) -> int:
    """Return the status code."""
    return post(f"{ORDER_URL}/orders/addItem/{order_id}/{item_id}/{quantity}").status_code


def checkout_order(order_id: str) -> requests.Response:
    """Return the response."""
    return post(f"{ORDER_URL}/orders/checkout/{order_id}")


# Answers


def status_code_is_success(status_code: int) -> bool:
    """Tell whether it is done."""
    return HTTPStatus.OK <= status_code < HTTPStatus.MULTIPLE_CHOICES


def status_code_is_failure(status_code: int) -> bool:
    """Tell whether the business said no: nothing has changed."""
    return HTTPStatus.BAD_REQUEST <= status_code < HTTPStatus.INTERNAL_SERVER_ERROR
