"""Bad input: each is a clear 4xx in problem+json, changes nothing, and shows nothing of the inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from e2e.calls import CALLS, GETS, POSTS, Call
from e2e.client import Answer, call, get, post, raw
from e2e.shop import AMOUNT_MAX, a_user, an_item, assert_problem, credit, done, stock

pytestmark = pytest.mark.usefixtures("system")

BAD_NUMBERS = {
    "negative": "-1",
    "signed": "+1",
    "huge": str(AMOUNT_MAX + 1),
    "enormous": "9" * 400,
    "fractional": "1.5",
    "exponent": "1e3",
    "hexadecimal": "0x10",
    "underscored": "1_000",
    "word": "five",
    "not a number": "NaN",
    "space": "%20",
    "spaced": "5%20",
    "line end": "5%0a",
    "CR LF": "5%0d%0a",
    "NUL": "5%00",
    "full-width": quote("\uff15"),
    "Arabic-Indic": quote("\u0663"),
    "superscript": quote("\u00b2"),
    "not UTF-8": "%ff",
}
BAD_IDS = {
    "brace": "%7Ba%7D",
    "bare brace": "{a}",
    "CR LF": "a%0d%0aSet-Cookie:%20b",
    "line end": "a%0a",
    "NUL": "a%00",
    "65 characters": "a" * 65,
    "8000 characters": "a" * 8_000,
    "space": "a%20b",
    "dot": "a.b",
    "colon": "a:b",
    "percent": "a%25",
    "full-width": quote("\uff41"),
    "not UTF-8": "%ff%fe",
    "quote": "a'--",
    "question mark": "a%3Fb",
}
NUMBERED = [(each, name) for each in CALLS for name in each.amounts]
IDENTIFIED = [(each, name) for each in CALLS for name in each.ids]
# The user of a new order is not checked.
KNOWN = [(each, name) for each, name in IDENTIFIED if not each.template.startswith("/orders/create/")]


def assert_refused(answer: Answer, *statuses: int) -> None:
    """The answer is a refusal with one of the statuses."""
    assert answer.status in statuses, (answer.status, answer.body)
    assert_problem(answer, answer.status)


@contextmanager
def nothing_changes() -> Iterator[tuple[str, str]]:
    """A user and an item that are afterwards what they were before."""
    user_id, item_id = a_user(credit=100), an_item(stock=100)
    yield user_id, item_id
    assert (credit(user_id), stock(item_id)) == (100, 100)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calling", "name"), NUMBERED, ids=str)
def test_a_bad_number_is_refused_and_changes_nothing(calling: Call, name: str) -> None:
    values = calling.values()
    before = entities(values)
    for text in BAD_NUMBERS.values():
        assert_problem(call(calling.method, calling.template.format(**values | {name: text})), 400, name)
    assert_refused(call(calling.method, calling.template.format(**values | {name: ""})), 400, 404)
    assert entities(values) == before


@pytest.mark.parametrize(
    ("calling", "name"), [(calling, name) for calling, name in NUMBERED if calling.amounts[name] == 1], ids=str
)
def test_zero_is_refused_where_it_makes_no_sense(calling: Call, name: str) -> None:
    values = calling.values()
    before = entities(values)
    assert_problem(call(calling.method, calling.template.format(**values | {name: "0"})), 400, name)
    assert entities(values) == before


@pytest.mark.parametrize("calling", [calling for calling in POSTS if "n" in calling.amounts], ids=str)
@pytest.mark.parametrize("n", ["0", "1000001", "10000000"])
def test_batch_init_names_its_limit(calling: Call, n: str) -> None:
    assert_problem(post(calling.path(n=n)), 400, "1000000")


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calling", "name"), IDENTIFIED, ids=str)
def test_a_bad_id_is_refused_and_changes_nothing(calling: Call, name: str) -> None:
    values = calling.values()
    before = entities({other: value for other, value in values.items() if other != name})
    for text in BAD_IDS.values():
        answer = raw_call(calling.method, calling.template.format(**values | {name: text}))
        assert_refused(answer, 400)
        assert "set-cookie" not in answer.headers
    assert_refused(call(calling.method, calling.template.format(**values | {name: ""})), 400, 404)
    assert entities({other: value for other, value in values.items() if other != name}) == before


@pytest.mark.parametrize(("calling", "name"), KNOWN, ids=str)
def test_an_unknown_id_is_not_found(calling: Call, name: str) -> None:
    assert_problem(call(calling.method, calling.path(**{name: "no-such-thing"})), 404)


@pytest.mark.parametrize("slash", ["%2F", "%2f", "%252F"])
def test_an_encoded_slash_separates_nothing(slash: str) -> None:
    with nothing_changes() as (user_id, item_id):
        for path in (
            f"/stock/add/{item_id}{slash}5",
            f"/stock{slash}add/{item_id}/5",
            f"/stock/subtract{slash}{item_id}/5",
            f"/payment/pay/{user_id}{slash}5",
            f"/payment/add_funds/{user_id}/5{slash}",
        ):
            assert_refused(raw_call("POST", path), 400, 404)
        assert_refused(raw_call("GET", f"/stock/find{slash}{item_id}"), 400, 404)


# --- paths and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/orders",
        "/orders/",
        "/order/find/1",
        "/stock/nothing",
        "/stock/find",
        "/stock/find/1/2",
        "/stock/find/1/",
        "/stock//find/1",
        "//stock/find/1",
        "/stock/../payment/find_user/1",
        "/stock/%2e%2e/find/1",
        "/STOCK/find/1",
        "/stock/FIND/1",
        "/health/nothing",
        "/metrics",
        "/.env",
        "/orders/static/x",
        "/stock/find/1;a=b",
        "/%00",
        "/%ff",
    ],
)
def test_an_unknown_path_is_refused(path: str) -> None:
    for method in ("GET", "POST"):
        assert_refused(raw_call(method, path), 400, 404, 405)


@pytest.mark.parametrize("calling", CALLS, ids=str)
def test_an_unknown_method_is_refused_and_the_right_one_is_named(calling: Call) -> None:
    values = calling.values()
    before = entities(values)
    for method in ("GET" if calling.method == "POST" else "POST", "PUT", "DELETE", "PATCH", "BREW"):
        answer = raw_call(method, calling.template.format(**values))
        assert_problem(answer, 405)
        assert calling.method in answer.headers["allow"]
    assert entities(values) == before


# --- bodies and headers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calling", CALLS, ids=str)
def test_a_body_is_refused_and_changes_nothing(calling: Call) -> None:
    values = calling.values()
    before = entities(values)
    path = calling.template.format(**values)
    for body in (b"{}", b"x" * 10_000, b"x" * 1_000_000):
        head = f"{calling.method} {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert_refused(raw(head + body), 400, 413)
    chunked = (
        f"{calling.method} {path} HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    )
    assert_refused(raw(chunked.encode()), 400, 413)
    assert entities(values) == before


@pytest.mark.parametrize(
    "key", ["", " ", "k" * 129, "a b", "a,b", "a/b", "a{b}", "k\u00e9y", "a%0d%0ab", "k\ta"], ids=ascii
)
@pytest.mark.parametrize("calling", POSTS, ids=str)
def test_a_bad_key_is_refused_and_changes_nothing(calling: Call, key: str) -> None:
    values = calling.values()
    before = entities(values)
    answer = raw_call("POST", calling.template.format(**values), f"Idempotency-Key: {key}")
    assert_problem(answer, 400, "Idempotency-Key")
    assert entities(values) == before


def test_two_keys_are_refused_and_change_nothing() -> None:
    with nothing_changes() as (user_id, _):
        path = f"/payment/pay/{user_id}/5"
        assert_problem(raw_call("POST", path, "Idempotency-Key: a\r\nIdempotency-Key: b"), 400, "Idempotency-Key")


def test_a_large_header_is_none_of_our_business() -> None:
    done(raw_call("GET", f"/payment/find_user/{a_user(credit=1)}", f"X-Large: {'x' * 10_000}"))


def test_the_system_is_well_after_all_this() -> None:
    for calling in CALLS:
        done(call(calling.method, calling.path()))


# --- asking ----------------------------------------------------------------------------------------------------------


def raw_call(method: str, path: str, header: str = "X: y") -> Answer:
    """Send the path as it is."""
    return raw(f"{method} {path} HTTP/1.1\r\nHost: gateway\r\n{header}\r\nConnection: close\r\n\r\n".encode())


def entities(values: dict[str, str]) -> list[bytes]:
    """Return all that clients can see of the entities in a path."""
    reading = {name: each.template for each in GETS for name in each.ids}
    return [done(get(reading[name].format(**{name: value}))).body for name, value in values.items() if name in reading]
