"""What a history is made of: who called what and when, and what came of it.

A history is a list of operations, one a call.  Times are of any clock that never goes back.  A call is before another
one if it ended *before* the other began: so a clock that never repeats a value (a counter) says most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

NOT_TRIED = (408, 429)
"""Refusals of the moment: nothing was changed, and the same key may be answered otherwise later."""


class Invocation(msgspec.Struct, frozen=True):
    """A call as its client made it.  `path` is the API's, as in api.md: "/stock/add/apple/5"."""

    client: str
    method: str
    path: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} by {self.client}" + (f" with key {self.key}" if self.key else "")


class Ok(msgspec.Struct, frozen=True, tag="ok"):
    """2xx: done, once.  `body` is the text, or the fields of the JSON object."""

    body: str | dict[str, Any] = ""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """4xx: nothing was changed."""

    status: int
    detail: str = ""


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """5xx, a cut connection, no answer yet: done once, now or later, or never."""


Outcome = Ok | Refused | Unknown


class Operation(msgspec.Struct, frozen=True):
    """One call.  `ended` is None while there is no answer."""

    invocation: Invocation
    outcome: Outcome
    began: float
    ended: float | None = None

    def __str__(self) -> str:
        match self.outcome:
            case Ok(body):
                answer = f"200 {msgspec.json.encode(body).decode()}"
            case Refused(status, detail):
                answer = f"{status} {detail}".rstrip()
            case Unknown():
                answer = "unknown"
        ended = "..." if self.ended is None else f"{self.ended:.6f}"
        return f"[{self.began:.6f}, {ended}] {self.invocation}: {answer}"


class OrderFacts(msgspec.Struct, frozen=True):
    """What an order is made of: whose it is, pieces by item id, and what it costs in all."""

    user_id: str
    lines: Mapping[str, int]
    total_cost: int


Verb = Literal[
    "create_item",
    "add",
    "subtract",
    "find_item",
    "init_items",
    "create_user",
    "add_funds",
    "pay",
    "find_user",
    "init_users",
    "create_order",
    "add_item",
    "checkout",
    "find_order",
    "init_orders",
]


class Call(msgspec.Struct, frozen=True):
    """A path, parsed: the ids and the numbers in it, in their order."""

    verb: Verb
    ids: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


PATHS: tuple[tuple[Verb, str], ...] = (
    ("create_item", "POST /stock/item/create/N"),
    ("add", "POST /stock/add/I/N"),
    ("subtract", "POST /stock/subtract/I/N"),
    ("find_item", "GET /stock/find/I"),
    ("init_items", "POST /stock/batch_init/N/N/N"),
    ("create_user", "POST /payment/create_user"),
    ("add_funds", "POST /payment/add_funds/I/N"),
    ("pay", "POST /payment/pay/I/N"),
    ("find_user", "GET /payment/find_user/I"),
    ("init_users", "POST /payment/batch_init/N/N"),
    ("create_order", "POST /orders/create/I"),
    ("add_item", "POST /orders/addItem/I/I/N"),
    ("checkout", "POST /orders/checkout/I"),
    ("find_order", "GET /orders/find/I"),
    ("init_orders", "POST /orders/batch_init/N/N/N/N"),
)


def _pattern(template: str) -> re.Pattern[str]:
    id_here, number_here = r"/(?P<i{}>[A-Za-z0-9_-]{{1,64}})", r"/(?P<n{}>[0-9]{{1,15}})"
    for place in range(template.count("/")):
        template = template.replace("/I", id_here.format(place), 1).replace("/N", number_here.format(place), 1)
    return re.compile(template)


_PATTERNS = tuple((verb, _pattern(template)) for verb, template in PATHS)


def parse(invocation: Invocation) -> Call | None:
    """Return what is called, or None if it is none of api.md's calls, or has a bad id or number."""
    text = f"{invocation.method} {invocation.path}"
    for verb, pattern in _PATTERNS:
        found = pattern.fullmatch(text)
        if found is not None:
            parts = found.groupdict()
            ids = tuple(part for name, part in parts.items() if name.startswith("i"))
            return Call(verb, ids, tuple(int(part) for name, part in parts.items() if name.startswith("n")))
    return None


def dump(operations: Iterable[Operation], path: Path) -> None:
    """Write a history: an operation a line, as JSON."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(operations))


def load(path: Path) -> list[Operation]:
    """Read what `dump` wrote."""
    return msgspec.json.Decoder(Operation).decode_lines(path.read_bytes())
