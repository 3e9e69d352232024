"""Who asks for what, and when: drawn from a seed, before the first call is due.

Orders are checked out once each, by a user and with items that others use too.  One in eight cannot be paid: a user has
nothing, or an item is out of stock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import msgspec

KINDS = {"checkout": 35, "find": 25, "addItem": 10, "add": 10, "subtract": 10, "pay": 10}
KEY_RATE = 0.6
"""Of the POSTs: those clients ask again until there is a yes or a no."""
REPEAT_RATE = 0.2
"""Of those with a key: asked twice, though nothing went wrong."""
REPEAT_AFTER_MAX_S = 1.5
USERS = ITEMS = 250
"""So many that even a long outage leaves few calls at once on each: the checker tries them in any order."""
POOR = SCARCE = 5
BASKETS = 60
PLENTY = 10**9
PRICE = 3


class Order(msgspec.Struct, frozen=True):
    """An order that is checked out once, and what that is answered."""

    order_id: str
    status: int


class Town(msgspec.Struct, frozen=True):
    """What there is, by id: made before the load begins.  Baskets are orders that nobody checks out."""

    users: tuple[str, ...]
    poor: tuple[str, ...]
    items: tuple[str, ...]
    scarce: tuple[str, ...]
    orders: tuple[Order, ...]
    baskets: tuple[str, ...]


class Planned(msgspec.Struct, frozen=True):
    """A call that is due so many seconds after the start, whatever came of the others."""

    due_s: float
    method: str
    path: str
    key: str | None = None
    expected: tuple[int, ...] = (200,)


def order_count(rate: float, seconds: float) -> int:
    """Return how many orders are enough."""
    return int(rate * seconds * KINDS["checkout"] / sum(KINDS.values()) * 1.2) + 20


def plan(town: Town, random: Random, rate: float, seconds: float) -> list[Planned]:
    """Return all calls of a load, by when they are due; every order is in it at most once."""
    orders = iter(town.orders)
    planned: list[Planned] = []
    for number in range(int(rate * seconds)):
        call = _call(town, orders, random)
        key = f"{random.getrandbits(64):016x}" if call.method == "POST" and random.random() < KEY_RATE else None
        call = msgspec.structs.replace(call, due_s=number / rate, key=key)
        planned += [call, *_repeats(call, random, seconds)]
    return sorted(planned, key=lambda call: call.due_s)


def _repeats(call: Planned, random: Random, seconds: float) -> list[Planned]:
    due_s = call.due_s + random.random() * REPEAT_AFTER_MAX_S
    repeats = call.key is not None and random.random() < REPEAT_RATE and due_s < seconds
    return [msgspec.structs.replace(call, due_s=due_s)] if repeats else []


def _call(town: Town, orders: Iterator[Order], random: Random) -> Planned:
    (kind,) = random.choices(list(KINDS), list(KINDS.values()))
    item_id, user_id, amount = random.choice(town.items), random.choice(town.users), random.randint(1, 5)
    match kind:
        case "checkout":
            order = next(orders)
            return _post(f"/orders/checkout/{order.order_id}", order.status)
        case "find":
            return Planned(
                0, "GET", random.choice(looks((user_id,), (item_id,), (random.choice(town.orders).order_id,)))
            )
        case "addItem":
            return _post(f"/orders/addItem/{random.choice(town.baskets)}/{item_id}/{amount}")
        case "pay":
            return _maybe(random, f"/payment/pay/{user_id}/1", f"/payment/pay/{random.choice(town.poor)}/1", 402)
        case "subtract":
            short = f"/stock/subtract/{random.choice(town.scarce)}/1"
            return _maybe(random, f"/stock/subtract/{item_id}/{amount}", short, 409)
        case _:
            return _post(f"/stock/add/{item_id}/{amount}")


def looks(users: Sequence[str], items: Sequence[str], orders: Sequence[str]) -> list[str]:
    """Return the paths that read these."""
    return [
        *(f"/payment/find_user/{user_id}" for user_id in users),
        *(f"/stock/find/{item_id}" for item_id in items),
        *(f"/orders/find/{order_id}" for order_id in orders),
    ]


def _maybe(random: Random, path: str, refused_path: str, status: int) -> Planned:
    return _post(refused_path, status) if random.random() < 0.1 else _post(path)


def _post(path: str, status: int = 200) -> Planned:
    return Planned(0, "POST", path, expected=(status,))
