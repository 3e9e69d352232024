"""Every line of the HTTP contract, through the gateway."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import pytest
import requests
from e2e.calls import POSTS, Call
from e2e.client import call, get, in_parallel, post
from e2e.faults import frozen, wait_until
from e2e.shop import AMOUNT_MAX, a_user, an_item, an_order, assert_problem, credit, done, order, stock

from local.profiles import HOST
from local.system import System

OPENAPI_PATH = "/orders/openapi.json"
UNKNOWN = "no-such-thing"
SEGMENTS = {"order": "orders", "stock": "stock", "payment": "payment"}

pytestmark = pytest.mark.usefixtures("system")


# --- users -----------------------------------------------------------------------------------------------------------


def test_a_new_user_has_no_credit() -> None:
    answer = done(post("/payment/create_user"))

    assert answer.json.keys() == {"user_id"}
    user_id = answer.json["user_id"]
    assert isinstance(user_id, str)
    assert done(get(f"/payment/find_user/{user_id}")).json == {"user_id": user_id, "credit": 0}


def test_funds_are_added_and_paid_and_the_answer_has_the_new_credit() -> None:
    user_id = a_user()

    assert done(post(f"/payment/add_funds/{user_id}/15")).text.endswith(" 15")
    assert done(post(f"/payment/pay/{user_id}/10")).text.endswith(" 5")
    assert credit(user_id) == 5


def test_nobody_pays_more_than_there_is() -> None:
    user_id = a_user(credit=15)

    assert_problem(post(f"/payment/pay/{user_id}/16"), 402)
    assert credit(user_id) == 15


@pytest.mark.parametrize("path", ["/payment/add_funds/{}/1", "/payment/pay/{}/1"])
def test_an_unknown_user_is_not_found(path: str) -> None:
    assert_problem(post(path.format(UNKNOWN)), 404)
    assert_problem(get(f"/payment/find_user/{UNKNOWN}"), 404)


def test_a_credit_does_not_pass_what_can_be_counted() -> None:
    user_id = a_user(credit=AMOUNT_MAX)

    assert_problem(post(f"/payment/add_funds/{user_id}/1"), 409, str(AMOUNT_MAX))
    assert credit(user_id) == AMOUNT_MAX


# --- items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", [0, 5, AMOUNT_MAX])
def test_a_new_item_has_a_price_and_no_stock(price: int) -> None:
    answer = done(post(f"/stock/item/create/{price}"))

    assert answer.json.keys() == {"item_id"}
    item_id = answer.json["item_id"]
    assert isinstance(item_id, str)
    assert done(get(f"/stock/find/{item_id}")).json == {"stock": 0, "price": price}


def test_stock_is_added_and_subtracted_and_the_answer_has_the_new_stock() -> None:
    item_id = an_item()

    assert done(post(f"/stock/add/{item_id}/50")).text.endswith(" 50")
    assert done(post(f"/stock/subtract/{item_id}/15")).text.endswith(" 35")
    assert stock(item_id) == 35


def test_no_more_is_subtracted_than_there_is() -> None:
    item_id = an_item(stock=50)

    assert_problem(post(f"/stock/subtract/{item_id}/51"), 409)
    assert stock(item_id) == 50


@pytest.mark.parametrize("path", ["/stock/add/{}/1", "/stock/subtract/{}/1"])
def test_an_unknown_item_is_not_found(path: str) -> None:
    assert_problem(post(path.format(UNKNOWN)), 404)
    assert_problem(get(f"/stock/find/{UNKNOWN}"), 404)


def test_a_stock_does_not_pass_what_can_be_counted() -> None:
    item_id = an_item(stock=AMOUNT_MAX)

    assert_problem(post(f"/stock/add/{item_id}/1"), 409, str(AMOUNT_MAX))
    assert stock(item_id) == AMOUNT_MAX


# --- orders ----------------------------------------------------------------------------------------------------------


def test_a_new_order_is_empty_and_its_user_is_not_checked() -> None:
    answer = done(post(f"/orders/create/{UNKNOWN}"))

    assert answer.json.keys() == {"order_id"}
    order_id = answer.json["order_id"]
    empty = {"order_id": order_id, "paid": False, "items": [], "user_id": UNKNOWN, "total_cost": 0}
    assert done(get(f"/orders/find/{order_id}")).json == empty


def test_an_order_has_its_lines_and_their_total() -> None:
    first, second = an_item(price=5), an_item(price=7)
    order_id = an_order("somebody", [(first, 2), (second, 1)])

    found = order(order_id)
    assert found["items"] == sorted([[first, 2], [second, 1]])
    assert found["total_cost"] == 17
    assert found["paid"] is False


def test_an_item_added_twice_adds_the_quantities() -> None:
    item_id = an_item(price=5)
    order_id = an_order("somebody", [(item_id, 2), (item_id, 3)])

    assert order(order_id)["items"] == [[item_id, 5]]
    assert order(order_id)["total_cost"] == 25


def test_nothing_is_added_to_an_unknown_order() -> None:
    assert_problem(post(f"/orders/addItem/{UNKNOWN}/{an_item()}/1"), 404)
    assert_problem(get(f"/orders/find/{UNKNOWN}"), 404)


def test_an_unknown_item_is_not_added() -> None:
    order_id = an_order("somebody")

    assert_problem(post(f"/orders/addItem/{order_id}/{UNKNOWN}/1"), 404)
    assert order(order_id)["items"] == []


def test_nothing_is_added_to_a_paid_order() -> None:
    item_id = an_item(stock=9)
    order_id = an_order(a_user(credit=9), [(item_id, 1)])
    done(post(f"/orders/checkout/{order_id}"))

    assert_problem(post(f"/orders/addItem/{order_id}/{item_id}/1"), 409)
    assert order(order_id)["items"] == [[item_id, 1]]


def test_an_order_has_at_most_100_lines() -> None:
    item_ids = in_parallel(lambda _: an_item(price=2), range(101))
    order_id = an_order("somebody")
    in_parallel(lambda item_id: done(post(f"/orders/addItem/{order_id}/{item_id}/1")), item_ids[:100])

    assert_problem(post(f"/orders/addItem/{order_id}/{item_ids[100]}/1"), 409, "100")
    done(post(f"/orders/addItem/{order_id}/{item_ids[0]}/1"))
    assert len(order(order_id)["items"]) == 100
    assert order(order_id)["total_cost"] == 202


def test_a_total_does_not_pass_what_can_be_counted() -> None:
    dear, cheap = an_item(price=AMOUNT_MAX), an_item(price=1)
    order_id = an_order("somebody", [(dear, 1)])

    assert_problem(post(f"/orders/addItem/{order_id}/{cheap}/1"), 409, str(AMOUNT_MAX))
    assert_problem(post(f"/orders/addItem/{order_id}/{dear}/{AMOUNT_MAX}"), 409, str(AMOUNT_MAX))
    assert order(order_id)["total_cost"] == AMOUNT_MAX


# --- checkouts -------------------------------------------------------------------------------------------------------


def test_a_checkout_takes_the_goods_and_the_money() -> None:
    first, second = an_item(stock=5, price=5), an_item(stock=5, price=7)
    user_id = a_user(credit=30)
    order_id = an_order(user_id, [(first, 2), (second, 1)])

    done(post(f"/orders/checkout/{order_id}"))

    assert (stock(first), stock(second), credit(user_id)) == (3, 4, 13)
    assert order(order_id)["paid"] is True


def test_an_order_of_many_items_is_paid_whole() -> None:
    item_ids = in_parallel(lambda _: an_item(stock=2), range(12))
    user_id = a_user(credit=12)
    order_id = an_order(user_id, [(item_id, 1) for item_id in item_ids])

    done(post(f"/orders/checkout/{order_id}"))

    assert in_parallel(stock, item_ids) == [1] * 12
    assert credit(user_id) == 0


def test_a_paid_order_is_not_charged_again() -> None:
    item_id, user_id = an_item(stock=5), a_user(credit=5)
    order_id = an_order(user_id, [(item_id, 1)])
    for _ in range(3):
        done(post(f"/orders/checkout/{order_id}"))

    assert (stock(item_id), credit(user_id)) == (4, 4)


def test_an_empty_order_is_paid_for_nothing() -> None:
    user_id = a_user(credit=5)
    order_id = an_order(user_id)

    done(post(f"/orders/checkout/{order_id}"))

    assert order(order_id)["paid"] is True
    assert credit(user_id) == 5


def test_an_unknown_order_is_not_checked_out() -> None:
    assert_problem(post(f"/orders/checkout/{UNKNOWN}"), 404)


def test_out_of_stock_leaves_no_trace() -> None:
    plentiful = in_parallel(lambda _: an_item(stock=5), range(4))
    scarce, user_id = an_item(stock=1), a_user(credit=100)
    order_id = an_order(user_id, [*((item_id, 1) for item_id in plentiful), (scarce, 2)])

    assert_problem(post(f"/orders/checkout/{order_id}"), 409, "stock")

    assert [stock(item_id) for item_id in plentiful] == [5] * 4
    assert (stock(scarce), credit(user_id)) == (1, 100)
    assert order(order_id)["paid"] is False


def test_not_enough_credit_leaves_no_trace() -> None:
    item_id, user_id = an_item(stock=5, price=5), a_user(credit=9)
    order_id = an_order(user_id, [(item_id, 2)])

    assert_problem(post(f"/orders/checkout/{order_id}"), 402, "credit")

    assert (stock(item_id), credit(user_id)) == (5, 9)
    assert order(order_id)["paid"] is False


def test_an_unknown_user_is_found_out_when_charged_and_leaves_no_trace() -> None:
    item_id = an_item(stock=5)
    order_id = an_order(UNKNOWN, [(item_id, 2)])

    assert_problem(post(f"/orders/checkout/{order_id}"), 404, "user")

    assert stock(item_id) == 5
    assert order(order_id)["paid"] is False


def test_where_stock_and_payment_both_refuse_stocks_reason_is_given() -> None:
    order_id = an_order(a_user(), [(an_item(stock=1, price=5), 2)])

    assert_problem(post(f"/orders/checkout/{order_id}"), 409, "stock")


def test_a_refused_order_can_be_checked_out_later() -> None:
    item_id, user_id = an_item(stock=1, price=5), a_user()
    order_id = an_order(user_id, [(item_id, 1)])
    assert_problem(post(f"/orders/checkout/{order_id}"), 402)
    done(post(f"/payment/add_funds/{user_id}/5"))

    done(post(f"/orders/checkout/{order_id}"))

    assert (stock(item_id), credit(user_id)) == (0, 0)


# --- while a checkout is open ----------------------------------------------------------------------------------------


@contextmanager
def without_payment(system: System) -> Iterator[Executor]:
    """Nobody answers for payment, so that checkouts stay open; threads to wait for them."""
    with ThreadPoolExecutor() as threads, frozen(system, "payment-processor-0", "payment-processor-1"):
        yield threads


def test_an_order_that_is_being_checked_out_takes_no_item_and_what_it_holds_counts(system: System) -> None:
    item_id = an_item(stock=AMOUNT_MAX)
    order_id = an_order(a_user(), [(item_id, 10)])

    with without_payment(system) as threads:
        checkouts = [threads.submit(post, f"/orders/checkout/{order_id}") for _ in range(3)]
        wait_until(lambda: stock(item_id) == AMOUNT_MAX - 10, "the stock is reserved")
        assert_problem(post(f"/orders/addItem/{order_id}/{item_id}/1"), 409)
        assert_problem(post(f"/stock/add/{item_id}/1"), 409, str(AMOUNT_MAX))
        assert_problem(post(f"/stock/subtract/{item_id}/{AMOUNT_MAX}"), 409)

    for checkout in checkouts:
        assert_problem(checkout.result(), 402)
    assert stock(item_id) == AMOUNT_MAX
    assert order(order_id)["items"] == [[item_id, 10]]


def test_batch_init_over_an_order_that_is_being_checked_out_undoes_its_checkout(system: System) -> None:
    done(post("/stock/batch_init/2/10/5"))
    done(post("/payment/batch_init/1/100"))
    done(post("/orders/batch_init/1/2/1/5"))

    with without_payment(system) as threads:
        checkout = threads.submit(post, "/orders/checkout/0")
        wait_until(lambda: (stock("0"), stock("1")) == (9, 9), "the stock is reserved")
        done(post("/orders/batch_init/1/2/1/7"))

    assert_problem(checkout.result(), 409, "batch_init")
    assert (stock("0"), stock("1"), credit("0")) == (10, 10, 100)
    assert (order("0")["paid"], order("0")["total_cost"]) == (False, 14)
    done(post("/orders/checkout/0"))
    assert (stock("0"), stock("1"), credit("0")) == (9, 9, 86)


# --- batch_init ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 1_000])
def test_batch_init_makes_users_items_and_orders(n: int) -> None:
    for path in (f"/payment/batch_init/{n}/50", f"/stock/batch_init/{n}/10/3", f"/orders/batch_init/{n}/{n}/{n}/7"):
        answer = done(post(path))
        assert answer.json.keys() == {"msg"}
        assert isinstance(answer.json["msg"], str)

    ids = [str(number) for number in range(n)]
    sample = ids[:: max(n // 50, 1)] + ids[-1:]
    assert in_parallel(credit, sample) == [50] * len(sample)
    assert {
        (item["stock"], item["price"]) for item in (done(get(f"/stock/find/{item_id}")).json for item_id in sample)
    } == {(10, 3)}
    for found in in_parallel(order, sample):
        assert sum(quantity for _, quantity in found["items"]) == 2
        assert {item_id for item_id, _ in found["items"]} | {found["user_id"]} <= set(ids)
        assert (found["paid"], found["total_cost"]) == (False, 14)


def test_batch_init_chooses_items_and_users_at_random() -> None:
    done(post("/orders/batch_init/200/10/10/1"))
    orders = in_parallel(order, map(str, range(200)))

    items = Counter(item_id for found in orders for item_id, _ in found["items"])
    users = Counter(found["user_id"] for found in orders)
    assert items.keys() == users.keys() == {str(number) for number in range(10)}
    assert all(len(found["items"]) == 2 for found in orders)


def test_batch_init_replaces_the_entities_that_it_names_and_no_others() -> None:
    done(post("/payment/batch_init/3/50"))
    done(post("/payment/batch_init/2/60"))

    assert [credit(user_id) for user_id in "012"] == [60, 60, 50]


def test_an_order_of_batch_init_is_checked_out_at_its_own_price() -> None:
    done(post("/payment/batch_init/1/50"))
    done(post("/stock/batch_init/1/10/99"))
    done(post("/orders/batch_init/1/1/1/7"))
    done(post("/orders/checkout/0"))

    assert (credit("0"), stock("0")) == (36, 8)
    assert order("0")["paid"] is True


def test_an_item_keeps_the_price_that_it_was_added_at() -> None:
    done(post("/stock/batch_init/1/10/5"))
    order_id = an_order("somebody", [("0", 2)])
    done(post("/stock/batch_init/1/10/9"))
    done(post(f"/orders/addItem/{order_id}/0/1"))

    assert order(order_id)["items"] == [["0", 3]]
    assert order(order_id)["total_cost"] == 2 * 5 + 9


@pytest.mark.slow
def test_batch_init_makes_100_000_of_each() -> None:
    n = 100_000
    paths = (f"/payment/batch_init/{n}/50", f"/stock/batch_init/{n}/10/3", f"/orders/batch_init/{n}/{n}/{n}/7")
    in_parallel(lambda path: done(post(path)), paths)

    last = str(n - 1)
    assert (credit(last), stock(last), order(last)["total_cost"]) == (50, 10, 14)


# --- Idempotency-Key -------------------------------------------------------------------------------------------------


def visible(values: dict[str, str]) -> list[object]:
    """Return all that a call can change, as clients see it."""
    paths = {"user_id": "/payment/find_user/", "item_id": "/stock/find/", "order_id": "/orders/find/"}
    return [done(get(paths[name] + value)).json for name, value in values.items() if name in paths]


@pytest.mark.parametrize("posting", POSTS, ids=str)
def test_the_same_key_and_call_is_answered_alike_and_acts_once(posting: Call) -> None:
    key, values = uuid4().hex, posting.values()
    first = done(post(posting.template.format(**values), key))
    after_first = visible(values)
    again = [post(posting.template.format(**values), key) for _ in range(3)]

    assert {(answer.status, answer.body) for answer in again} == {(200, first.body)}
    assert visible(values) == after_first


@pytest.mark.parametrize("posting", [posting for posting in POSTS if posting.amounts], ids=str)
def test_the_same_key_for_another_call_on_the_same_entity_is_refused(posting: Call) -> None:
    key, values = uuid4().hex, posting.values()
    done(post(posting.template.format(**values), key))
    after_first = visible(values)

    name = next(iter(posting.amounts))
    assert_problem(post(posting.template.format(**values | {name: "2"}), key), 422, "Idempotency-Key")
    assert visible(values) == after_first


def test_the_same_key_is_free_for_other_entities() -> None:
    key, users = uuid4().hex, [a_user(), a_user()]
    for user_id in users:
        done(post(f"/payment/add_funds/{user_id}/5", key))

    assert [credit(user_id) for user_id in users] == [5, 5]


def test_a_refusal_is_remembered_too() -> None:
    key, user_id = uuid4().hex, a_user()
    order_id = an_order(user_id, [(an_item(stock=1, price=5), 1)])
    first = post(f"/orders/checkout/{order_id}", key)
    done(post(f"/payment/add_funds/{user_id}/5"))

    assert_problem(first, 402)
    assert post(f"/orders/checkout/{order_id}", key).body == first.body
    assert credit(user_id) == 5


@pytest.mark.parametrize("header", ["X-Request-ID", "X-Attempt-ID", "x_attempt_id"])
def test_no_other_header_of_a_client_makes_two_requests_one(header: str) -> None:
    user_id = a_user()
    for _ in range(2):
        done(call("POST", f"/payment/add_funds/{user_id}/5", {header: "the-same"}))

    assert credit(user_id) == 10


@pytest.mark.parametrize("key", ["k", "A-z_0.9:x", "k" * 128])
def test_a_key_may_be_up_to_128_characters(key: str) -> None:
    done(post(f"/payment/add_funds/{a_user()}/5", key))


# --- for those who run it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", SEGMENTS.values())
@pytest.mark.parametrize("check", ["live", "ready"])
def test_health_is_for_everyone(segment: str, check: str) -> None:
    done(get(f"/{segment}/health/{check}"))


@pytest.mark.parametrize("service", SEGMENTS)
def test_metrics_are_served_on_each_process_and_not_to_clients(system: System, service: str) -> None:
    for port in (*system.profile.web_ports(service), *system.profile.processor_ports(service)):
        metrics = requests.get(f"http://{HOST}:{port}/metrics", timeout=10)
        assert metrics.headers["Content-Type"].startswith("text/plain")
        assert "checkout_" in metrics.text
    assert_problem(get(f"/{SEGMENTS[service]}/metrics"), 404)


def test_an_openapi_document_names_every_call() -> None:
    document = done(get(OPENAPI_PATH)).json

    assert document["openapi"].startswith("3.")
    paths = {path.rpartition("/orders")[2] for path in document["paths"]}
    assert {"/create/{user_id}", "/find/{order_id}", "/checkout/{order_id}"} <= paths
