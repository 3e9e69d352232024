"""A hundred clients at once on one item, one account, one order: every answer and every total is exact."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from e2e.client import Answer, at_once, post
from e2e.shop import a_user, an_item, an_order, assert_problem, credit, done, order, stock

from local.system import System

CLIENTS = 100
TEST = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("system")


def statuses(answers: list[Answer]) -> Counter[int]:
    """Return how often each status was answered."""
    return Counter(answer.status for answer in answers)


def test_stock_is_never_subtracted_below_zero() -> None:
    item_id = an_item(stock=50)
    answers = at_once(CLIENTS, lambda _: post(f"/stock/subtract/{item_id}/1"))

    assert statuses(answers) == {200: 50, 409: 50}
    left = {int(answer.text.rpartition(" ")[2]) for answer in answers if answer.status == 200}
    assert left == set(range(50))
    assert stock(item_id) == 0


def test_credit_is_never_paid_below_zero() -> None:
    user_id = a_user(credit=150)
    answers = at_once(CLIENTS, lambda _: post(f"/payment/pay/{user_id}/3"))

    assert statuses(answers) == {200: 50, 402: 50}
    assert credit(user_id) == 0


def test_what_is_added_and_taken_at_once_adds_up() -> None:
    item_id, user_id = an_item(stock=CLIENTS), a_user(credit=CLIENTS)
    paths = (
        f"/stock/add/{item_id}/2",
        f"/stock/subtract/{item_id}/1",
        f"/payment/add_funds/{user_id}/2",
        f"/payment/pay/{user_id}/1",
    )
    answers = at_once(CLIENTS, lambda number: post(paths[number % len(paths)]))

    assert statuses(answers) == {200: CLIENTS}
    assert (stock(item_id), credit(user_id)) == (CLIENTS + CLIENTS // 4, CLIENTS + CLIENTS // 4)


def test_items_added_to_one_order_at_once_add_up() -> None:
    item_ids = [an_item(price=price) for price in (1, 10)]
    order_id = an_order("somebody")
    answers = at_once(CLIENTS, lambda number: post(f"/orders/addItem/{order_id}/{item_ids[number % 2]}/1"))

    assert statuses(answers) == {200: CLIENTS}
    assert order(order_id)["items"] == sorted([item_id, 50] for item_id in item_ids)
    assert order(order_id)["total_cost"] == 50 * 11


def test_one_order_checked_out_by_many_is_charged_once() -> None:
    item_id, user_id = an_item(stock=50, price=3), a_user(credit=50)
    order_id = an_order(user_id, [(item_id, 2)])
    answers = at_once(50, lambda _: post(f"/orders/checkout/{order_id}"))

    assert statuses(answers) == {200: 50}
    assert (stock(item_id), credit(user_id)) == (48, 44)


def test_one_order_that_cannot_be_paid_is_refused_to_all_and_leaves_no_trace() -> None:
    item_id, user_id = an_item(stock=50, price=3), a_user(credit=5)
    order_id = an_order(user_id, [(item_id, 2)])
    answers = at_once(50, lambda _: post(f"/orders/checkout/{order_id}"))

    assert statuses(answers) == {402: 50}
    assert (stock(item_id), credit(user_id)) == (50, 5)


def test_of_many_orders_as_many_are_paid_as_there_are_goods() -> None:
    item_id, users = an_item(stock=30), at_once(CLIENTS, lambda _: a_user(credit=1))
    orders = at_once(CLIENTS, lambda number: an_order(users[number], [(item_id, 1)]))
    answers = at_once(CLIENTS, lambda number: post(f"/orders/checkout/{orders[number]}"))

    assert statuses(answers) == {200: 30, 409: CLIENTS - 30}
    assert stock(item_id) == 0
    for user_id, order_id, answer in zip(users, orders, answers, strict=True):
        paid = answer.status == 200
        assert (order(order_id)["paid"], credit(user_id)) == (paid, 0 if paid else 1)


def test_of_many_orders_of_one_user_as_many_are_paid_as_there_is_money_for() -> None:
    item_id, user_id = an_item(stock=CLIENTS), a_user(credit=30)
    orders = at_once(CLIENTS, lambda _: an_order(user_id, [(item_id, 1)]))
    answers = at_once(CLIENTS, lambda number: post(f"/orders/checkout/{orders[number]}"))

    assert statuses(answers) == {200: 30, 402: CLIENTS - 30}
    assert (stock(item_id), credit(user_id)) == (CLIENTS - 30, 0)
    assert [order(order_id)["paid"] for order_id in orders] == [answer.status == 200 for answer in answers]


@pytest.mark.parametrize(
    "path", ["/payment/add_funds/{user}/5", "/payment/pay/{user}/5", "/stock/add/{item}/5", "/stock/subtract/{item}/5"]
)
def test_many_with_the_same_key_act_once_and_are_answered_alike(path: str) -> None:
    key, user_id, item_id = uuid4().hex, a_user(credit=100), an_item(stock=100)
    answers = at_once(50, lambda _: done(post(path.format(user=user_id, item=item_id), key)))

    assert len({answer.body for answer in answers}) == 1
    assert abs(credit(user_id) + stock(item_id) - 200) == 5


def test_many_with_the_same_key_create_one_order() -> None:
    key = uuid4().hex
    answers = at_once(50, lambda _: done(post("/orders/create/somebody", key)))

    assert len({answer.json["order_id"] for answer in answers}) == 1


def test_of_many_calls_with_the_same_key_one_acts() -> None:
    key, user_id = uuid4().hex, a_user()
    answers = at_once(50, lambda number: post(f"/payment/add_funds/{user_id}/{number % 2 + 1}", key))

    assert statuses(answers) == {200: 25, 422: 25}
    assert credit(user_id) in (1, 2)
    for answer in answers:
        if answer.status != 200:
            assert_problem(answer, 422)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["test_microservices.py", "run_consistency_test.py"])
def test_the_given_tests_pass_as_their_users_run_them(system: System, script: str) -> None:
    environment = os.environ | {"GATEWAY_URL": system.gateway_url}
    ran = subprocess.run(
        [sys.executable, script], cwd=TEST, env=environment, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
