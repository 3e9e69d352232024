"""The OpenAPI documents are true: what they allow is served, the rest is refused, and what is refused changes nothing.

schemathesis makes the calls, from the documents that the services show: at the limits of each parameter, and at random.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from uuid import uuid4

import jsonschema_rs
import pytest
import requests
from e2e.calls import CALLS, GETS, Call, payable, rich, stocked
from e2e.client import TIMEOUT_S, Answer, call, get
from e2e.shop import assert_problem, order
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, BaseSchema, Case, GenerationMode, Response, openapi
from schemathesis.specs.openapi.checks import response_schema_conformance

from local.system import System

SERVICES = ("orders", "stock", "payment")
READING = {name: each.template for each in GETS for name in each.ids}
SHORT_ID = re.compile("[A-Za-z0-9_-]{1,2}")
"""Stands for an entity that exists; longer ids are sent as they are."""
ID = re.compile("[A-Za-z0-9_-]{1,64}")
KEY = re.compile("[A-Za-z0-9_.:-]{1,128}")
INIT_MAX = 1_000_000
INIT_FEW = 3
"""batch_init makes so many where it was to make more: what it does with many is shown elsewhere."""
HAS_PAIRS = "/find/{order_id}"
"""schemathesis 4.32 cannot read the pairs (prefixItems) of an order, so a test of its own compares them."""
AT_RANDOM = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def documents(system: System) -> dict[str, BaseSchema]:
    """What each service shows of itself, by the first segment of its paths."""
    return {service: document(f"{system.gateway_url}/{service}/openapi.json") for service in SERVICES}


def document(url: str) -> BaseSchema:
    """Return the document at `url`; its checks expect the answers of the contract and no others."""
    shown = openapi.from_url(url)
    shown.config.checks.positive_data_acceptance.expected_statuses = ["200", "402", "404", "409"]
    shown.config.checks.negative_data_rejection.expected_statuses = ["400", "404", "405"]
    return shown


@pytest.fixture(scope="module")
def session(documents: dict[str, BaseSchema]) -> Iterator[requests.Session]:
    """Keep connections to the gateway, which is up."""
    assert documents
    with requests.Session() as session:
        yield session


class Witness:
    """A user, an item and an order to call with, what was last seen of them and of others, and what was answered."""

    def __init__(self, session: requests.Session) -> None:
        self.statuses: Counter[int] = Counter()
        self._session = session
        self._ids = {"user_id": rich(), "item_id": stocked(), "order_id": payable()}
        self._seen: dict[str, bytes] = {}

    def check(self, case: Case) -> None:
        """Make the call.  It is answered as its document says, and if it is refused, nothing has changed."""
        self._aim(case)
        paths = self._paths(case)
        before = self._look(paths)
        response = case.call(session=self._session, timeout=TIMEOUT_S)
        self._seen.clear()
        self.statuses[response.status_code] += 1
        if response.status_code != 200 or case.method != "POST":
            assert self._look(paths) == before, (case.method, case.formatted_path, response.status_code)
        if response.status_code != 200:
            assert_refusal(response, [*case.path_parameters, "an id is", "Idempotency-Key"])
        unreadable = case.path == HAS_PAIRS and response.status_code == 200
        case.validate_response(response, excluded_checks=[response_schema_conformance] if unreadable else [])

    def _aim(self, case: Case) -> None:
        """Let the call hit what exists, ask for the first time, and make few entities."""
        for name, value in case.path_parameters.items():
            if name in self._ids and SHORT_ID.fullmatch(str(value)):
                case.path_parameters[name] = self._ids[name]
            if name == "n" and str(value).isdecimal() and INIT_FEW < int(value) <= INIT_MAX:
                case.path_parameters[name] = INIT_FEW
        key = str(case.headers.get("Idempotency-Key", ""))
        if KEY.fullmatch(key):
            case.headers["Idempotency-Key"] = f"{uuid4().hex}{key}"[:128]

    def _paths(self, case: Case) -> list[str]:
        """Return where to see what the call might change: the witness, what the path names, or batch_init's first."""
        named = {name: str(value) for name, value in case.path_parameters.items() if name in READING}
        first = dict.fromkeys(READING if "n" in case.path_parameters else (), "0")
        entities = {entity for ids in (self._ids, first, named) for entity in ids.items()}
        return sorted(READING[name].format(**{name: id_}) for name, id_ in entities if ID.fullmatch(id_))

    def _look(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return what is there, read again where that is not known any more."""
        self._seen |= {path: get(path).body for path in paths if path not in self._seen}
        return {path: self._seen[path] for path in paths}


def assert_refusal(response: Response, words: Iterable[str]) -> None:
    """The answer is a problem that says what to do: what is wrong with the path or the key, where that is it."""
    headers = {name: values[0] for name, values in response.headers.items()}
    assert 400 <= response.status_code < 500, (response.status_code, response.content)
    if response.request.method != "HEAD":
        assert_problem(Answer(response.status_code, headers, response.content), response.status_code)
        assert response.status_code != 400 or any(word in response.json()["detail"] for word in words)


def operation_of(documents: dict[str, BaseSchema], calling: Call) -> APIOperation:
    """Return the call as its service's document has it."""
    _, service, path = calling.template.split("/", 2)
    return documents[service][f"/{path}"][calling.method]


def test_the_documents_name_every_call_and_nothing_else(documents: dict[str, BaseSchema]) -> None:
    shown = {
        f"{method.upper()} /{service}{path}"
        for service, schema in documents.items()
        for path, operations in schema.raw_schema["paths"].items()
        for method in operations
    }
    assert shown == set(map(str, CALLS))


@pytest.mark.parametrize("service", SERVICES)
def test_every_refusal_in_a_document_is_a_problem(documents: dict[str, BaseSchema], service: str) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    for path, operations in documents[service].raw_schema["paths"].items():
        for method, operation in operations.items():
            refusals = {status: each["content"] for status, each in operation["responses"].items() if status >= "400"}
            assert refusals == dict.fromkeys(refusals, problem), (method, path)


@pytest.mark.parametrize("calling", CALLS, ids=str)
def test_each_call_is_answered_as_documented_at_every_limit(
    documents: dict[str, BaseSchema], session: requests.Session, calling: Call
) -> None:
    operation, witness = operation_of(documents, calling), Witness(session)
    schema = operation.schema
    for case in schema.iter_coverage_cases(
        operation, generation_modes=list(GenerationMode), generation_config=schema.config.generation
    ):
        witness.check(case)
    assert witness.statuses[200] > 0
    assert witness.statuses[405] > 0


@pytest.mark.parametrize("mode", GenerationMode, ids=str)
@pytest.mark.parametrize("calling", CALLS, ids=str)
def test_each_call_is_answered_as_documented_at_random(
    documents: dict[str, BaseSchema], session: requests.Session, calling: Call, mode: GenerationMode
) -> None:
    operation, witness = operation_of(documents, calling), Witness(session)

    @AT_RANDOM
    @given(operation.as_strategy(mode))
    def check(case: Case) -> None:
        witness.check(case)

    check()
    assert witness.statuses[200 if mode.is_positive else 400] > 0


def test_an_order_is_as_documented(documents: dict[str, BaseSchema]) -> None:
    shown = documents["orders"].raw_schema
    schema = {"$ref": "#/components/schemas/OrderFound", "components": shown["components"]}
    found = order(payable())

    jsonschema_rs.validate(schema, found)
    assert not jsonschema_rs.is_valid(schema, found | {"items": [["apple", 1, 1]]})
    assert not jsonschema_rs.is_valid(schema, found | {"items": [[1, "apple"]]})


@pytest.mark.parametrize("calling", CALLS, ids=str)
def test_each_call_refuses_a_body_as_documented(documents: dict[str, BaseSchema], calling: Call) -> None:
    answer = call(calling.method, calling.path(), body=b"{}")

    assert_problem(answer, answer.status, "body")
    assert str(answer.status) in operation_of(documents, calling).definition.raw["responses"]
