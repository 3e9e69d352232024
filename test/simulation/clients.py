"""The shop's clients: a few of them, on so few items, users and orders that they meet all the time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

from histories.model import Invocation, Ok, Outcome, Unknown
from histories.recorder import Recorder
from simulation.web import Gateway

THINK_S = 0.4
RETRY_S = 0.3
ASK_AGAIN_MAX_S = 15.0
KEY_RATE = 0.5
KEY_REUSE_RATE = 0.02


@dataclass
class Shop:
    """What there is to buy, to pay with, and to check out."""

    items: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)


class Client:
    """Calls one thing after the other; with a key it asks again until it knows."""

    def __init__(self, name: str, random: Random, gateway: Gateway, recorder: Recorder) -> None:
        self._name = name
        self._random = random
        self._gateway = gateway
        self._recorder = recorder
        self._keys = 0

    async def post(self, path: str, *, surely: bool = False) -> Outcome:
        """Post, with a key when the outcome has to be known."""
        if not surely and self._random.random() > KEY_RATE:
            return await self._call(Invocation(self._name, "POST", path, None))
        self._keys += self._random.random() > KEY_REUSE_RATE
        invocation = Invocation(self._name, "POST", path, f"{self._name}-{self._keys}")
        deadline_s = asyncio.get_running_loop().time() + ASK_AGAIN_MAX_S
        outcome = await self._call(invocation)
        while isinstance(outcome, Unknown) and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(RETRY_S)
            outcome = await self._call(invocation)
        return outcome

    async def get(self, path: str) -> Outcome:
        """Get, once."""
        return await self._call(Invocation(self._name, "GET", path, None))

    async def create(self, path: str, name: str) -> str | None:
        """Return the id of what was created."""
        outcome = await self.post(path, surely=True)
        return outcome.body[name] if isinstance(outcome, Ok) else None

    async def _call(self, invocation: Invocation) -> Outcome:
        number = self._recorder.began(invocation)
        outcome = await self._gateway.forward(invocation)
        self._recorder.ended(number, outcome)
        return outcome


async def open_shop(client: Client, shop: Shop, random: Random) -> None:
    """Create items and users: goods and money are scarce."""
    for _ in range(random.randint(1, 3)):
        item_id = await client.create(f"/stock/item/create/{random.randint(1, 5)}", "item_id")
        if item_id:
            await client.post(f"/stock/add/{item_id}/{random.randint(1, 12)}", surely=True)
            shop.items.append(item_id)
    for _ in range(random.randint(1, 3)):
        user_id = await client.create("/payment/create_user", "user_id")
        if user_id:
            await client.post(f"/payment/add_funds/{user_id}/{random.randint(5, 40)}", surely=True)
            shop.users.append(user_id)


async def open_numbered_shop(client: Client, shop: Shop, random: Random) -> None:
    """The same by batch_init."""
    items, users, orders = random.randint(1, 3), random.randint(1, 3), random.randint(2, 6)
    price = random.randint(1, 5)
    await client.post(f"/stock/batch_init/{items}/{random.randint(1, 8)}/{price}", surely=True)
    await client.post(f"/payment/batch_init/{users}/{random.randint(5, 40)}", surely=True)
    await client.post(f"/orders/batch_init/{orders}/{items}/{users}/{price}", surely=True)
    shop.items += [str(number) for number in range(items)]
    shop.users += [str(number) for number in range(users)]
    shop.orders += [str(number) for number in range(orders)]


async def buy(client: Client, shop: Shop, random: Random, until_s: float) -> None:
    """Order, check out, and everything else, until the time is over."""
    while asyncio.get_running_loop().time() < until_s:
        act = random.choices(ACTS, WEIGHTS)[0]
        await act(client, shop, random)
        await asyncio.sleep(random.uniform(0.0, 2 * THINK_S))


async def order(client: Client, shop: Shop, random: Random) -> None:
    """Make an order of one to three lines, and check it out most of the time."""
    order_id = await client.create(f"/orders/create/{random.choice(shop.users)}", "order_id")
    if order_id is None:
        return
    for _ in range(random.randint(1, 3)):
        await client.post(f"/orders/addItem/{order_id}/{random.choice(shop.items)}/{random.randint(1, 3)}")
    shop.orders.append(order_id)
    await check_out(client, shop, random, order_id)


async def check_out(client: Client, shop: Shop, random: Random, order_id: str | None = None) -> None:
    """Check out some order, sometimes twice at once, and look at it."""
    if not shop.orders:
        return
    path = order_id or random.choice(shop.orders)
    times = random.choice((1, 1, 1, 2))
    await asyncio.gather(*(client.post(f"/orders/checkout/{path}") for _ in range(times)))
    if random.random() < 0.5:
        await client.get(f"/orders/find/{path}")


async def add_item(client: Client, shop: Shop, random: Random) -> None:
    """Add to some order, which may be paid, or being checked out."""
    if shop.orders:
        path = f"{random.choice(shop.orders)}/{random.choice(shop.items)}/{random.randint(1, 2)}"
        await client.post(f"/orders/addItem/{path}")


async def move_stock(client: Client, shop: Shop, random: Random) -> None:
    """Add or subtract, and look meanwhile and afterwards."""
    item_id = random.choice(shop.items)
    path = f"/stock/{random.choice(('add', 'subtract'))}/{item_id}/{random.randint(1, 4)}"
    await _move(client, path, f"/stock/find/{item_id}")


async def move_money(client: Client, shop: Shop, random: Random) -> None:
    """Add funds or pay, and look meanwhile and afterwards."""
    user_id = random.choice(shop.users)
    path = f"/payment/{random.choice(('add_funds', 'pay'))}/{user_id}/{random.randint(1, 9)}"
    await _move(client, path, f"/payment/find_user/{user_id}")


async def _move(client: Client, path: str, look: str) -> None:
    meanwhile = asyncio.ensure_future(client.get(look))
    await client.post(path)
    await client.get(look)
    await meanwhile


async def init_again(client: Client, shop: Shop, random: Random) -> None:
    """Replace the numbered orders while they are being checked out."""
    if "0" in shop.orders:
        init = f"/orders/batch_init/2/{len(shop.items)}/{len(shop.users)}/{random.randint(1, 5)}"
        await asyncio.gather(client.post("/orders/checkout/0"), client.post(init))


async def look_at_all(client: Client, shop: Shop) -> None:
    """Read everything, at the end."""
    paths = [f"/stock/find/{item_id}" for item_id in shop.items]
    paths += [f"/payment/find_user/{user_id}" for user_id in shop.users]
    paths += [f"/orders/find/{order_id}" for order_id in shop.orders]
    await asyncio.gather(*(client.get(path) for path in paths))


ACTS = (order, check_out, add_item, move_stock, move_money, init_again)
WEIGHTS = (6, 3, 1, 2, 2, 1)
