"""Who asks for what, and when: drawn from a seed, before the first call is due.

Orders are checked out once each, by a user and with items that others use too.  One in eight cannot be paid: a user has
nothing, or an item is out of stock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from random import Random

import msgspec

KINDS = {"checkout": 35, "find": 25, "addItem": 10, "add": 10, "subtract": 10, "pay": 10}
KEY_RATE = 0.6
"""Of the POSTs: those clients ask again until there is a yes or a no."""
REPEAT_RATE = 0.2
"""Of those with a key: asked twice, though nothing went wrong."""
REPEAT_AFTER_MAX_S = 1.5
ENTITIES = 600
"""So many that even 80 s without answers leave few calls at once on each: the checker tries those in any order, and
gave up with 250 after four minutes."""
POOR = SCARCE = 12
BASKETS = 60
PLENTY = 10**9
PRICE = 3
ODD_ONES = 16
"""Of so many orders one has a poor user, and one a scarce item."""
AHEAD_S = 15.0
"""So long before it is due to be checked out an order begins to be made, or before the load begins."""


class Load(msgspec.Struct, frozen=True):
    """How much is asked: so many calls a second for so many seconds, if it is not enough before."""

    rate: float
    seconds_max: float
    entities: int
    """So many users, and so many items."""
    at_once: int = 24
    """So many clients make the town, and look at it in the end."""
    is_alone: bool = True
    """Nobody else is loading: users and items may be numbered, which is quicker, and replaces those of before."""


class Town(msgspec.Struct, frozen=True):
    """What there is, by id, when the load begins.  Baskets are orders that nobody checks out."""

    users: tuple[str, ...]
    poor: tuple[str, ...]
    items: tuple[str, ...]
    scarce: tuple[str, ...]
    orders: tuple[str, ...]
    baskets: tuple[str, ...]


class Planned(msgspec.Struct, frozen=True):
    """A call that is due so many seconds after the start, whatever came of the others."""

    due_s: float
    method: str
    path: str
    key: str | None = None
    expected: tuple[int, ...] = (200,)
    order: int | None = None
    """The number of the order whose id belongs into the path's braces."""


def orders_ahead(rate: float) -> int:
    """Return how many orders are made before they are due to be checked out."""
    return int(rate * AHEAD_S * KINDS["checkout"] / sum(KINDS.values())) + 1


def status_of(order: int) -> int:
    """Return what the checkout of the order with this number is answered."""
    return {0: 402, 1: 409}.get(order % ODD_ONES, 200)


def plan(town: Town, random: Random, load: Load) -> list[Planned]:
    """Return all calls of a load, by when they are due; orders are numbered as they are checked out, once each."""
    orders = count()
    planned: list[Planned] = []
    for number in range(int(load.rate * load.seconds_max)):
        call = _call(town, orders, random)
        key = f"{random.getrandbits(64):016x}" if call.method == "POST" and random.random() < KEY_RATE else None
        call = msgspec.structs.replace(call, due_s=number / load.rate, key=key)
        planned += [call, *_repeats(call, random, load.seconds_max)]
    return sorted(planned, key=lambda call: call.due_s)


def _repeats(call: Planned, random: Random, seconds: float) -> list[Planned]:
    due_s = call.due_s + random.random() * REPEAT_AFTER_MAX_S
    repeats = call.key is not None and random.random() < REPEAT_RATE and due_s < seconds
    return [msgspec.structs.replace(call, due_s=due_s)] if repeats else []


def _call(town: Town, orders: Iterator[int], random: Random) -> Planned:
    (kind,) = random.choices(list(KINDS), list(KINDS.values()))
    item_id, user_id, amount = random.choice(town.items), random.choice(town.users), random.randint(1, 5)
    match kind:
        case "checkout":
            order = next(orders)
            return Planned(0, "POST", "/orders/checkout/{}", expected=(status_of(order),), order=order)
        case "find":
            return Planned(0, "GET", random.choice(looks((user_id,), (item_id,), (random.choice(town.orders),))))
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
