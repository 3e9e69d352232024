"""The OpenAPI document of a service, made from its routes by spectree, and a page that shows it.

Made when somebody asks for it, from an application of its own: serving requests pays nothing for being documented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from flask import Flask

View = TypeVar("View", bound=Callable[..., Any])

ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
LEAST = {"price": 0, "item_price": 0, "starting_stock": 0, "starting_money": 0}
"""The smallest value of each number that may be 0; others are at least 1."""
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and the same call give the same answer without acting again, for 24 hours.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
}
ANY_CALL = (400, 413, 503)
ANY_POST = (422, 429)


class ProblemDetails(msgspec.Struct):
    """RFC 9457: why the call was refused or failed, and what to do."""

    type: str
    title: str
    status: int
    detail: str


def answers(body: type[msgspec.Struct] | None, *refusals: int) -> Callable[[View], View]:
    """Note what a view answers: the body of a success (None: text) and the statuses of its own refusals."""

    def note(view: View) -> View:
        view.answers = (body, refusals)  # type: ignore[attr-defined]  # a function has any
        return view

    return note


def document(app: Flask, limits: dict[str, int]) -> dict[str, Any]:
    """Return the OpenAPI document of the routes that say what they answer; `limits` are the numbers' largest values."""
    from spectree import SpecTree
    from spectree.model_adapter import get_msgspec_model_adapter

    spec = SpecTree(
        "flask",
        model_adapter=get_msgspec_model_adapter(),
        title=f"Checkout: {app.name}",
        version="1",
        annotations=False,
        validation_error_status=400,  # spectree would add a 422 of its own to what names none
        naming_strategy=lambda model: model.__name__,
        servers=[{"url": f"/{app.name}"}],
    )
    shown = Flask(app.name, static_folder=None)
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        if hasattr(view, "answers"):
            documented = spec.validate(resp=_responses(view, rule.methods or set()), tags=[app.name])(view)
            shown.add_url_rule(rule.rule, rule.endpoint, documented, methods=list(rule.methods or ()))
    spec.register(shown)
    with shown.app_context():
        made: dict[str, Any] = spec.spec
    for path in made["paths"].values():
        for method, operation in path.items():
            _complete(operation, method, limits)
    return made


def page() -> str:
    """Return the page that shows the document beside it."""
    from offapi import OpenAPITemplate

    template: str = OpenAPITemplate.SWAGGER.value
    return template.format(spec_url="openapi.json")


def _responses(view: Any, methods: set[str]) -> Any:
    from spectree import Response

    body, refusals = view.answers
    statuses = {*refusals, *ANY_CALL, *(ANY_POST if "POST" in methods else ())}
    success = {"HTTP_200": body} if body else {}
    plain = [] if body else ["HTTP_200"]
    return Response(*plain, **success, **{f"HTTP_{status}": ProblemDetails for status in sorted(statuses)})


def _complete(operation: dict[str, Any], method: str, limits: dict[str, int]) -> None:
    """Say what spectree cannot know: what path parameters look like, and that problems have a type of their own."""
    for parameter in operation["parameters"]:
        parameter["schema"] = _schema(parameter["name"], limits)
    if method == "post":
        operation["parameters"].append(KEY_PARAMETER)
    for status, response in operation["responses"].items():
        if status >= "400":
            response["content"] = {"application/problem+json": response["content"]["application/json"]}
        elif "content" not in response:
            response["content"] = {"text/plain": {"schema": {"type": "string"}}}


def _schema(name: str, limits: dict[str, int]) -> dict[str, Any]:
    if name.endswith("_id"):
        return ID_SCHEMA
    return {"type": "integer", "minimum": LEAST.get(name, 1), "maximum": limits.get(name, 10**15 - 1)}
