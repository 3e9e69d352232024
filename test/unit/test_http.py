"""HTTP: every route, every refusal, every bad input; the log is a fake that records what it is asked."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from builders import TWO_EACH
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from common import config, web
from common.decision import Entity
from common.http import STATUS, make_app
from common.messages import AMOUNT_MAX, Asker, Done, Message, Outcome, Reason, Refused, partition_of
from common.web import Listener, Others, OutcomeUnknown, TooBusy, Web, taken
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders, Order
from order.routes import routes as order_routes
from payment.domain import Account, AddFunds, CreateUser, InitUsers, Pay
from payment.routes import routes as payment_routes
from stock.domain import AddStock, CreateItem, InitItems, Item, SubtractStock
from stock.routes import routes as stock_routes

SETTINGS = config.load({"CHECKOUT_KAFKA": "127.0.0.1:9092", "CHECKOUT_REDIS": "127.0.0.1:7000"})
ROUTES = {"order": order_routes, "stock": stock_routes, "payment": payment_routes}


class Asked(msgspec.Struct):
    """What a route asked for."""

    entity_id: str
    asker: Asker
    command: Message
    patience_ms: int


class FakeWeb:
    """Answers every request with `outcome`, or raises it, and every read from `entities`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.outcome: Outcome | Exception = Done("9")
        self.entities: dict[str, Entity] = {}
        self.is_ready = True
        self.is_cut_off = False
        self.noted: list[bool] = []
        self.others = self
        self.listener = Listener(0, lambda: False)

    def note(self, *, are_ready: bool) -> None:
        self.noted.append(are_ready)

    def asker(self, request_id: str, fingerprint: int, *, is_client_key: bool) -> Asker:
        return Asker(request_id, fingerprint, "web-1", is_client_key)

    def ask(self, entity_id: str, asker: Asker, command: Message, listener: Listener) -> Done | Refused:
        self.asked.append(Asked(entity_id, asker, command, listener.patience_ms))
        self.listener = listener
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def find(self, kind: type[Entity], entity_id: str, listener: Listener) -> Entity | None:
        self.listener = listener
        if isinstance(self.outcome, Exception):
            raise self.outcome
        entity = self.entities.get(entity_id)
        assert entity is None or isinstance(entity, kind)
        return entity


class Service:
    """One service's application before a fake log."""

    def __init__(self, name: str) -> None:
        self.web = FakeWeb()
        app = make_app(ROUTES[name], cast("Web", self.web), SETTINGS)
        self.client: FlaskClient = app.test_client()

    def post(self, path: str, **headers: str) -> TestResponse:
        return self.client.post(path, headers=headers_of(headers))

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=headers_of(headers))

    @property
    def asked(self) -> Asked:
        (asked,) = self.web.asked
        return asked


def headers_of(named: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in named.items()}


@pytest.fixture
def order() -> Service:
    return Service("order")


@pytest.fixture
def stock() -> Service:
    return Service("stock")


@pytest.fixture
def payment() -> Service:
    return Service("payment")


@pytest.fixture(params=["order", "stock", "payment"])
def service(request: pytest.FixtureRequest) -> Service:
    return Service(request.param)


def assert_problem(response: TestResponse, status: int) -> dict[str, Any]:
    """Assert that the answer is an RFC 9457 problem that gives nothing away; return it."""
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    problem: dict[str, Any] = response.get_json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


# --- what every call asks for and answers


@pytest.mark.parametrize(
    ("name", "path", "command"),
    [
        ("order", "/addItem/o1/apple/2", AddItem("o1", "apple", 2)),
        ("order", "/checkout/o1", CheckOut("o1")),
        ("order", "/batch_init/10/20/30/5", InitOrders(10, 20, 30, 5)),
        ("stock", "/add/apple/2", AddStock("apple", 2)),
        ("stock", "/subtract/apple/2", SubtractStock("apple", 2)),
        ("stock", "/batch_init/10/0/0", InitItems(10, 0, 0)),
        ("payment", "/add_funds/ann/2", AddFunds("ann", 2)),
        ("payment", "/pay/ann/2", Pay("ann", 2)),
        ("payment", "/batch_init/10/0", InitUsers(10, 0)),
    ],
)
def test_a_call_becomes_its_command(name: str, path: str, command: Message) -> None:
    service = Service(name)

    response = service.post(path)

    assert response.status_code == 200
    assert service.asked.command == command


def test_the_id_of_what_is_created_is_answered_and_nothing_else(
    order: Service, stock: Service, payment: Service
) -> None:
    answers = [
        (order.post("/create/ann"), "order_id", order.asked, lambda entity_id: CreateOrder(entity_id, "ann")),
        (stock.post("/item/create/5"), "item_id", stock.asked, lambda entity_id: CreateItem(entity_id, 5)),
        (payment.post("/create_user"), "user_id", payment.asked, CreateUser),
    ]

    for response, field, asked, command in answers:
        entity_id = asked.entity_id
        assert response.get_json() == {field: entity_id}
        assert asked.command == command(entity_id)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("stock", "/add/apple/2"),
        ("stock", "/subtract/apple/2"),
        ("payment", "/add_funds/ann/2"),
        ("payment", "/pay/ann/2"),
    ],
)
def test_the_new_amount_is_answered_as_text(name: str, path: str) -> None:
    response = Service(name).post(path)

    assert response.mimetype == "text/plain"
    assert response.text.endswith(" 9")


@pytest.mark.parametrize("name", ["addItem/o1/apple/2", "checkout/o1"])
def test_what_was_done_to_an_order_is_answered_as_text(order: Service, name: str) -> None:
    assert order.post(f"/{name}").mimetype == "text/plain"


@pytest.mark.parametrize(
    ("name", "path"),
    [("order", "/batch_init/10/20/30/5"), ("stock", "/batch_init/10/0/0"), ("payment", "/batch_init/10/0")],
)
def test_batch_init_answers_with_a_message_and_has_patience(name: str, path: str) -> None:
    service = Service(name)

    response = service.post(path)

    assert list(response.get_json()) == ["msg"]
    assert service.asked.patience_ms == SETTINGS.batch_init_patience_ms


def test_a_found_order_has_exactly_these_fields(order: Service) -> None:
    order.web.entities["o1"] = Order("ann", (("apple", 2), ("pear", 1)), 17, checkout_id="c1")

    assert order.get("/find/o1").get_json() == {
        "order_id": "o1",
        "paid": False,
        "items": [["apple", 2], ["pear", 1]],
        "user_id": "ann",
        "total_cost": 17,
    }


def test_a_found_item_has_exactly_these_fields(stock: Service) -> None:
    stock.web.entities["apple"] = Item(5, 3, 2)

    assert stock.get("/find/apple").get_json() == {"stock": 3, "price": 5}


def test_a_found_user_has_exactly_these_fields(payment: Service) -> None:
    payment.web.entities["ann"] = Account(AMOUNT_MAX, 0)

    assert payment.get("/find_user/ann").get_json() == {"user_id": "ann", "credit": AMOUNT_MAX}


@pytest.mark.parametrize(("name", "path"), [("order", "/find/x"), ("stock", "/find/x"), ("payment", "/find_user/x")])
def test_what_does_not_exist_is_not_found(name: str, path: str) -> None:
    assert "x" in assert_problem(Service(name).get(path), 404)["detail"]


@pytest.mark.parametrize(
    ("name", "path", "entity_id"),
    [
        ("order", "/addItem/o1/apple/2", "o1"),
        ("order", "/checkout/o1", "o1"),
        ("stock", "/add/apple/2", "apple"),
        ("stock", "/subtract/apple/2", "apple"),
        ("payment", "/add_funds/ann/2", "ann"),
        ("payment", "/pay/ann/2", "ann"),
    ],
)
def test_a_command_goes_to_the_entity_it_changes(name: str, path: str, entity_id: str) -> None:
    service = Service(name)
    service.post(path)

    assert service.asked.entity_id == entity_id
    assert service.asked.patience_ms == SETTINGS.patience_ms


# --- refusals


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.NOT_FOUND, 404),
        (Reason.CONFLICT, 409),
        (Reason.NO_CREDIT, 402),
        (Reason.OTHER_CALL, 422),
        (Reason.BUSY, 429),
        (Reason.NOT_NOW, 503),
        (Reason.INTERNAL, 500),
    ],
)
def test_every_reason_has_its_status(order: Service, reason: Reason, status: int) -> None:
    order.web.outcome = Refused(reason, "what to do")

    problem = assert_problem(order.post("/checkout/o1"), status)

    assert problem == {"type": "about:blank", "title": reason.value, "status": status, "detail": "what to do"}


def test_no_reason_is_without_a_status() -> None:
    assert set(STATUS) == set(Reason)


@pytest.mark.parametrize("outcome", [Refused(Reason.BUSY, "busy"), Refused(Reason.NOT_NOW, "late"), TooBusy()])
def test_who_should_ask_again_is_told_when(order: Service, outcome: Outcome | Exception) -> None:
    order.web.outcome = outcome

    assert int(order.post("/checkout/o1").headers["Retry-After"]) > 0


@pytest.mark.parametrize("reason", [Reason.NOT_FOUND, Reason.CONFLICT, Reason.NO_CREDIT, Reason.OTHER_CALL])
def test_who_need_not_ask_again_is_not_told_when(order: Service, reason: Reason) -> None:
    order.web.outcome = Refused(reason, "no")

    assert "Retry-After" not in order.post("/checkout/o1").headers


@pytest.mark.parametrize("call", [lambda it: it.post("/checkout/o1"), lambda it: it.get("/find/o1")])
def test_no_outcome_in_time_is_503_and_says_how_to_ask_again(
    order: Service, call: Callable[[Service], TestResponse]
) -> None:
    order.web.outcome = OutcomeUnknown()

    response = call(order)

    assert "same Idempotency-Key" in assert_problem(response, 503)["detail"]
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("call", [lambda it: it.post("/checkout/o1"), lambda it: it.get("/find/o1")])
def test_too_many_waiting_requests_is_503_because_a_replayed_one_may_have_acted(
    order: Service, call: Callable[[Service], TestResponse]
) -> None:
    order.web.outcome = TooBusy()

    assert_problem(call(order), 503)


def test_a_bug_is_500_without_its_stack_trace(order: Service) -> None:
    order.web.outcome = ZeroDivisionError("the planted bug")

    problem = assert_problem(order.post("/checkout/o1"), 500)

    assert "planted" not in str(problem)


# --- bad input: nothing is asked

BAD_IDS = [
    "{o1}",
    "a" * 65,
    "o%7B1",
    "o1%0D%0ASet-Cookie:x",
    "o%0A",
    "o%201",
    "%C3%A9",
    "%D9%A1",
    "%00",
    "o.1",
    "o:1",
    "%2E%2E",
    "%FF",
    "*",
]
BAD_NUMBERS = [
    "-1",
    "+1",
    "1.5",
    "1e3",
    "0x10",
    "1_000",
    "1" * 16,
    "1" * 400,
    "%D9%A1",  # ARABIC-INDIC DIGIT ONE: int() would take it
    "%EF%BC%95",  # FULLWIDTH DIGIT FIVE
    "%C2%B2",  # SUPERSCRIPT TWO: isdigit() would take it
    "%201",
    "1%20",
    "1%0A",
    "one",
    "nan",
    "%00",
    "null",
]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("order", "POST", "/create/{}"),
        ("order", "GET", "/find/{}"),
        ("order", "POST", "/addItem/{}/apple/1"),
        ("order", "POST", "/addItem/o1/{}/1"),
        ("order", "POST", "/checkout/{}"),
        ("stock", "GET", "/find/{}"),
        ("stock", "POST", "/add/{}/1"),
        ("stock", "POST", "/subtract/{}/1"),
        ("payment", "GET", "/find_user/{}"),
        ("payment", "POST", "/add_funds/{}/1"),
        ("payment", "POST", "/pay/{}/1"),
    ],
)
def test_a_bad_id_is_400_and_nothing_is_asked(name: str, method: str, path: str, bad: str) -> None:
    service = Service(name)

    response = service.client.open(path.format(bad), method=method)

    assert assert_problem(response, 400)["title"] == "bad id"
    assert service.web.asked == []


@pytest.mark.parametrize("good", ["a", "a" * 64, "-", "_", "A-Za-z0-9_-", "0"])
def test_a_good_id_is_taken(order: Service, good: str) -> None:
    assert order.post(f"/checkout/{good}").status_code == 200
    assert order.asked.entity_id == good


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("order", "/addItem/o1/apple/{}"),
        ("order", "/batch_init/{}/1/1/1"),
        ("order", "/batch_init/1/{}/1/1"),
        ("order", "/batch_init/1/1/{}/1"),
        ("order", "/batch_init/1/1/1/{}"),
        ("stock", "/item/create/{}"),
        ("stock", "/add/apple/{}"),
        ("stock", "/subtract/apple/{}"),
        ("stock", "/batch_init/{}/1/1"),
        ("stock", "/batch_init/1/{}/1"),
        ("stock", "/batch_init/1/1/{}"),
        ("payment", "/add_funds/ann/{}"),
        ("payment", "/pay/ann/{}"),
        ("payment", "/batch_init/{}/1"),
        ("payment", "/batch_init/1/{}"),
    ],
)
def test_a_bad_number_is_400_and_nothing_is_asked(name: str, path: str, bad: str) -> None:
    service = Service(name)

    problem = assert_problem(service.post(path.format(bad)), 400)

    assert "digits 0-9" in problem["detail"]
    assert service.web.asked == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("order", "/addItem/o1/apple/0"),
        ("order", "/addItem/o1/apple/000"),
        ("stock", "/add/apple/0"),
        ("stock", "/subtract/apple/0"),
        ("payment", "/add_funds/ann/0"),
        ("payment", "/pay/ann/0"),
        ("order", "/batch_init/0/1/1/1"),
        ("order", "/batch_init/1/0/1/1"),
        ("order", "/batch_init/1/1/0/1"),
        ("stock", "/batch_init/0/1/1"),
        ("payment", "/batch_init/0/1"),
    ],
)
def test_zero_is_refused_where_it_makes_no_sense(name: str, path: str) -> None:
    service = Service(name)

    assert_problem(service.post(path), 400)
    assert service.web.asked == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("stock", "/item/create/0"),
        ("stock", "/batch_init/1/0/0"),
        ("payment", "/batch_init/1/0"),
        ("order", "/batch_init/1/1/1/0"),
    ],
)
def test_prices_and_what_one_starts_with_may_be_zero(name: str, path: str) -> None:
    assert Service(name).post(path).status_code == 200


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("order", "/addItem/o1/apple/999999999999999"),
        ("stock", "/item/create/999999999999999"),
        ("payment", "/add_funds/ann/999999999999999"),
    ],
)
def test_fifteen_digits_are_taken(name: str, path: str) -> None:
    assert Service(name).post(path).status_code == 200


@pytest.mark.parametrize(
    ("name", "path"),
    [("order", "/batch_init/{}/1/1/1"), ("stock", "/batch_init/{}/1/1"), ("payment", "/batch_init/{}/1")],
)
def test_batch_init_goes_up_to_a_million_and_says_so(name: str, path: str) -> None:
    service = Service(name)
    assert service.post(path.format(1_000_000)).status_code == 200

    assert "1000000" in assert_problem(service.post(path.format(1_000_001)), 400)["detail"]
    assert "1000000" in assert_problem(service.post(path.format(10_000_000)), 400)["detail"]
    assert len(service.web.asked) == 1


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("order", "POST", "/addItem/o1/apple/"),
        ("order", "POST", "/addItem/o1//1"),
        ("order", "POST", "/checkout/"),
        ("order", "POST", "/checkout/o1/"),
        ("order", "POST", "/checkout/a%2Fb"),
        ("order", "GET", "/find/a%2Fb"),
        ("order", "GET", "/find/..%2F..%2Fetc%2Fpasswd"),
        ("stock", "POST", "/add//1"),
        ("stock", "POST", "//add/apple/1"),
        ("payment", "POST", "/pay/ann/1/2"),
        ("payment", "GET", "/"),
        ("payment", "GET", "/nothing/here"),
        ("payment", "POST", "/CREATE_USER"),
    ],
)
def test_an_unknown_path_is_404(name: str, method: str, path: str) -> None:
    service = Service(name)

    assert_problem(service.client.open(path, method=method), 404)
    assert service.web.asked == []


@pytest.mark.parametrize(
    ("name", "method", "path", "allowed"),
    [
        ("order", "GET", "/checkout/o1", "POST"),
        ("order", "POST", "/find/o1", "GET"),
        ("stock", "PUT", "/add/apple/1", "POST"),
        ("payment", "DELETE", "/create_user", "POST"),
        ("payment", "PATCH", "/find_user/ann", "GET"),
        ("payment", "BREW", "/find_user/ann", "GET"),
    ],
)
def test_another_method_is_405_and_the_right_one_is_named(name: str, method: str, path: str, allowed: str) -> None:
    service = Service(name)

    response = service.client.open(path, method=method)

    assert_problem(response, 405)
    assert allowed in response.headers["Allow"]
    assert service.web.asked == []


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_where_none_is_expected_is_400(order: Service, method: str) -> None:
    path = "/checkout/o1" if method == "POST" else "/find/o1"

    response = order.client.open(path, method=method, data=b'{"quantity": 5}', content_type="application/json")

    assert "body" in assert_problem(response, 400)["title"]
    assert order.web.asked == []


def test_a_chunked_body_is_400(order: Service) -> None:
    response = order.post("/checkout/o1", Transfer_Encoding="chunked")

    assert_problem(response, 400)
    assert order.web.asked == []


def test_an_empty_body_is_no_body(order: Service) -> None:
    assert order.post("/checkout/o1", Content_Length="0").status_code == 200


# --- who asks

BAD_KEYS = ["", "a" * 129, "a b", "k%C3%A9", "a/b", "a{b", "a,b", "a\tb", "\xe9"]


@pytest.mark.parametrize("bad", BAD_KEYS)
@pytest.mark.parametrize("path", ["/checkout/o1", "/create/ann", "/batch_init/1/1/1/1"])
def test_a_bad_idempotency_key_is_400_and_nothing_is_asked(order: Service, path: str, bad: str) -> None:
    problem = assert_problem(order.post(path, Idempotency_Key=bad), 400)

    assert problem["title"] == "bad Idempotency-Key"
    assert order.web.asked == []


@pytest.mark.parametrize("good", ["k", "a" * 128, "A-Za-z0-9_.:-"])
def test_a_good_idempotency_key_is_part_of_who_asks(order: Service, good: str) -> None:
    order.post("/checkout/o1", Idempotency_Key=good)

    assert order.asked.asker.request_id.startswith("o1/")
    assert order.asked.asker.request_id.endswith(f"/{good}")
    assert order.asked.asker.is_client_key


def ask_twice(service: Service, *calls: tuple[str, dict[str, str]]) -> list[Asker]:
    """Return who asked in each of the calls."""
    for path, headers in calls:
        service.client.post(path, headers=headers)
    return [asked.asker for asked in service.web.asked]


def test_the_same_key_and_call_is_the_same_request(order: Service) -> None:
    call = ("/checkout/o1", {"Idempotency-Key": "k1"})

    first, again = ask_twice(order, call, call)

    assert first == again


def test_the_same_key_for_another_call_has_another_fingerprint(order: Service) -> None:
    key = {"Idempotency-Key": "k1"}

    first, other = ask_twice(order, ("/addItem/o1/apple/1", key), ("/addItem/o1/apple/2", key))

    assert first.request_id == other.request_id
    assert first.fingerprint != other.fingerprint


def test_a_fingerprint_never_changes(order: Service) -> None:
    """Pinned: results live 24 hours, longer than a version of this program."""
    order.post("/checkout/o1")

    assert order.asked.asker.fingerprint == 9282916805641037649


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("order", "/create/ann", "order_id"),
        ("stock", "/item/create/5", "item_id"),
        ("payment", "/create_user", "user_id"),
    ],
)
def test_the_same_key_creates_the_same_id(name: str, path: str, field: str) -> None:
    service = Service(name)

    ids = [service.post(path, Idempotency_Key=key).get_json()[field] for key in ("k1", "k1", "k2")]

    assert ids[0] == ids[1] != ids[2]
    first, again, _ = service.web.asked
    assert first == again
    assert partition_of(name, first.entity_id, TWO_EACH) == partition_of(name, ids[0], TWO_EACH)


def test_a_batch_init_with_the_same_key_goes_to_the_same_partition(stock: Service) -> None:
    for _ in range(2):
        stock.post("/batch_init/10/1/1", Idempotency_Key="k1")

    first, again = stock.web.asked
    assert first == again


def test_created_ids_are_good_ids(order: Service) -> None:
    order_id = order.post("/create/ann").get_json()["order_id"]

    assert order.get(f"/find/{order_id}").status_code == 404


def test_a_replay_by_the_gateway_is_the_same_request(order: Service) -> None:
    call = ("/checkout/o1", {"X-Attempt-ID": "a1"})

    first, again = ask_twice(order, call, call)

    assert first == again
    assert not first.is_client_key


def test_a_replay_by_the_gateway_creates_the_same_id(payment: Service) -> None:
    ids = [payment.post("/create_user", X_Attempt_ID="a1").get_json() for _ in range(2)]

    assert ids[0] == ids[1]


def test_the_attempt_id_counts_only_without_an_idempotency_key(order: Service) -> None:
    first, again = ask_twice(
        order,
        ("/checkout/o1", {"Idempotency-Key": "k1", "X-Attempt-ID": "a1"}),
        ("/checkout/o1", {"Idempotency-Key": "k1", "X-Attempt-ID": "a2"}),
    )

    assert first == again


def test_a_client_s_key_is_never_taken_for_an_attempt_id(order: Service) -> None:
    client, gateway = ask_twice(
        order, ("/checkout/o1", {"Idempotency-Key": "same"}), ("/checkout/o1", {"X-Attempt-ID": "same"})
    )

    assert client.request_id != gateway.request_id


def test_calls_without_a_key_are_different_requests_whatever_their_request_id(order: Service) -> None:
    call = ("/checkout/o1", {"X-Request-ID": "the same"})

    first, other = ask_twice(order, call, call)

    assert first.request_id != other.request_id
    assert "the same" not in first.request_id


def test_an_id_that_is_created_and_the_request_for_it_belong_together(payment: Service) -> None:
    payment.post("/create_user")

    request_id = payment.asked.asker.request_id
    assert request_id.startswith(f"{payment.asked.entity_id}/")


# --- how long to wait

BATCH = "/batch_init/1/1/1/1"


@pytest.mark.parametrize(
    ("path", "patience_ms"), [("/checkout/o1", SETTINGS.patience_ms), (BATCH, SETTINGS.batch_init_patience_ms)]
)
def test_what_a_request_has_waited_in_the_gateway_it_does_not_wait_again(
    order: Service, path: str, patience_ms: int
) -> None:
    order.post(path, X_Arrived_At=str(int(time.time() * 1000) - 5_000))

    assert patience_ms - 10_000 < order.asked.patience_ms <= patience_ms - 5_000


def test_a_read_waits_no_longer_either(order: Service) -> None:
    order.get("/find/o1", X_Arrived_At=str(int(time.time() * 1000) - 5_000))

    assert SETTINGS.patience_ms - 10_000 < order.web.listener.patience_ms <= SETTINGS.patience_ms - 5_000


IN_AN_HOUR = str(int(time.time() * 1000) + 3_600_000)


@pytest.mark.parametrize("arrived", ["", "soon", "-1", "0", pytest.param(IN_AN_HOUR, id="in an hour"), "9" * 15])
def test_a_time_of_arrival_that_cannot_be_is_ignored(order: Service, arrived: str) -> None:
    order.post("/checkout/o1", X_Arrived_At=arrived)

    assert order.asked.patience_ms == SETTINGS.patience_ms


# --- operations


def test_a_process_that_answers_is_alive(service: Service) -> None:
    service.web.is_ready = False

    assert service.get("/health/live").status_code == 200


def test_a_process_that_can_serve_is_ready(service: Service) -> None:
    assert service.get("/health/ready").status_code == 200


def test_a_process_that_cannot_serve_is_not_ready(service: Service) -> None:
    service.web.is_ready = False

    response = service.get("/health/ready")

    assert_problem(response, 503)
    assert "Retry-After" in response.headers


def test_a_process_that_is_cut_off_has_its_requests_taken_away_by_the_gateway_and_nobody_else(service: Service) -> None:
    service.web.is_ready = False
    service.web.is_cut_off = True

    assert_problem(service.get("/health/ready", X_Ready_Servers="1"), 500)
    assert_problem(service.get("/health/ready"), 503)


def test_a_process_that_is_only_slow_to_hear_keeps_its_requests(service: Service) -> None:
    service.web.is_ready = False

    assert_problem(service.get("/health/ready", X_Ready_Servers="1"), 503)


@pytest.mark.parametrize("state", ["NOLB; name=order/order-web-0", "DOWN 1/2; name=order/order-web-0"])
def test_a_process_that_is_not_counted_any_more_is_told_of_others(order: Service, state: str) -> None:
    order.get("/health/ready", X_Ready_Servers="1", X_Haproxy_Server_State=state)
    order.get("/health/ready")

    assert order.web.noted == [True]


@pytest.mark.parametrize(
    ("ready_servers", "state"), [("2", "UP 1/2; node=a"), ("1", "UP; node=a"), ("0", "NOLB; node=a")]
)
def test_who_the_gateway_still_counts_cannot_tell_whether_others_are_ready(
    order: Service, ready_servers: str, state: str
) -> None:
    order.get("/health/ready", X_Ready_Servers=ready_servers, X_Haproxy_Server_State=state)

    assert order.web.noted == [False]


def test_others_are_reliable_when_they_have_been_ready_for_a_while_without_a_break() -> None:
    now_s = 0.0
    others = Others(lambda: now_s)
    assert not others.are_reliable
    for now_s, are_ready, are_reliable in [
        (0.0, True, False),
        (1.9, True, False),
        (2.1, True, True),
        (2.2, False, False),
        (2.3, True, False),
        (4.2, True, False),
        (4.4, True, True),
    ]:
        others.note(are_ready=are_ready)
        assert others.are_reliable is are_reliable, now_s


def test_requests_are_counted_by_route_and_status(order: Service) -> None:
    order.post("/checkout/o1")
    order.post("/checkout/{bad}")
    order.get("/no/such/path")

    metrics = order.get("/metrics").text

    assert 'checkout_requests_total{route="/checkout/<order_id>",status="200"}' in metrics
    assert 'checkout_requests_total{route="/checkout/<order_id>",status="400"}' in metrics
    assert 'checkout_requests_total{route="unknown",status="404"}' in metrics
    assert "/checkout/o1" not in metrics


def test_the_openapi_document_has_every_call(order: Service, stock: Service, payment: Service) -> None:
    paths = [service.get("/openapi.json").get_json()["paths"] for service in (order, stock, payment)]

    assert [sorted(path) for path in paths] == [
        sorted(
            [
                "/addItem/{order_id}/{item_id}/{quantity}",
                "/batch_init/{n}/{n_items}/{n_users}/{item_price}",
                "/checkout/{order_id}",
                "/create/{user_id}",
                "/find/{order_id}",
            ]
        ),
        sorted(
            [
                "/add/{item_id}/{amount}",
                "/batch_init/{n}/{starting_stock}/{item_price}",
                "/find/{item_id}",
                "/item/create/{price}",
                "/subtract/{item_id}/{amount}",
            ]
        ),
        sorted(
            [
                "/add_funds/{user_id}/{amount}",
                "/batch_init/{n}/{starting_money}",
                "/create_user",
                "/find_user/{user_id}",
                "/pay/{user_id}/{amount}",
            ]
        ),
    ]


def test_the_openapi_page_shows_the_document(service: Service) -> None:
    page = service.get("/docs")

    assert page.mimetype == "text/html"
    assert "openapi.json" in page.text


# --- who hangs up ----------------------------------------------------------------------------------------------------


def test_who_has_hung_up_is_gone_and_who_waits_or_asks_more_is_not(stock: Service) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        stock.client.get("/find/7", environ_overrides={"gunicorn.socket": ours})
        assert not stock.web.listener.is_gone()
        theirs.send(b"GET /find/8")
        assert not stock.web.listener.is_gone()
        assert ours.recv(100) == b"GET /find/8"
        theirs.close()
        assert stock.web.listener.is_gone()


def test_who_breaks_off_is_gone(stock: Service) -> None:
    ours, theirs = socket.socketpair()
    stock.client.get("/find/7", environ_overrides={"gunicorn.socket": ours})
    ours.close()
    assert stock.web.listener.is_gone()
    theirs.close()


def test_without_a_connection_nobody_is_gone(order: Service) -> None:
    order.post("/checkout/o1")
    assert not order.web.listener.is_gone()


def test_a_place_is_free_again_when_nobody_listens() -> None:
    box: queue.SimpleQueue[int] = queue.SimpleQueue()
    with pytest.raises(OutcomeUnknown):
        taken(box, Listener(3_600_000, lambda: True))


def test_who_listens_waits_until_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LISTENS_S", 0.01)
    asked = []
    with pytest.raises(OutcomeUnknown):
        taken(queue.SimpleQueue(), Listener(50, lambda: asked.append(1) is not None))
    assert asked
