"""A shop's day: people fill orders and check them out, some of them want what is sold out or cannot pay.

A refusal that the scenario provokes is a success.  Failures are: a 5xx, a broken connection, a yes where a no was due
(and the reverse), and a read that contradicts an answer.

    locust -f stress-test/locustfile.py --headless -u 200 -r 50 -t 60s --host http://localhost:8000
"""

import itertools
import json
import logging
import random
from argparse import ArgumentParser
from collections.abc import Collection, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import RescheduleTask
from locust.runners import WorkerRunner

URLS = Path(__file__).resolve().parents[1] / "test" / "urls.json"
# What init_orders.py makes, and what this file makes when there is nothing.
ORDER_COUNTS = (100_000, 5_000)
PLENTY = 1_000_000
INIT_TIMEOUT_S = 150
PRICE_MAX = 10

DONE = (HTTPStatus.OK,)
SOLD_OUT = (HTTPStatus.CONFLICT,)
NO_CREDIT = (HTTPStatus.PAYMENT_REQUIRED,)

batch_orders: Iterator[int] = iter(())


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    """Let the pause between two scenarios be set: by argument, by environment, and on the page."""
    for bound, default_s in (("min", 0.1), ("max", 0.5)):
        parser.add_argument(
            f"--wait-{bound}",
            type=float,
            default=default_s,
            env_var=f"LOCUST_WAIT_{bound.upper()}",
            help=f"{bound} pause of a user between two scenarios, in seconds",
        )


@events.test_start.add_listener
def prepare_batch_orders(environment: Environment, **_: Any) -> None:
    """Find the orders that a batch_init made, and make some if there are none."""
    host = environment.host or Shop.host
    if not isinstance(environment.runner, WorkerRunner) and not existing_orders(host):
        init_orders(host)
    count = existing_orders(host) or min(ORDER_COUNTS)
    start = random.randrange(count)
    global batch_orders  # noqa: PLW0603 -- locust knows no other place that all users of a process share
    batch_orders = itertools.cycle([*range(start, count), *range(start)])


def existing_orders(host: str) -> int:
    """Return how many orders are numbered from 0 on, as far as one can tell by those that are usual."""

    def exists(order: int) -> bool:
        return requests.get(f"{host}/orders/find/{order}", timeout=INIT_TIMEOUT_S).ok

    return next((count for count in ORDER_COUNTS if exists(0) and exists(count - 1)), 0)


def init_orders(host: str) -> None:
    """Make the smaller of the usual numbers of orders, and as many items and users."""
    count = min(ORDER_COUNTS)
    logging.getLogger(__name__).info("no orders to check out: making %d", count)
    for call in (f"stock/batch_init/{count}/{PLENTY}/1", f"payment/batch_init/{count}/{PLENTY}"):
        requests.post(f"{host}/{call}", timeout=INIT_TIMEOUT_S).raise_for_status()
    requests.post(f"{host}/orders/batch_init/{count}/{count}/{count}/1", timeout=INIT_TIMEOUT_S).raise_for_status()


class Shop(FastHttpUser):
    """Somebody at the shop: every task is one visit."""

    host = json.loads(URLS.read_text())["ORDER_URL"]

    def wait_time(self) -> float:
        """Return the pause before the next visit, in seconds."""
        options = self.environment.parsed_options
        return random.uniform(options.wait_min, options.wait_max)

    # Visits

    @task(5)
    def stock_an_item(self) -> None:
        """Somebody of the shop brings a new item."""
        self.create_item(stock=random.randint(100, 1000))

    @task(30)
    def buy_one_item(self) -> None:
        """A new user buys one item."""
        order_id = self.create_order(self.create_user(credit=PRICE_MAX), [self.create_item(stock=1)])
        self.checkout(order_id, DONE)

    @task(25)
    def buy_two_items(self) -> None:
        """A new user buys two items, and sees that they are paid."""
        items = [self.create_item(stock=100), self.create_item(stock=100)]
        order_id = self.create_order(self.create_user(credit=2 * PRICE_MAX), items)
        self.checkout(order_id, DONE)
        self.see("/orders/find", order_id, paid=True)

    @task(20)
    def buy_from_the_batch(self) -> None:
        """An order that batch_init made is checked out, the first time or again."""
        self.checkout(str(next(batch_orders)), DONE + SOLD_OUT + NO_CREDIT)

    @task(10)
    def want_what_is_sold_out(self) -> None:
        """The second item is gone: the checkout is refused, and the first item is put back by then."""
        kept, gone = self.create_item(stock=100), self.create_item(stock=1)
        order_id = self.create_order(self.create_user(credit=2 * PRICE_MAX), [kept, gone])
        self.post("/stock/subtract", f"{gone}/1")
        self.checkout(order_id, SOLD_OUT)
        self.see("/stock/find", kept, stock=100)

    @task(10)
    def buy_without_credit(self) -> None:
        """The user has no credit: the checkout is refused, and the item is put back by then."""
        item_id = self.create_item(stock=100)
        order_id = self.create_order(self.create_user(credit=0), [item_id])
        self.checkout(order_id, NO_CREDIT)
        self.see("/stock/find", item_id, stock=100)

    # What a visit consists of

    def create_item(self, stock: int) -> str:
        """Return a new item with `stock` pieces."""
        item_id = str(self.post("/stock/item/create", str(random.randint(1, PRICE_MAX))).json()["item_id"])
        self.post("/stock/add", f"{item_id}/{stock}")
        return item_id

    def create_user(self, credit: int) -> str:
        """Return a new user with `credit`."""
        user_id = str(self.post("/payment/create_user").json()["user_id"])
        if credit:
            self.post("/payment/add_funds", f"{user_id}/{credit}")
        return user_id

    def create_order(self, user_id: str, item_ids: Collection[str]) -> str:
        """Return a new order of one piece of each item."""
        order_id = str(self.post("/orders/create", user_id).json()["order_id"])
        for item_id in item_ids:
            self.post("/orders/addItem", f"{order_id}/{item_id}/1")
        return order_id

    def checkout(self, order_id: str, expected: Collection[int]) -> None:
        """Check out; any status but the expected is a failure."""
        self.post("/orders/checkout", order_id, expected)

    def post(self, call: str, arguments: str = "", expected: Collection[int] = DONE) -> Any:
        """Return the response, or end the visit when its status is not an expected one."""
        with self.client.post(path(call, arguments), name=call, catch_response=True) as response:
            if response.status_code in expected:
                response.success()
                return response
            response.failure(complaint(response))
        raise RescheduleTask

    def see(self, call: str, entity_id: str, **expected: object) -> None:
        """Read an entity; any other values of the expected fields are a failure."""
        with self.client.get(path(call, entity_id), name=call, catch_response=True) as response:
            if response.status_code not in DONE:
                response.failure(complaint(response))
            elif not expected.items() <= response.json().items():
                response.failure(f"a read contradicts an answer: not {expected}")


def complaint(response: Any) -> str:
    """Return what is wrong with a status, without ids: locust counts equal complaints."""
    return f"answered {response.status_code}" if response.status_code else f"no answer: {response.error}"


def path(call: str, arguments: str) -> str:
    """Return the path of a call."""
    return f"{call}/{arguments}" if arguments else call
