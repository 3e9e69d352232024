"""Clients meet at one item, one account, one order: all that they are told can be explained (I4, I8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from e2e.client import Answer, at_once
from histories.checker import check
from histories.recorder import Recorder
from histories.recording import Recording

CLIENTS = 100

pytestmark = pytest.mark.usefixtures("system")


class Town:
    """Clients, each with a name, whose calls are recorded from the first on."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._opener = Recording(self.recorder, "opener")

    def an_item(self, stock: int, price: int = 1) -> str:
        """Return the id of a new item."""
        item_id: str = self.post(f"/stock/item/create/{price}").json["item_id"]
        self.post(f"/stock/add/{item_id}/{stock}")
        return item_id

    def a_user(self, credit: int) -> str:
        """Return the id of a new user."""
        user_id: str = self.post("/payment/create_user").json["user_id"]
        self.post(f"/payment/add_funds/{user_id}/{credit}")
        return user_id

    def an_order(self, user_id: str, *lines: tuple[str, int]) -> str:
        """Return the id of a new order."""
        order_id: str = self.post(f"/orders/create/{user_id}").json["order_id"]
        for item_id, quantity in lines:
            self.post(f"/orders/addItem/{order_id}/{item_id}/{quantity}")
        return order_id

    def post(self, path: str) -> Answer:
        """Post, before or after everything else."""
        answer = self._opener.post(path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer

    def read(self, path: str) -> Any:
        """Read, before or after everything else."""
        return self._opener.get(path).json

    def meet(self, count: int, work: Callable[[Recording, int], object]) -> None:
        """Let so many clients work at once."""
        at_once(count, lambda number: work(Recording(self.recorder, f"client {number}"), number))


@contextmanager
def recorded() -> Iterator[Town]:
    """Record what happens in the block, and check it."""
    town = Town()
    yield town
    history = town.recorder.history()
    assert {operation.invocation.client for operation in history} > {"opener"}
    assert [str(violation) for violation in check(history)] == []


def test_what_a_hundred_clients_are_told_of_one_item_is_explained() -> None:
    with recorded() as town:
        item_id = town.an_item(stock=40)

        def work(client: Recording, number: int) -> None:
            client.post(f"/stock/{('add', 'subtract', 'subtract')[number % 3]}/{item_id}/{number % 4 + 1}")
            client.get(f"/stock/find/{item_id}")
            client.post(f"/stock/subtract/{item_id}/2")

        town.meet(CLIENTS, work)
        town.read(f"/stock/find/{item_id}")


def test_what_a_hundred_clients_are_told_of_one_account_is_explained() -> None:
    with recorded() as town:
        user_id = town.a_user(credit=40)

        def work(client: Recording, number: int) -> None:
            client.post(f"/payment/{('pay', 'add_funds', 'pay')[number % 3]}/{user_id}/{number % 4 + 1}")
            client.get(f"/payment/find_user/{user_id}")
            client.post(f"/payment/pay/{user_id}/2")

        town.meet(CLIENTS, work)
        town.read(f"/payment/find_user/{user_id}")


def test_what_a_hundred_clients_are_told_of_one_order_is_explained() -> None:
    with recorded() as town:
        item_ids = [town.an_item(stock=1, price=price) for price in (1, 10, 100)]
        order_id = town.an_order("somebody")

        def work(client: Recording, number: int) -> None:
            client.post(f"/orders/addItem/{order_id}/{item_ids[number % 3]}/{number % 2 + 1}")
            client.get(f"/orders/find/{order_id}")

        town.meet(CLIENTS, work)
        town.read(f"/orders/find/{order_id}")


@pytest.mark.parametrize("credit", [7, 1000])
def test_an_order_that_is_checked_out_while_lines_are_added_is_explained(credit: int) -> None:
    with recorded() as town:
        item_id, user_id = town.an_item(stock=60), town.a_user(credit)
        order_id = town.an_order(user_id, (item_id, 5))
        paths = (
            f"/orders/addItem/{order_id}/{item_id}/1",
            f"/orders/checkout/{order_id}",
            f"/orders/find/{order_id}",
            f"/stock/find/{item_id}",
            f"/payment/find_user/{user_id}",
        )

        def work(client: Recording, number: int) -> None:
            for path in (paths[number % 5], paths[(number + 1) % 5]):
                (client.get if "/find" in path else client.post)(path)

        town.meet(60, work)
        for path in paths[2:]:
            town.read(path)


@pytest.mark.parametrize(("stock", "credit"), [(100, 100), (1, 100), (100, 1), (1, 1)])
def test_one_order_that_many_check_out_is_explained(stock: int, credit: int) -> None:
    with recorded() as town:
        item_id, other_id, user_id = town.an_item(stock), town.an_item(100), town.a_user(credit)
        order_id = town.an_order(user_id, (item_id, 2), (other_id, 1))

        def work(client: Recording, number: int) -> None:
            client.post(f"/orders/checkout/{order_id}")
            client.get((f"/stock/find/{other_id}", f"/payment/find_user/{user_id}")[number % 2])
            client.get(f"/orders/find/{order_id}")

        town.meet(40, work)


def test_many_orders_of_few_goods_and_little_money_are_explained() -> None:
    with recorded() as town:
        item_ids, user_ids = [town.an_item(15), town.an_item(100)], [town.a_user(20), town.a_user(1000)]
        orders = [town.an_order(user_ids[number % 2], *((item_id, 1) for item_id in item_ids)) for number in range(40)]
        looks = [f"/stock/find/{item_id}" for item_id in item_ids]
        looks += [f"/payment/find_user/{user_id}" for user_id in user_ids]

        def work(client: Recording, number: int) -> None:
            client.post(f"/orders/checkout/{orders[number % 40]}")
            client.get(looks[number % 4])
            client.post(f"/orders/checkout/{orders[number % 40]}")

        town.meet(80, work)
        for path in (*looks, *(f"/orders/find/{order_id}" for order_id in orders)):
            town.read(path)


def test_checkouts_while_batch_init_replaces_everything_are_explained() -> None:
    numbers, goods = range(10), range(3)
    with recorded() as town:
        for path in ("/stock/batch_init/3/20/2", "/payment/batch_init/3/30", "/orders/batch_init/10/3/3/2"):
            town.post(path)
        looks = [f"/stock/find/{number}" for number in goods] + [f"/payment/find_user/{number}" for number in goods]
        orders = [f"/orders/find/{number}" for number in numbers]
        for path in orders:
            town.read(path)

        def work(client: Recording, number: int) -> None:
            if number in AGAIN:
                client.post(AGAIN[number])
            client.post(f"/orders/checkout/{number % 10}")
            client.get(looks[number % 6])
            client.get(orders[number % 10])

        town.meet(30, work)
        for path in (*looks, *orders):
            town.read(path)


AGAIN = {7: "/stock/batch_init/3/3/2", 14: "/payment/batch_init/3/5", 21: "/orders/batch_init/10/3/3/3"}
"""Who replaces what."""


@pytest.mark.parametrize(
    "path",
    [
        "/payment/add_funds/{user}/5",
        "/payment/pay/{user}/5",
        "/stock/add/{item}/5",
        "/stock/subtract/{item}/5",
        "/orders/addItem/{order}/{item}/1",
        "/orders/checkout/{order}",
        "/orders/create/{user}",
        "/stock/item/create/5",
        "/payment/create_user",
    ],
)
def test_the_same_key_from_fifty_clients_is_one_call(path: str) -> None:
    with recorded() as town:
        item_id, user_id = town.an_item(stock=100), town.a_user(credit=100)
        order_id, key = town.an_order(user_id, (item_id, 2)), uuid4().hex
        path = path.format(user=user_id, item=item_id, order=order_id)
        looks = (f"/stock/find/{item_id}", f"/payment/find_user/{user_id}", f"/orders/find/{order_id}")

        def work(client: Recording, number: int) -> None:
            assert client.post(path, key).status == 200
            client.get(looks[number % 3])

        town.meet(50, work)
        for look in looks:
            town.read(look)


@pytest.mark.parametrize(
    "refused", ["/payment/pay/{user}/101", "/stock/subtract/{item}/101", "/orders/checkout/{order}"]
)
def test_the_same_key_from_fifty_clients_is_refused_to_all(refused: str) -> None:
    with recorded() as town:
        item_id, user_id = town.an_item(stock=100), town.a_user(credit=100)
        order_id, key = town.an_order(user_id, (item_id, 101)), uuid4().hex
        path = refused.format(user=user_id, item=item_id, order=order_id)

        def work(client: Recording, number: int) -> None:
            assert client.post(path, key).status in (402, 409)
            client.get((f"/stock/find/{item_id}", f"/payment/find_user/{user_id}")[number % 2])

        town.meet(50, work)
