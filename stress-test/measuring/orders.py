"""Orders to check out: every one of them exists, can be paid, and is handed out once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import requests

ITEM_COUNT = USER_COUNT = 10_000
PLENTY = 1_000_000_000
PRICE = 1
READERS = 16
BATCH_TIMEOUT_S = 120
FIND_TIMEOUT_S = 10


@dataclass
class OrderSupply:
    """The unpaid orders of the system behind `gateway_url`, made by batch_init when too few are left."""

    gateway_url: str
    order_count: int
    next_order: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_order = self.order_count

    def take(self, least: int) -> range:
        """Return all orders that were not handed out yet, at least `least` of them."""
        if self.order_count - self.next_order < least:
            self.replenish()
        return range(self.next_order, self.order_count)

    def replenish(self) -> None:
        """Replace all items, users and orders by new ones."""
        self.post(f"/stock/batch_init/{ITEM_COUNT}/{PLENTY}/{PRICE}")
        self.post(f"/payment/batch_init/{USER_COUNT}/{PLENTY}")
        self.post(f"/orders/batch_init/{self.order_count}/{ITEM_COUNT}/{USER_COUNT}/{PRICE}")
        self.next_order = 0

    def post(self, path: str) -> None:
        """Post, and raise for any answer but 2xx."""
        requests.post(self.gateway_url + path, timeout=BATCH_TIMEOUT_S).raise_for_status()

    def used(self, issued: int) -> None:
        """Note that the next `issued` orders are spent."""
        self.next_order += issued

    def paid_count(self, orders: range) -> int:
        """Ask the system how many of `orders` are paid."""
        with ThreadPoolExecutor(READERS) as readers:
            return sum(readers.map(self.is_paid, orders))

    def is_paid(self, order: int) -> bool:
        """Ask the system whether `order` is paid."""
        answer = requests.get(f"{self.gateway_url}/orders/find/{order}", timeout=FIND_TIMEOUT_S)
        answer.raise_for_status()
        return bool(answer.json()["paid"])


class EndlessSupply(OrderSupply):
    """Order numbers for a system that keeps no orders."""

    def __init__(self, gateway_url: str) -> None:
        super().__init__(gateway_url, PLENTY)
        self.next_order = 0

    def paid_count(self, orders: range) -> int:
        """Return that all are: nothing is kept, so nothing can be asked."""
        return len(orders)
