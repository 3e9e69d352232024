"""The shop as it should be, in memory, its calls interleaved at random: histories that have nothing wrong.

It follows the design, not the checker: a checkout reserves and charges one after the other, undoes all before it is
refused, and is joined by whoever checks the same order out meanwhile.  `bug` names one thing that it then does wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from inspect import GEN_CREATED, getgeneratorstate
from itertools import count
from random import Random

from histories.model import Invocation, Ok, Operation, Outcome, Refused, Unknown, parse
from histories.recorder import Recorder

Work = Generator[None, None, Outcome]
GIVES_UP = 0.15
KEY_RATE = 0.3
INIT_RATE = 0.3
IS_LOST = 0.3
"""Of the calls whose client gives up, how many were never carried out."""


@dataclass
class Amount:
    """An item or a user: what is free."""

    free: int = 0
    price: int = 0


@dataclass
class Checkout:
    """One that is open, or was."""

    outcome: Outcome | None = None
    is_superseded: bool = False


@dataclass
class Order:
    """An order."""

    user_id: str
    lines: dict[str, int] = field(default_factory=dict)
    total: int = 0
    paid: bool = False
    open: Checkout | None = None


class Shop:
    """Carries out calls, each as a generator that does one thing at a time."""

    def __init__(self, random: Random, bug: str = "") -> None:
        self._random = random
        self._bug = bug
        self._ids = count()
        self._results: dict[str, Outcome | None] = {}
        self.unattended: list[Work] = []
        self.items: dict[str, Amount] = {}
        self.users: dict[str, Amount] = {}
        self.orders: dict[str, Order] = {}

    def work(self, invocation: Invocation) -> Work:
        """Return a call at work: at every step it does one thing, and in the end it is answered."""
        call = parse(invocation)
        assert call is not None
        method: Callable[..., Work] = getattr(self, f"_{call.verb}")
        work = method(*call.ids, *call.numbers)
        return work if invocation.key is None else self._once(f"{invocation.key} {invocation.path}", work)

    def _once(self, key: str, work: Work) -> Work:
        yield
        if key in self._results and self._bug != "a key acts every time":
            while (known := self._results[key]) is None:
                yield
            return known
        self._results[key] = None
        self._results[key] = yield from work
        return self._results[key] or Unknown()

    # --- items and users

    def _create_item(self, price: int) -> Work:
        yield
        item_id = f"item{next(self._ids)}"
        self.items[item_id] = Amount(0, price)
        return Ok({"item_id": item_id})

    def _create_user(self) -> Work:
        yield
        user_id = f"user{next(self._ids)}"
        self.users[user_id] = Amount()
        return Ok({"user_id": user_id})

    def _add(self, item_id: str, amount: int) -> Work:
        return self._change(self.items.get(item_id), amount, 409)

    def _subtract(self, item_id: str, amount: int) -> Work:
        return self._change(self.items.get(item_id), -amount, 409)

    def _add_funds(self, user_id: str, amount: int) -> Work:
        return self._change(self.users.get(user_id), amount, 402)

    def _pay(self, user_id: str, amount: int) -> Work:
        return self._change(self.users.get(user_id), -amount, 402)

    def _change(self, amount: Amount | None, by: int, refusal: int) -> Work:
        yield
        if amount is None:
            return Refused(404)
        before = amount.free
        if self._bug == "read and write are two steps":
            yield
        if before + by < 0 and self._bug != "what is short is taken":
            return Refused(refusal)
        amount.free = before + by
        yield
        return Ok(f"now: {amount.free if self._bug == 'tells what is there later' else before + by}")

    def _find_item(self, item_id: str) -> Work:
        yield
        item = self.items.get(item_id)
        found = {"stock": item.free, "price": item.price} if item else None
        yield
        return Refused(404) if found is None else Ok(dict(found))

    def _find_user(self, user_id: str) -> Work:
        yield
        user = self.users.get(user_id)
        found = {"user_id": user_id, "credit": user.free} if user else None
        yield
        return Refused(404) if found is None else Ok(dict(found))

    def _init_items(self, number: int, stock: int, price: int) -> Work:
        for item_id in map(str, range(number)):
            yield
            item = self.items.setdefault(item_id, Amount())
            item.free, item.price = stock, price
        return Ok({"msg": "done"})

    def _init_users(self, number: int, money: int) -> Work:
        for user_id in map(str, range(number)):
            yield
            self.users.setdefault(user_id, Amount()).free = money
        return Ok({"msg": "done"})

    # --- orders

    def _create_order(self, user_id: str) -> Work:
        yield
        order_id = f"order{next(self._ids)}"
        self.orders[order_id] = Order(user_id)
        return Ok({"order_id": order_id})

    def _find_order(self, order_id: str) -> Work:
        yield
        order = self.orders.get(order_id)
        if order is None:
            return Refused(404)
        lines = [[item_id, quantity] for item_id, quantity in order.lines.items()]
        found = {"order_id": order_id, "paid": order.paid, "items": lines, "user_id": order.user_id}
        found["total_cost"] = order.total
        yield
        return Ok(found)

    def _add_item(self, order_id: str, item_id: str, quantity: int) -> Work:
        yield
        if order_id not in self.orders:
            return Refused(404)
        if self._is_closed(self.orders[order_id]):
            return Refused(409)
        yield
        if item_id not in self.items:
            return Refused(404)
        price = self.items[item_id].price
        yield
        order = self.orders[order_id]
        if self._is_closed(order) and self._bug != "lines are added to what is checked out":
            return Refused(409)
        order.lines[item_id] = order.lines.get(item_id, 0) + quantity
        order.total += quantity * price
        return Ok("added")

    def _is_closed(self, order: Order) -> bool:
        return order.paid or order.open is not None

    def _init_orders(self, number: int, items: int, users: int, price: int) -> Work:
        for order_id in map(str, range(number)):
            yield
            if order_id in self.orders and (open_ := self.orders[order_id].open):
                open_.is_superseded = True
            first = self._random.randrange(items)
            lines = {str(first): 2} if items == 1 else {str(first): 1, str((first + 1) % items): 1}
            self.orders[order_id] = Order(str(self._random.randrange(users)), lines, 2 * price)
        return Ok({"msg": "done"})

    def _checkout(self, order_id: str) -> Work:
        yield
        order = self.orders.get(order_id)
        if order is None:
            return Refused(404)
        if order.paid:
            return Ok("paid")
        if order.open is None:
            order.open = Checkout()
            return (yield from self._check_out(order, order.open))
        joined = order.open
        while joined.outcome is None:
            yield
        return joined.outcome

    def _check_out(self, order: Order, checkout: Checkout) -> Work:
        parts = [(self.items.get(item_id), quantity, 409) for item_id, quantity in order.lines.items()]
        parts.append((self.users.get(order.user_id), order.total, 402))
        self._random.shuffle(parts)
        held: list[tuple[Amount, int]] = []
        refusals: list[int] = []
        for amount, wanted, refusal in parts:
            yield
            if amount is None or amount.free < wanted:
                refusals.append(404 if amount is None else refusal)
            else:
                amount.free -= wanted
                held.append((amount, wanted))
        yield
        return (yield from self._end(order, checkout, held, refusals))

    def _end(self, order: Order, checkout: Checkout, held: list[tuple[Amount, int]], refusals: list[int]) -> Work:
        if not refusals and not checkout.is_superseded:
            order.paid = self._bug != "paid is forgotten"
            checkout.outcome, order.open = Ok("paid"), None
            self._take_again(held)
            return checkout.outcome
        refused = Refused(min(refusals, key=(409, 404, 402).index, default=409))
        undoing = self._undo(held, refused)
        if self._bug == "refused before all is undone":
            self.unattended.append(undoing)
        else:
            yield from undoing
        checkout.outcome, order.open = refused, None
        return refused

    def _undo(self, held: list[tuple[Amount, int]], refused: Refused) -> Work:
        for amount, wanted in held:
            yield
            amount.free += 0 if self._bug == "nothing is undone" else wanted
        yield
        return refused

    def _take_again(self, held: list[tuple[Amount, int]]) -> None:
        for amount, wanted in held if self._bug == "all is taken twice" else []:
            amount.free -= min(wanted, amount.free)


class Customers:
    """Calls, up to `at_once` of them under way, some of them given up by their clients."""

    def __init__(self, shop: Shop, random: Random, at_once: int, gives_up: float = GIVES_UP) -> None:
        self._shop = shop
        self._random = random
        self._at_once = at_once
        self._gives_up = gives_up
        self._clock = count()
        self._recorder = Recorder(self._clock.__next__)
        self._waiting: list[tuple[int, Work]] = []
        self._names = count()

    def history(self) -> list[Operation]:
        """Return what was recorded."""
        return self._recorder.history()

    def surely(self, path: str) -> Outcome:
        """Make a call and wait for its outcome, with nothing else going on."""
        invocation = self._invocation(path, None)
        number, work = self._recorder.began(invocation), self._shop.work(invocation)
        while True:
            try:
                next(work)
            except StopIteration as stop:
                self._recorder.ended(number, stop.value)
                outcome: Outcome = stop.value
                return outcome

    def call(self, path: str, key: str | None = None) -> None:
        """Begin a call, once there is room."""
        while len(self._waiting) >= self._at_once:
            self._go_on()
        invocation = self._invocation(path, key)
        self._waiting.append((self._recorder.began(invocation), self._shop.work(invocation)))

    def wait(self) -> None:
        """Wait until all calls are answered, or given up; of what was given up, some go on behind their backs."""
        while self._waiting:
            self._go_on()

    def _invocation(self, path: str, key: str | None) -> Invocation:
        return Invocation(f"c{next(self._names)}", "GET" if "/find" in path else "POST", path, key)

    def _go_on(self) -> None:
        if self._shop.unattended and self._random.random() < 0.3:
            self._work_on(self._random.choice(self._shop.unattended))
            return
        place = self._random.randrange(len(self._waiting))
        number, work = self._waiting[place]
        try:
            if self._random.random() < self._gives_up / 4:
                self._give_up(place)
            else:
                next(work)
        except StopIteration as stop:
            del self._waiting[place]
            self._recorder.ended(number, stop.value)

    def _give_up(self, place: int) -> None:
        number, work = self._waiting.pop(place)
        self._recorder.ended(number, Unknown())
        if getgeneratorstate(work) != GEN_CREATED or self._random.random() > IS_LOST:
            self._shop.unattended.append(work)

    def _work_on(self, work: Work) -> None:
        try:
            next(work)
        except StopIteration:
            self._shop.unattended.remove(work)


def a_history(random: Random, calls: int = 60, at_once: int = 6, bug: str = "") -> list[Operation]:
    """Return what customers of a small shop were told."""
    customers = Customers(Shop(random, bug), random, at_once)
    things = _open(customers, random)
    for number in range(calls):
        path = _a_call(random, *things)
        key = f"k{number}" if random.random() < KEY_RATE and "/find" not in path else None
        for _ in range(1 if key is None else random.randint(1, 3)):
            customers.call(path, key)
    customers.wait()
    for path in _looks(*things):
        customers.surely(path)
    return customers.history()


def _open(customers: Customers, random: Random) -> tuple[list[str], list[str], list[str]]:
    items, users, orders = ["0", "1"], ["0", "1"], ["0", "1"]
    customers.surely(f"/stock/batch_init/2/{random.randint(0, 6)}/{random.randint(1, 3)}")
    customers.surely(f"/payment/batch_init/2/{random.randint(0, 15)}")
    customers.surely(f"/orders/batch_init/2/2/2/{random.randint(1, 3)}")
    items.append(_made(customers, f"/stock/item/create/{random.randint(1, 3)}"))
    users.append(_made(customers, "/payment/create_user"))
    customers.surely(f"/stock/add/{items[-1]}/{random.randint(1, 8)}")
    customers.surely(f"/payment/add_funds/{users[-1]}/{random.randint(1, 20)}")
    orders += [_made(customers, f"/orders/create/{random.choice(users)}") for _ in range(3)]
    for order_id in orders[2:] * 2:
        customers.surely(f"/orders/addItem/{order_id}/{random.choice(items)}/{random.randint(1, 3)}")
    return items, users, orders


def _made(customers: Customers, path: str) -> str:
    outcome = customers.surely(path)
    assert isinstance(outcome, Ok)
    assert isinstance(outcome.body, dict)
    return str(next(iter(outcome.body.values())))


def _a_call(random: Random, items: list[str], users: list[str], orders: list[str]) -> str:
    item_id, user_id, order_id = random.choice(items), random.choice(users), random.choice(orders)
    number = random.randint(1, 4)
    checkout = f"/orders/checkout/{order_id}"
    paths = (
        *_looks([item_id], [user_id], [order_id]) * 2,
        *(checkout,) * 6,
        f"/stock/add/{item_id}/{number}",
        f"/stock/subtract/{item_id}/{number}",
        f"/payment/add_funds/{user_id}/{number}",
        f"/payment/pay/{user_id}/{number}",
        *(f"/orders/addItem/{order_id}/{item_id}/{number}",) * 2,
        *_inits(random) * (random.random() < INIT_RATE),
    )
    return random.choice(paths)


def _inits(random: Random) -> tuple[str, ...]:
    price = random.randint(1, 3)
    return f"/stock/batch_init/2/{price}/{price}", f"/payment/batch_init/2/{price}", f"/orders/batch_init/2/2/2/{price}"


def _looks(items: list[str], users: list[str], orders: list[str]) -> tuple[str, ...]:
    return (
        *(f"/stock/find/{item_id}" for item_id in items),
        *(f"/payment/find_user/{user_id}" for user_id in users),
        *(f"/orders/find/{order_id}" for order_id in orders),
    )
