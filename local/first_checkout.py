"""The first checkout: proof, by HTTP and through the gateway, that the whole system works."""

import time

import requests

from local import gateway
from local.profiles import Profile

RETRY_AFTER_S = 0.1
TIMEOUT_S = 90.0


def wait_for_checkout(profile: Profile) -> str:
    """Repeat until a whole checkout succeeds; return the id of its order."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return check_out(profile)
        except (requests.RequestException, KeyError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"No checkout within {TIMEOUT_S:.0f} s: {error}") from error
        time.sleep(RETRY_AFTER_S)


def check_out(profile: Profile) -> str:
    """Check out one new order of one new item by one new user; return the order's id."""
    order, stock, payment = (gateway.url(profile, service) for service in ("order", "stock", "payment"))
    with requests.Session() as session:
        user_id = _post(session, f"{payment}/create_user").json()["user_id"]
        item_id = _post(session, f"{stock}/item/create/1").json()["item_id"]
        order_id: str = _post(session, f"{order}/create/{user_id}").json()["order_id"]
        _post(session, f"{payment}/add_funds/{user_id}/1")
        _post(session, f"{stock}/add/{item_id}/1")
        _post(session, f"{order}/addItem/{order_id}/{item_id}/1")
        _post(session, f"{order}/checkout/{order_id}")
    return order_id


def _post(session: requests.Session, url: str) -> requests.Response:
    response = session.post(url, timeout=30)
    response.raise_for_status()
    return response
