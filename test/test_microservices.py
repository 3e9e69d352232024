"""The three services through the gateway, as their users test them: `cd test && python test_microservices.py`."""
# ruff: noqa: PT009 -- run by unittest, whose assertions say what differed

import unittest
from typing import Any

import utils as tu


class TestMicroservices(unittest.TestCase):
    """One test a service, from its first call to its last."""

    def test_stock(self) -> None:
        item_id = tu.create_item(5)["item_id"]
        self.assertEqual(tu.find_item(item_id), {"price": 5, "stock": 0})

        self.assert_done(tu.add_stock(item_id, 50))
        self.assertEqual(tu.find_item(item_id)["stock"], 50)

        self.assert_refused(tu.subtract_stock(item_id, 200))
        self.assertEqual(tu.find_item(item_id)["stock"], 50)

        self.assert_done(tu.subtract_stock(item_id, 15))
        self.assertEqual(tu.find_item(item_id)["stock"], 35)

    def test_payment(self) -> None:
        user_id = tu.create_user()["user_id"]
        self.assertEqual(tu.find_user(user_id), {"user_id": user_id, "credit": 0})

        self.assert_done(tu.add_credit_to_user(user_id, 15))
        self.assertEqual(tu.find_user(user_id)["credit"], 15)

        self.assert_refused(tu.payment_pay(user_id, 16))
        self.assertEqual(tu.find_user(user_id)["credit"], 15)

        self.assert_done(tu.payment_pay(user_id, 10))
        self.assertEqual(tu.find_user(user_id)["credit"], 5)

    def test_order(self) -> None:
        user_id = tu.create_user()["user_id"]
        plentiful, scarce = an_item(price=5, stock=15), an_item(price=5, stock=1)
        order_id = tu.create_order(user_id)["order_id"]
        self.assert_done(tu.add_item_to_order(order_id, plentiful, 1))
        self.assert_done(tu.add_item_to_order(order_id, scarce, 1))
        unpaid = an_order(order_id, user_id, [[plentiful, 1], [scarce, 1]], total_cost=10)
        self.assertEqual(with_sorted_items(tu.find_order(order_id)), unpaid)

        # Out of stock: what was taken of the other item is back when the refusal arrives.
        self.assert_done(tu.subtract_stock(scarce, 1))
        self.assert_refused(tu.checkout_order(order_id).status_code)
        self.assertEqual(tu.find_item(plentiful)["stock"], 15)
        self.assertEqual(tu.find_user(user_id)["credit"], 0)

        # In stock, but without credit: both items are back when the refusal arrives.
        self.assert_done(tu.add_stock(scarce, 15))
        self.assert_refused(tu.checkout_order(order_id).status_code)
        self.assertEqual(tu.find_item(plentiful)["stock"], 15)
        self.assertEqual(tu.find_item(scarce)["stock"], 15)
        self.assertEqual(with_sorted_items(tu.find_order(order_id)), unpaid)

        # In stock and with credit: paid, and exactly the order's cost and quantities are gone.
        self.assert_done(tu.add_credit_to_user(user_id, 15))
        self.assertEqual(tu.find_user(user_id)["credit"], 15)
        self.assert_done(tu.checkout_order(order_id).status_code)
        self.assertEqual(with_sorted_items(tu.find_order(order_id)), unpaid | {"paid": True})
        self.assertEqual(tu.find_item(plentiful)["stock"], 14)
        self.assertEqual(tu.find_item(scarce)["stock"], 14)
        self.assertEqual(tu.find_user(user_id)["credit"], 5)

    def assert_done(self, status_code: int) -> None:
        self.assertTrue(tu.status_code_is_success(status_code), status_code)

    def assert_refused(self, status_code: int) -> None:
        self.assertTrue(tu.status_code_is_failure(status_code), status_code)


def an_item(price: int, stock: int) -> str:
    item_id = str(tu.create_item(price)["item_id"])
    assert tu.status_code_is_success(tu.add_stock(item_id, stock))
    return item_id


def an_order(order_id: str, user_id: str, items: list[list[Any]], total_cost: int) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "paid": False,
        "items": sorted(items),
        "user_id": user_id,
        "total_cost": total_cost,
    }


def with_sorted_items(order: dict[str, Any]) -> dict[str, Any]:
    """Return the order with its lines in an order that the contract does not promise."""
    return order | {"items": sorted(order["items"])}


if __name__ == "__main__":
    unittest.main()
