"""Clients that buy without a pause while something happens to the system, and the audit of what they bought.

with Load(strict) as load:
    system.kill("stock-web-0")
load.audit()
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self
from uuid import uuid4

from e2e.client import Answer, in_parallel, post
from e2e.shop import AMOUNT_MAX, credit, order, stock

CLIENTS = 10
PRICE = 5
QUANTITY = 2
COST = PRICE * QUANTITY + 1
RETRY_S = 0.2
OUTAGE_MAX_S = 120.0
PATIENCE_S = 19.0
"""What a service waits before it says 503, a little less."""

Ask = Callable[[str], Answer]


@dataclass(frozen=True)
class Case:
    """What a client has, and what its checkout is answered."""

    stock: int
    credit: int
    status: int


CASES = (Case(3, COST, 200), Case(2, COST + 1, 200), Case(1, COST, 409), Case(3, COST - 1, 402))


@dataclass(frozen=True)
class Purchase:
    """A user, an item and an order that nobody else uses, and how the checkout was answered."""

    case: Case
    user_id: str
    item_id: str
    order_id: str
    status: int

    def differences(self) -> list[str]:
        """Return what is not as the case has it: a refused checkout leaves no trace, a paid one its exact cost."""
        paid = self.case.status == 200
        found = (self.status, order(self.order_id)["paid"], credit(self.user_id), stock(self.item_id))
        expected = (
            self.case.status,
            paid,
            self.case.credit - COST * paid,
            self.case.stock - QUANTITY * paid,
        )
        return [] if found == expected else [f"order {self.order_id}: {found}, not {expected}"]


def strict(path: str) -> Answer:
    """Post once, with no key: only the gateway may repeat it.  Anything but yes and no is a failure."""
    answer = post(path)
    assert answer.status < 500, f"{path}: {answer.status} {answer.text}"
    assert answer.status != 429, f"{path}: {answer.status} {answer.text}"
    return answer


def patient(path: str) -> Answer:
    """Post with a key, and ask again with the same key until there is a yes or a no."""
    key = uuid4().hex
    deadline = time.monotonic() + OUTAGE_MAX_S
    while time.monotonic() < deadline:
        try:
            answer = post(path, key)
            if answer.status < 500 and answer.status != 429:
                return answer
        except (OSError, HTTPException):
            pass
        time.sleep(RETRY_S)
    raise AssertionError(f"{path}: no yes and no no within {OUTAGE_MAX_S:.0f} s")


def waiting(path: str) -> Answer:
    """Post like `patient`; but what is refused for want of an outcome must have been waited for."""
    key = uuid4().hex
    while True:
        started = time.monotonic()
        answer = post(path, key)
        if answer.status != 503:
            assert answer.status < 500, f"{path}: {answer.status} {answer.text}"
            return answer
        assert time.monotonic() - started > PATIENCE_S, f"{path}: {answer.text} after {time.monotonic() - started} s"


class Load:
    """Clients that buy while the `with` block runs.  One item is in every order."""

    def __init__(self, ask: Ask, clients: int = CLIENTS) -> None:
        self._ask = ask
        self._over = Event()
        self._lock = Lock()
        self._numbers = iter(range(10**9))
        self._threads = [Thread(target=self._buy_on, daemon=True) for _ in range(clients)]
        self.purchases: list[Purchase] = []
        self.failures: list[str] = []
        self.popular = ""

    def __enter__(self) -> Self:
        self.popular = self._id("/stock/item/create/1")
        self._yes(f"/stock/add/{self.popular}/{AMOUNT_MAX}")
        for thread in self._threads:
            thread.start()
        self.wait_for(2 * len(self._threads))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many more purchases have ended, or something went wrong."""
        goal = len(self.purchases) + count
        while len(self.purchases) < goal and not self.failures:
            time.sleep(0.05)

    def audit(self) -> None:
        """Whatever happened: every answer was clear, and users, items and orders are as answered, one by one."""
        assert self.failures == []
        assert [difference for found in in_parallel(Purchase.differences, self.purchases) for difference in found] == []
        sold = sum(purchase.case.status == 200 for purchase in self.purchases)
        assert stock(self.popular) == AMOUNT_MAX - sold

    def _buy_on(self) -> None:
        while not self._over.is_set() and not self.failures:
            with self._lock:
                case = CASES[next(self._numbers) % len(CASES)]
            started = time.monotonic()
            try:
                self.purchases.append(self._buy(case))
            except (AssertionError, OSError, HTTPException) as why:
                self.failures.append(f"after {time.monotonic() - started:.1f} s: {why!r}")

    def _buy(self, case: Case) -> Purchase:
        user_id, item_id = self._id("/payment/create_user"), self._id(f"/stock/item/create/{PRICE}")
        self._yes(f"/payment/add_funds/{user_id}/{case.credit}")
        self._yes(f"/stock/add/{item_id}/{case.stock}")
        order_id = self._id(f"/orders/create/{user_id}")
        self._yes(f"/orders/addItem/{order_id}/{item_id}/{QUANTITY}")
        self._yes(f"/orders/addItem/{order_id}/{self.popular}/1")
        return Purchase(case, user_id, item_id, order_id, self._ask(f"/orders/checkout/{order_id}").status)

    def _yes(self, path: str) -> Answer:
        answer = self._ask(path)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text}"
        return answer

    def _id(self, path: str) -> str:
        (new_id,) = self._yes(path).json.values()
        return str(new_id)
