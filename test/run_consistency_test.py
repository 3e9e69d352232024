"""A thousand users want one of a hundred pieces, all at once: `cd test && python run_consistency_test.py`.

Every answer is compared with its user and its order, one by one, because in sums two opposite mistakes cancel.
Exits 1 on any difference.
"""
# ruff: noqa: T201 -- a script prints its result

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

import utils as tu

STOCK = 100
USER_COUNT = 1_000
PRICE = 1
CLIENTS = 32
SHOWN_MAX = 20
NO_ANSWER = 0

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Buyer:
    """A user with credit for one piece, and an order of one piece."""

    user_id: str
    order_id: str


@dataclass(frozen=True)
class Purchase:
    """A buyer's checkout: the answer's status, 0 if there was none, and what is found afterwards."""

    buyer: Buyer
    status_code: int
    user: dict[str, Any]
    order: dict[str, Any]


def main() -> None:
    """Print what happened, and exit 1 if anything differs from what was answered."""
    differences = run()
    for difference in differences[:SHOWN_MAX]:
        print(f"  {difference}")
    print(f"{len(differences)} differences" + (f", the first {SHOWN_MAX} shown" * (len(differences) > SHOWN_MAX)))
    sys.exit(1 if differences else 0)


def run(user_count: int = USER_COUNT, stock: int = STOCK) -> list[str]:
    """Return every difference between answers, users, orders and the item; print a line for each step."""
    item_id = step(f"1 item with {stock} pieces at {PRICE}", lambda: create_item(stock))
    buyers = step(
        f"{user_count} users with credit {PRICE} and an order of 1 piece each",
        lambda: in_parallel(lambda _: create_buyer(item_id), range(user_count)),
    )
    statuses = step(f"{user_count} checkouts at once", lambda: checkout_at_once([buyer.order_id for buyer in buyers]))
    purchases = step(
        "every user and every order read", lambda: in_parallel(look_up, zip(buyers, statuses, strict=True))
    )
    item = tu.find_item(item_id)
    print(summary(purchases, item))
    return [
        *(difference for purchase in purchases for difference in compare(purchase, item_id)),
        *compare_totals(purchases, item, stock),
    ]


def step(title: str, work: Callable[[], Output]) -> Output:
    """Do `work`, and print how long it took."""
    start = time.monotonic()
    result = work()
    print(f"{title}: {time.monotonic() - start:.1f} s", flush=True)
    return result


def in_parallel(work: Callable[[Input], Output], inputs: Iterable[Input]) -> list[Output]:
    """Return the results of `work` on each input, in their order."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(work, inputs))


def create_item(stock: int) -> str:
    """Return the id of an item with `stock` pieces."""
    item_id = str(tu.create_item(PRICE)["item_id"])
    require(tu.add_stock(item_id, stock))
    return item_id


def create_buyer(item_id: str) -> Buyer:
    """Return a user who can pay for exactly one piece, with an order of it."""
    user_id = tu.create_user()["user_id"]
    require(tu.add_credit_to_user(user_id, PRICE))
    order_id = tu.create_order(user_id)["order_id"]
    require(tu.add_item_to_order(order_id, item_id, 1))
    return Buyer(user_id, order_id)


def require(status_code: int) -> None:
    """Raise unless a step of the preparation succeeded."""
    if not tu.status_code_is_success(status_code):
        raise SystemExit(f"the preparation failed with status {status_code}: nothing was tested")


def checkout_at_once(order_ids: Sequence[str]) -> list[int]:
    """Return the status of each checkout.  All are connected before the first is sent, and sent before one is read."""
    allow_open_files(len(order_ids) + 100)
    connections = [connect() for _ in order_ids]
    for connection, order_id in zip(connections, order_ids, strict=True):
        send(connection, order_id)
    return [receive(connection) for connection in connections]


def allow_open_files(count: int) -> None:
    """Raise this process' limit of open files where it is lower: many systems start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def connect() -> HTTPConnection:
    """Return a connection to the gateway."""
    url = urlsplit(tu.ORDER_URL)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.netloc, timeout=tu.TIMEOUT_S)
    connection.connect()
    return connection


def send(connection: HTTPConnection, order_id: str) -> None:
    """Ask for a checkout; what goes wrong shows when the answer is read."""
    try:
        connection.request("POST", f"{urlsplit(tu.ORDER_URL).path}/orders/checkout/{order_id}")
    except (OSError, HTTPException):
        connection.close()


def receive(connection: HTTPConnection) -> int:
    """Return the status of the answer, or NO_ANSWER."""
    try:
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException):
        return NO_ANSWER
    finally:
        connection.close()
    return response.status


def look_up(attempt: tuple[Buyer, int]) -> Purchase:
    """Return what the system says of a buyer now."""
    buyer, status_code = attempt
    return Purchase(buyer, status_code, tu.find_user(buyer.user_id), tu.find_order(buyer.order_id))


def compare(purchase: Purchase, item_id: str) -> list[str]:
    """Return how the answer, the user and the order of one buyer differ from what they have to be."""
    buyer, paid = purchase.buyer, should_be_paid(purchase)
    user = {"user_id": buyer.user_id, "credit": 0 if paid else PRICE}
    order = {
        "order_id": buyer.order_id,
        "paid": paid,
        "items": [[item_id, 1]],
        "user_id": buyer.user_id,
        "total_cost": PRICE,
    }
    wrong = [] if is_clear(purchase.status_code) else ["which is neither yes nor no"]
    wrong += unequal("user", purchase.user, user) + unequal("order", purchase.order, order)
    return [f"order {buyer.order_id}, answered {purchase.status_code or 'nothing'}: {what}" for what in wrong]


def should_be_paid(purchase: Purchase) -> bool:
    """Tell what the answer means for the order; after an unclear one the order itself says what the user must have."""
    if is_clear(purchase.status_code):
        return tu.status_code_is_success(purchase.status_code)
    return purchase.order.get("paid") is True


def is_clear(status_code: int) -> bool:
    """Tell whether the answer is a yes or a no."""
    return tu.status_code_is_success(status_code) or tu.status_code_is_failure(status_code)


def unequal(noun: str, found: object, expected: object) -> list[str]:
    """Return one sentence if the two differ."""
    return [] if found == expected else [f"the {noun} is {found}, not {expected}"]


def compare_totals(purchases: Sequence[Purchase], item: dict[str, Any], stock: int) -> list[str]:
    """Return what is wrong with the whole: too many or too few sold."""
    sellable = min(stock, len(purchases))
    sold = sum(tu.status_code_is_success(purchase.status_code) for purchase in purchases)
    paid = sum(purchase.order.get("paid") is True for purchase in purchases)
    return [
        *unequal("number of checkouts answered with yes", sold, sellable),
        *unequal("number of paid orders", paid, sellable),
        *unequal("item", item, {"stock": stock - sellable, "price": PRICE}),
    ]


def summary(purchases: Sequence[Purchase], item: dict[str, Any]) -> str:
    """Return the answers by status, and what is left."""
    counts = Counter(purchase.status_code for purchase in purchases)
    answers = ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(counts.items()))
    paid = sum(purchase.order.get("paid") is True for purchase in purchases)
    return f"answers: {answers}; paid orders: {paid}; stock left: {item.get('stock')}"


if __name__ == "__main__":
    main()
