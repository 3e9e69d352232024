"""Every call of the contract, as the tests go through them one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from e2e.shop import a_user, an_item, an_order


@dataclass(frozen=True)
class Call:
    """One call: its method, its path with {names}, and what makes a path that succeeds.

    `ids` and `amounts` name the segments by kind; an amount's value is the least one that is allowed.
    """

    method: str
    template: str
    ids: dict[str, Callable[[], str]]
    amounts: dict[str, int]

    def __str__(self) -> str:
        return f"{self.method} {self.template}"

    def values(self) -> dict[str, str]:
        """Return what makes the call succeed, by name."""
        numbers = {name: str(max(least, 1)) for name, least in self.amounts.items()}
        return {name: make() for name, make in self.ids.items()} | numbers

    def path(self, **values: str) -> str:
        """Return the path, with these values of {names}."""
        return self.template.format(**(self.values() | values))


def rich() -> str:
    """Return a user with credit."""
    return a_user(credit=100)


def stocked() -> str:
    """Return an item with stock."""
    return an_item(stock=100, price=5)


def payable() -> str:
    """Return an order whose checkout succeeds."""
    return an_order(rich(), [(stocked(), 1)])


POSTS = (
    Call("POST", "/orders/create/{user_id}", {"user_id": rich}, {}),
    Call(
        "POST",
        "/orders/addItem/{order_id}/{item_id}/{quantity}",
        {"order_id": payable, "item_id": stocked},
        {"quantity": 1},
    ),
    Call("POST", "/orders/checkout/{order_id}", {"order_id": payable}, {}),
    Call(
        "POST",
        "/orders/batch_init/{n}/{n_items}/{n_users}/{item_price}",
        {},
        {"n": 1, "n_items": 1, "n_users": 1, "item_price": 0},
    ),
    Call("POST", "/stock/item/create/{price}", {}, {"price": 0}),
    Call("POST", "/stock/add/{item_id}/{amount}", {"item_id": stocked}, {"amount": 1}),
    Call("POST", "/stock/subtract/{item_id}/{amount}", {"item_id": stocked}, {"amount": 1}),
    Call(
        "POST",
        "/stock/batch_init/{n}/{starting_stock}/{item_price}",
        {},
        {"n": 1, "starting_stock": 0, "item_price": 0},
    ),
    Call("POST", "/payment/create_user", {}, {}),
    Call("POST", "/payment/add_funds/{user_id}/{amount}", {"user_id": rich}, {"amount": 1}),
    Call("POST", "/payment/pay/{user_id}/{amount}", {"user_id": rich}, {"amount": 1}),
    Call("POST", "/payment/batch_init/{n}/{starting_money}", {}, {"n": 1, "starting_money": 0}),
)
GETS = (
    Call("GET", "/orders/find/{order_id}", {"order_id": payable}, {}),
    Call("GET", "/stock/find/{item_id}", {"item_id": stocked}, {}),
    Call("GET", "/payment/find_user/{user_id}", {"user_id": rich}, {}),
)
CALLS = POSTS + GETS
