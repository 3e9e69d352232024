"""The checker of histories accepts what is right; of what is wrong it names the call and its item, user or order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from random import Random

import pytest
from histories.amounts import Amounts, Changed, Created, Found
from histories.checker import check
from histories.model import Call, Invocation, Ok, Operation, OrderFacts, Refused, Unknown, dump, load, parse
from histories.notation import told
from histories.recorder import Recorder
from histories.search import Search, Step
from histories.shop import Customers, Shop, a_history
from histories.windows import Windows
from hypothesis import given, settings
from hypothesis import strategies as st

SHOP = """
    0-1   /stock/item/create/5               -> {"item_id": "apple"}
    2-3   /stock/add/apple/10                -> now 10
    4-5   /payment/create_user               -> {"user_id": "ann"}
    6-7   /payment/add_funds/ann/100         -> now 100
    8-9   /orders/create/ann                 -> {"order_id": "o"}
    10-11 /orders/addItem/o/apple/2          -> added
"""
"""Ten apples at 5, Ann with a credit of 100, and her order of two of them.  Nobody is at it after 11."""

PEARS = """
    12-13 /stock/item/create/1               -> {"item_id": "pear"}
    14-15 /stock/add/pear/1                  -> now 1
    16-17 /orders/create/ann                 -> {"order_id": "p"}
    18-19 /orders/addItem/p/apple/1          -> added
    20-21 /orders/addItem/p/pear/1           -> added
"""
"""One pear at 1, and an order of an apple and a pear: 6 in all."""

NUMBERED = """
    0-1 /stock/batch_init/2/5/3              -> {"msg": "done"}
    2-3 /payment/batch_init/1/50             -> {"msg": "done"}
    4-5 /orders/batch_init/2/2/1/3           -> {"msg": "done"}
"""
"""Two items, five of each at 3; one user with 50; two orders, which have one of each item: there are no others."""

UNPAID = '{"order_id": "o", "paid": false, "items": [["apple", 2]], "user_id": "ann", "total_cost": 10}'
PAID = UNPAID.replace("false", "true")
MORE = '{"order_id": "o", "paid": true, "items": [["apple", 3]], "user_id": "ann", "total_cost": 15}'
BOTH = '{"order_id": "0", "paid": false, "items": [["0", 1], ["1", 1]], "user_id": "0", "total_cost": 6}'


def stock(amount: int, price: int = 5) -> str:
    return f'{{"stock": {amount}, "price": {price}}}'


def credit(amount: int, user_id: str = "ann") -> str:
    return f'{{"user_id": "{user_id}", "credit": {amount}}}'


# --- what is right


CLEAN = {
    "what was answered is read": f"""
        30-31 /orders/checkout/o             -> ok
        32-33 /stock/find/apple              -> {stock(8)}
        32-33 /payment/find_user/ann         -> {credit(90)}
        32-33 /orders/find/o                 -> {PAID}
    """,
    "adds at once, their answers in any order": f"""
        30-40 /stock/add/apple/1             -> now 16
        31-39 /stock/add/apple/2             -> now 12
        32-38 /stock/add/apple/3             -> now 15
        33-37 /stock/find/apple              -> {stock(15)}
    """,
    "a read during a write sees before or after": f"""
        30-40 /stock/add/apple/5             -> now 15
        31-32 /stock/find/apple              -> {stock(10)}
        33-34 /stock/find/apple              -> {stock(15)}
        41-42 /stock/find/apple              -> {stock(15)}
    """,
    "an unknown add that happened": f"""
        30-31 /stock/add/apple/5             -> unknown
        32-33 /stock/find/apple              -> {stock(15)}
    """,
    "an unknown add that never happened": f"""
        30-31 /stock/add/apple/5             -> unknown
        32-33 /stock/find/apple              -> {stock(10)}
        34-35 /stock/find/apple              -> {stock(10)}
    """,
    "an unknown add that happened much later": f"""
        30-31 /stock/add/apple/5             -> unknown
        32-33 /stock/find/apple              -> {stock(10)}
        34-35 /stock/add/apple/1             -> now 11
        36-37 /stock/find/apple              -> {stock(16)}
    """,
    "a call without an answer yet": f"""
        30-.. /stock/subtract/apple/4        -> unknown
        32-33 /stock/find/apple              -> {stock(6)}
    """,
    "an unknown pay that the same key settled": f"""
        30-31 /payment/pay/ann/60 key=k      -> unknown
        32-33 /payment/pay/ann/60 key=k      -> now 40
        34-35 /payment/pay/ann/60 key=k      -> now 40
        36-37 /payment/find_user/ann         -> {credit(40)}
    """,
    "a refusal that was for want of time, then the answer": """
        30-31 /payment/pay/ann/60 key=k      -> refused 429
        32-33 /payment/pay/ann/60 key=k      -> now 40
    """,
    "the same key for another call": f"""
        30-31 /payment/pay/ann/60 key=k      -> now 40
        32-33 /payment/pay/ann/61 key=k      -> refused 422
        34-35 /payment/find_user/ann         -> {credit(40)}
    """,
    "what a checkout holds is seen before it is refused": f"""
        30-31 /payment/pay/ann/95            -> now 5
        32-50 /orders/checkout/o             -> refused 402
        33-34 /stock/find/apple              -> {stock(8)}
        35-36 /stock/subtract/apple/9        -> refused 409
        37-38 /stock/add/apple/1             -> now 9
        39-40 /stock/find/apple              -> {stock(11)}
        51-52 /stock/find/apple              -> {stock(11)}
    """,
    "money that is held while goods are short": """
        30-31 /stock/subtract/apple/9        -> now 1
        32-50 /orders/checkout/o             -> refused 409
        33-34 /payment/pay/ann/91            -> refused 402
        51-52 /payment/pay/ann/91            -> now 9
    """,
    "two for the last goods: one is refused, or both are": """
        30-31 /stock/subtract/apple/8        -> now 2
        32-33 /orders/create/ann             -> {"order_id": "q"}
        34-35 /orders/addItem/q/apple/2      -> added
        40-60 /orders/checkout/o             -> ok
        41-61 /orders/checkout/q             -> refused 409
    """,
    "goods that were held by a checkout that was refused are refused to another": """
        30-31 /stock/subtract/apple/8        -> now 2
        32-33 /orders/create/poor            -> {"order_id": "q"}
        34-35 /orders/addItem/q/apple/2      -> added
        36-37 /payment/create_user           -> {"user_id": "poor"}
        38-39 /orders/create/poor            -> {"order_id": "r"}
        40-41 /orders/addItem/r/apple/2      -> added
        50-60 /orders/checkout/r             -> refused 402
        51-61 /orders/checkout/o             -> refused 409
    """,
    "many check out one order": f"""
        30-40 /orders/checkout/o             -> ok
        31-41 /orders/checkout/o             -> ok
        32-33 /orders/find/o                 -> {UNPAID}
        42-43 /orders/checkout/o             -> ok
        44-45 /stock/find/apple              -> {stock(8)}
        44-45 /payment/find_user/ann         -> {credit(90)}
    """,
    "who joins a checkout is told its reason, even if that has passed": """
        30-31 /payment/pay/ann/95            -> now 5
        32-50 /orders/checkout/o             -> refused 402
        34-35 /payment/add_funds/ann/20      -> now 25
        36-51 /orders/checkout/o             -> refused 402
        52-53 /orders/checkout/o             -> ok
    """,
    "an unknown checkout that was paid": f"""
        30-31 /orders/checkout/o             -> unknown
        32-33 /stock/find/apple              -> {stock(8)}
        34-35 /orders/find/o                 -> {UNPAID}
        36-37 /orders/find/o                 -> {PAID}
        38-39 /payment/find_user/ann         -> {credit(90)}
    """,
    "an unknown checkout that came to nothing, late": f"""
        30-31 /orders/checkout/o             -> unknown
        32-33 /stock/find/apple              -> {stock(8)}
        34-35 /payment/find_user/ann         -> {credit(90)}
        36-37 /payment/find_user/ann         -> {credit(100)}
        38-39 /stock/find/apple              -> {stock(10)}
        40-41 /orders/find/o                 -> {UNPAID}
    """,
    "an order that is being checked out takes no line": f"""
        30-40 /orders/checkout/o             -> ok
        31-32 /orders/addItem/o/apple/1      -> refused 409
        33-34 /orders/find/o                 -> {UNPAID}
        41-42 /orders/addItem/o/apple/1      -> refused 409
    """,
    "a line that was just in time is paid": f"""
        30-40 /orders/checkout/o             -> ok
        31-39 /orders/addItem/o/apple/1      -> added
        41-42 /orders/find/o                 -> {MORE}
        43-44 /payment/find_user/ann         -> {credit(85)}
    """,
    "an unknown line that was paid": f"""
        28-29 /orders/addItem/o/apple/1      -> unknown
        30-40 /orders/checkout/o             -> ok
        41-42 /stock/find/apple              -> {stock(7)}
        43-44 /payment/find_user/ann         -> {credit(85)}
    """,
    "what is not there": """
        30-31 /stock/find/ghost              -> refused 404
        30-31 /stock/add/ghost/1             -> refused 404
        30-31 /payment/pay/ghost/1           -> refused 404
        30-31 /orders/checkout/ghost         -> refused 404
        30-31 /orders/addItem/o/ghost/1      -> refused 404
        32-33 /orders/create/ghost           -> {"order_id": "g"}
        34-35 /orders/checkout/g             -> refused 404
    """,
    "of two lines one is short": f"""{PEARS}
        30-31 /stock/subtract/pear/1         -> now 0
        32-40 /orders/checkout/p             -> refused 409
        33-34 /stock/find/apple              -> {stock(9)}
        41-42 /stock/find/apple              -> {stock(10)}
        43-44 /payment/find_user/ann         -> {credit(100)}
    """,
}

CLEAN_NUMBERED = {
    "orders of batch_init, of which nobody knows what they are": """
        10-20 /orders/checkout/0             -> ok
        21-22 /stock/find/0                  -> {"stock": 4, "price": 3}
        23-24 /payment/find_user/0           -> {"user_id": "0", "credit": 44}
    """,
    "batch_init during a checkout": """
        10-30 /orders/checkout/0             -> refused 409
        11-20 /orders/batch_init/1/2/1/4     -> {"msg": "done"}
        31-32 /orders/checkout/0             -> ok
        33-34 /payment/find_user/0           -> {"user_id": "0", "credit": 42}
    """,
    "batch_init at different times for different items": """
        10-20 /stock/batch_init/2/7/4        -> {"msg": "done"}
        11-12 /stock/find/0                  -> {"stock": 7, "price": 4}
        13-14 /stock/find/1                  -> {"stock": 5, "price": 3}
        15-16 /stock/add/0/1                 -> now 8
        21-22 /stock/find/1                  -> {"stock": 7, "price": 4}
    """,
    "what is held when batch_init comes is given back on top": """
        10-11 /payment/batch_init/1/0        -> {"msg": "done"}
        12-30 /orders/checkout/0             -> refused 402
        13-20 /stock/batch_init/2/7/4        -> {"msg": "done"}
        21-22 /stock/find/0                  -> {"stock": 7, "price": 4}
        31-32 /stock/find/0                  -> {"stock": 8, "price": 4}
    """,
    "a line that is added to what replaces a paid order is not paid": """
        10-20 /orders/checkout/0             -> ok
        18-30 /orders/addItem/0/0/4          -> added
        22-24 /orders/batch_init/1/2/1/3     -> {"msg": "done"}
        31-32 /stock/find/0                  -> {"stock": 4, "price": 3}
    """,
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_right_is_accepted(name: str) -> None:
    assert check(told(SHOP, CLEAN[name])) == []


@pytest.mark.parametrize("name", CLEAN_NUMBERED)
def test_what_is_right_after_batch_init_is_accepted(name: str) -> None:
    assert check(told(NUMBERED, CLEAN_NUMBERED[name])) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), at_once=st.integers(1, 8))
def test_whatever_a_right_shop_answers_is_accepted(seed: int, at_once: int) -> None:
    violations = check(a_history(Random(seed), at_once=at_once))

    assert [str(violation) for violation in violations if violation.kind == "broken"] == []


# --- what is wrong: the history, whose entity, and the line that is named, by its begin


WRONG: dict[str, tuple[str, str, int]] = {
    "a read after the answer of a write does not show it": (
        f"""
        30-31 /stock/subtract/apple/4        -> now 6
        32-33 /stock/find/apple              -> {stock(10)}
        """,
        "item apple",
        32,
    ),
    "an add is lost when another one comes": (
        f"""
        30-40 /payment/add_funds/ann/5       -> now 105
        31-41 /payment/add_funds/ann/7       -> now 107
        42-43 /payment/find_user/ann         -> {credit(107)}
        """,
        "user ann",
        31,
    ),
    "an add is done twice": (
        f"""
        30-31 /stock/add/apple/5             -> now 15
        32-33 /stock/find/apple              -> {stock(20)}
        """,
        "item apple",
        32,
    ),
    "a value is read that never was": (
        f"""
        30-40 /stock/add/apple/5             -> now 15
        31-32 /stock/find/apple              -> {stock(12)}
        """,
        "item apple",
        31,
    ),
    "reads go back": (
        f"""
        30-50 /stock/add/apple/5             -> now 15
        31-32 /stock/find/apple              -> {stock(15)}
        33-34 /stock/find/apple              -> {stock(10)}
        """,
        "item apple",
        33,
    ),
    "what was refused happened": (
        f"""
        30-31 /payment/pay/ann/101           -> refused 402
        32-33 /payment/find_user/ann         -> {credit(0)}
        """,
        "user ann",
        32,
    ),
    "the last piece is sold twice": (
        """
        30-31 /stock/subtract/apple/9        -> now 1
        40-50 /stock/subtract/apple/1        -> now 0
        41-51 /stock/subtract/apple/1        -> now 0
        """,
        "item apple",
        41,
    ),
    "the last goods are checked out twice": (
        """
        30-31 /stock/subtract/apple/7        -> now 3
        32-33 /orders/create/ann             -> {"order_id": "q"}
        34-35 /orders/addItem/q/apple/2      -> added
        40-50 /orders/checkout/o             -> ok
        41-51 /orders/checkout/q             -> ok
        """,
        "item apple",
        41,
    ),
    "what is unknown happens twice": (
        f"""
        30-31 /stock/add/apple/5             -> unknown
        32-33 /stock/find/apple              -> {stock(15)}
        34-35 /stock/find/apple              -> {stock(20)}
        """,
        "item apple",
        34,
    ),
    "what is unknown happens and is undone": (
        f"""
        30-31 /payment/pay/ann/40            -> unknown
        32-33 /payment/find_user/ann         -> {credit(60)}
        34-35 /payment/find_user/ann         -> {credit(100)}
        """,
        "user ann",
        34,
    ),
    "the same key is answered otherwise": (
        """
        30-31 /stock/add/apple/5 key=k       -> now 15
        32-33 /stock/add/apple/5 key=k       -> now 20
        """,
        "key k",
        32,
    ),
    "the same key is refused what it was granted": (
        """
        30-31 /orders/checkout/o key=k       -> ok
        32-33 /orders/checkout/o key=k       -> refused 409
        """,
        "key k",
        32,
    ),
    "the same key acts twice": (
        f"""
        30-31 /stock/add/apple/5 key=k       -> now 15
        32-33 /stock/add/apple/5 key=k       -> now 15
        34-35 /stock/find/apple              -> {stock(20)}
        """,
        "item apple",
        34,
    ),
    "what the key settled comes again later": (
        f"""
        30-31 /payment/pay/ann/10 key=k      -> unknown
        32-33 /payment/pay/ann/10 key=k      -> now 90
        34-35 /payment/find_user/ann         -> {credit(90)}
        36-37 /payment/find_user/ann         -> {credit(80)}
        """,
        "user ann",
        36,
    ),
    "an order is unpaid after its checkout was answered": (
        f"""
        30-31 /orders/checkout/o             -> ok
        32-33 /orders/find/o                 -> {UNPAID}
        """,
        "order o",
        32,
    ),
    "a paid order is unpaid again": (
        f"""
        30-50 /orders/checkout/o             -> ok
        31-32 /orders/find/o                 -> {PAID}
        33-34 /orders/find/o                 -> {UNPAID}
        """,
        "order o",
        33,
    ),
    "a paid order is refused": (
        """
        30-31 /orders/checkout/o             -> ok
        32-33 /orders/checkout/o             -> refused 402
        """,
        "order o",
        32,
    ),
    "an order is paid that nobody checked out": (f"30-31 /orders/find/o -> {PAID}", "order o", 30),
    "what a refused checkout held is still held when it is refused": (
        f"""
        30-31 /payment/pay/ann/95            -> now 5
        32-40 /orders/checkout/o             -> refused 402
        41-42 /stock/find/apple              -> {stock(8)}
        43-44 /stock/find/apple              -> {stock(10)}
        """,
        "item apple",
        41,
    ),
    "one refused checkout holds twice": (
        f"""
        30-31 /payment/pay/ann/95            -> now 5
        32-50 /orders/checkout/o             -> refused 402
        33-34 /stock/find/apple              -> {stock(8)}
        35-36 /stock/find/apple              -> {stock(10)}
        37-38 /stock/find/apple              -> {stock(8)}
        """,
        "item apple",
        37,
    ),
    "a checkout that is refused for want of money holds money": (
        f"""
        30-31 /payment/pay/ann/95            -> now 5
        32-50 /orders/checkout/o             -> refused 402
        33-34 /payment/find_user/ann         -> {credit(-5)}
        """,
        "user ann",
        33,
    ),
    "an order is charged twice": (
        f"""
        30-40 /orders/checkout/o             -> unknown
        41-42 /orders/checkout/o             -> ok
        43-44 /payment/find_user/ann         -> {credit(80)}
        """,
        "user ann",
        43,
    ),
    "many check out one order, and its goods go twice": (
        f"""
        30-40 /orders/checkout/o             -> ok
        31-41 /orders/checkout/o             -> ok
        42-43 /stock/find/apple              -> {stock(6)}
        """,
        "item apple",
        42,
    ),
    "goods without money": (
        f"""
        30-31 /orders/checkout/o             -> ok
        32-33 /payment/find_user/ann         -> {credit(100)}
        """,
        "user ann",
        32,
    ),
    "409 though nothing is short": ("30-31 /orders/checkout/o -> refused 409", "item apple", 30),
    "409 though none of two lines is short": (f"{PEARS} 30-31 /orders/checkout/p -> refused 409", "order p", 30),
    "402 though the user is rich": ("30-31 /orders/checkout/o -> refused 402", "user ann", 30),
    "402 though goods are short as well": (
        """
        30-31 /payment/pay/ann/95            -> now 5
        32-33 /stock/subtract/apple/9        -> now 1
        34-35 /orders/checkout/o             -> refused 402
        """,
        "item apple",
        34,
    ),
    "409 for want of goods that were only held until before the call": (
        """
        30-31 /stock/subtract/apple/8        -> now 2
        32-33 /orders/create/ann             -> {"order_id": "q"}
        34-35 /orders/addItem/q/apple/1      -> added
        36-37 /payment/pay/ann/95            -> now 5
        40-50 /orders/checkout/o             -> refused 402
        51-52 /orders/checkout/q             -> refused 409
        """,
        "item apple",
        51,
    ),
    "404 though all is there": ("30-31 /orders/checkout/o -> refused 404", "order o", 30),
    "a subtract is refused though there is enough": (
        "30-31 /stock/subtract/apple/10 -> refused 409",
        "item apple",
        30,
    ),
    "an add is refused though there is room": ("30-31 /stock/add/apple/10 -> refused 409", "item apple", 30),
    "amounts in answers are out of order": (
        """
        30-31 /stock/add/apple/1             -> now 12
        32-33 /stock/add/apple/1             -> now 11
        """,
        "item apple",
        30,
    ),
    "what was created is not there": ("30-31 /stock/find/apple -> refused 404", "item apple", 30),
    "an order that was created is not there": ("30-31 /orders/find/o -> refused 404", "order o", 30),
    "a user that was created is not there": ("30-31 /payment/pay/ann/1 -> refused 404", "user ann", 30),
    "a price changes": (f"30-31 /stock/find/apple -> {stock(10, price=6)}", "item apple", 30),
    "a line is added to a paid order": (
        """
        30-31 /orders/checkout/o             -> ok
        32-33 /orders/addItem/o/apple/1      -> added
        """,
        "order o",
        32,
    ),
    "a line that came while the order was checked out is not paid for": (
        f"""
        30-40 /orders/checkout/o             -> ok
        31-39 /orders/addItem/o/apple/1      -> added
        41-42 /orders/find/o                 -> {MORE}
        43-44 /payment/find_user/ann         -> {credit(90)}
        """,
        "user ann",
        43,
    ),
    "a line is refused though nobody checks out": (
        "30-31 /orders/addItem/o/apple/1 -> refused 409",
        "order o",
        30,
    ),
    "a line is refused though item and order are there": (
        "30-31 /orders/addItem/o/apple/1 -> refused 404",
        "order o",
        30,
    ),
    "a line is lost": (
        f"""
        30-31 /orders/addItem/o/apple/1      -> added
        32-33 /orders/find/o                 -> {UNPAID}
        """,
        "order o",
        32,
    ),
    "the total is not the sum of the lines": (
        f"30-31 /orders/find/o -> {UNPAID.replace('10', '11')}",
        "order o",
        30,
    ),
    "an order is another user's": (f"30-31 /orders/find/o -> {UNPAID.replace('ann', 'bob')}", "order o", 30),
    "an answer without an amount": ("30-31 /stock/add/apple/1 -> done", "item apple", 30),
    "an answer without a field": ('30-31 /payment/find_user/ann -> {"user_id": "ann"}', "user ann", 30),
    "an id is given twice": ('30-31 /orders/create/bob -> {"order_id": "o"}', "order o", 30),
    "a status that means nothing": ("30-31 /stock/add/apple/1 -> refused 402", "item apple", 30),
}

WRONG_NUMBERED: dict[str, tuple[str, str, int]] = {
    "batch_init is answered and the old stock is read": (
        """
        10-11 /stock/batch_init/2/7/4        -> {"msg": "done"}
        12-13 /stock/find/1                  -> {"stock": 5, "price": 3}
        """,
        "item 1",
        12,
    ),
    "batch_init is undone": (
        """
        10-20 /payment/batch_init/1/70       -> {"msg": "done"}
        11-12 /payment/find_user/0           -> {"user_id": "0", "credit": 70}
        13-14 /payment/find_user/0           -> {"user_id": "0", "credit": 50}
        """,
        "user 0",
        13,
    ),
    "batch_init makes an order of other items": (
        f"""
        10-11 /orders/find/0                 -> {BOTH.replace('["1", 1]', '["2", 1]')}
        """,
        "order 0",
        10,
    ),
    "an order of batch_init changes": (
        f"""
        10-11 /orders/find/0                 -> {BOTH}
        12-13 /orders/find/0                 -> {BOTH.replace('["0", 1], ["1", 1]', '["1", 2]')}
        """,
        "order 0",
        12,
    ),
    "an order of batch_init is paid, and the money is there": (
        f"""
        10-11 /orders/find/0                 -> {BOTH}
        12-13 /orders/checkout/0             -> ok
        14-15 /payment/find_user/0           -> {credit(50, "0")}
        """,
        "user 0",
        14,
    ),
}


def named(operations: list[Operation]) -> list[tuple[str, float]]:
    """Return whose calls are named, and when these began."""
    return [(violation.entity, violation.call.began) for violation in check(operations)]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    lines, entity, began = WRONG[name]

    assert (entity, began) in named(told(SHOP, lines))


@pytest.mark.parametrize("name", WRONG_NUMBERED)
def test_what_is_wrong_after_batch_init_is_named(name: str) -> None:
    lines, entity, began = WRONG_NUMBERED[name]

    assert (entity, began) in named(told(NUMBERED, lines))


def test_a_line_that_is_wrong_has_nothing_else_named() -> None:
    lines, entity, began = WRONG["an order is unpaid after its checkout was answered"]

    assert named(told(SHOP, lines)) == [(entity, began)]


BUGS = (
    "a key acts every time",
    "all is taken twice",
    "lines are added to what is checked out",
    "nothing is undone",
    "paid is forgotten",
    "read and write are two steps",
    "refused before all is undone",
    "tells what is there later",
    "what is short is taken",
)


@pytest.mark.parametrize("bug", BUGS)
def test_a_shop_with_a_bug_is_found_out(bug: str) -> None:
    histories = (a_history(Random(seed), bug=bug) for seed in range(60))

    assert any(violation.kind == "broken" for history in histories for violation in check(history))


# --- how it says so


def test_a_violation_reads_as_a_sentence_with_the_history_of_its_entity() -> None:
    lines, _, _ = WRONG["a read after the answer of a write does not show it"]
    (violation,) = check(told(SHOP, lines))
    sentence, *history = str(violation).splitlines()

    assert sentence == (
        'item apple: [32.000000, 33.000000] GET /stock/find/apple by client 7: 200 {"stock":10,"price":5}: '
        "this answer cannot be explained.  At that time there could only be: 6, "
        'after [30.000000, 31.000000] POST /stock/subtract/apple/4 by client 6: 200 "now 6"'
    )
    assert [line.split()[3] for line in history] == [
        "/stock/item/create/5",
        "/stock/add/apple/10",
        "/orders/addItem/o/apple/2",
        "/stock/subtract/apple/4",
        "/stock/find/apple",
    ]


def test_orders_of_batch_init_are_checked_by_what_the_caller_knows_of_them() -> None:
    lines = """
        10-11 /orders/checkout/0             -> ok
        12-13 /stock/find/0                  -> {"stock": 5, "price": 3}
        12-13 /stock/find/1                  -> {"stock": 5, "price": 3}
    """
    operations = told(NUMBERED, lines)

    assert [violation.entity for violation in check(operations)] == []
    facts = {"0": OrderFacts("0", {"0": 1, "1": 1}, 6)}
    assert [violation.entity for violation in check(operations, facts)] == ["item 0", "item 1"]


# --- a hundred at once


def customers(seed: int, path: str) -> tuple[Customers, str]:
    """Return customers who come all at once, and what they meet at."""
    crowd = Customers(Shop(Random(seed)), Random(seed), at_once=200, gives_up=0.0)
    made = crowd.surely(path)
    assert isinstance(made, Ok)
    assert isinstance(made.body, dict)
    return crowd, next(iter(made.body.values()))


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_at_one_item_are_checked(seed: int) -> None:
    crowd, item_id = customers(seed, "/stock/item/create/1")
    crowd.surely(f"/stock/add/{item_id}/50")
    for number in range(100):
        crowd.call(f"/stock/{('add', 'subtract')[number % 2]}/{item_id}/{number % 3 + 1}")
        crowd.call(f"/stock/find/{item_id}")
    crowd.wait()

    assert check(crowd.history()) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_lines_of_one_order_are_checked(seed: int) -> None:
    crowd, order_id = customers(seed, "/orders/create/somebody")
    for _ in range(20):
        crowd.surely("/stock/item/create/3")
    for number in range(100):
        crowd.call(f"/orders/addItem/{order_id}/item{number % 20 + 1}/{number % 2 + 1}")
        crowd.call(f"/orders/find/{order_id}")
    crowd.wait()

    assert check(crowd.history()) == []


def test_what_would_take_too_long_is_undecided() -> None:
    verdict = Search(too_much(), Amounts(Windows()), nodes_max=100).run()

    assert verdict.kind == "undecided"
    assert verdict.step is not None


def too_much() -> Iterator[Step]:
    """Yield twenty different additions of which none is answered, and the read of what they cannot add up to."""
    nobody = Operation(Invocation("c", "GET", "/"), Unknown(), 0.0)
    yield Step(Created(), nobody, 0.0, 0.0)
    yield from (Step(Changed(2**number), nobody, 0.0) for number in range(1, 20))
    yield Step(Found(2**20 + 1), nobody, 0.0, 1.0)


# --- the history


def test_every_path_is_parsed() -> None:
    assert parse(Invocation("c", "POST", "/stock/add/apple/5")) == Call("add", ("apple",), (5,))
    assert parse(Invocation("c", "POST", "/orders/addItem/o-1/a_b/007")) == Call("add_item", ("o-1", "a_b"), (7,))
    assert parse(Invocation("c", "GET", "/orders/find/o")) == Call("find_order", ("o",))
    assert parse(Invocation("c", "POST", "/orders/batch_init/1/2/3/4")) == Call("init_orders", (), (1, 2, 3, 4))
    assert parse(Invocation("c", "POST", "/payment/create_user")) == Call("create_user")


@pytest.mark.parametrize("path", ["/stock/add/apple/-1", "/stock/add/a b/1", "/stock/add/apple", "/stock/find/apple"])
def test_what_is_no_call_is_not_parsed(path: str) -> None:
    assert parse(Invocation("c", "POST", path)) is None


def test_what_is_no_call_and_was_refused_says_nothing() -> None:
    assert check(told(SHOP, "30-31 /stock/add/apple/x -> refused 400")) == []


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    operations = told(SHOP, "30-31 /stock/add/apple/5 -> refused 409 no", "32-.. /stock/add/apple/5 key=k -> unknown")
    dump(operations, tmp_path / "history.jsonl")

    assert load(tmp_path / "history.jsonl") == operations
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == len(operations)


def test_a_call_that_has_not_ended_is_unknown() -> None:
    recorder = Recorder(count().__next__)
    first, second = (recorder.began(Invocation("c", "GET", f"/stock/find/{name}")) for name in "ab")
    recorder.ended(second, Refused(404))

    assert recorder.history() == [
        Operation(Invocation("c", "GET", "/stock/find/a"), Unknown(), 0, None),
        Operation(Invocation("c", "GET", "/stock/find/b"), Refused(404), 1, 2),
    ]
    assert first != second


def test_calls_of_many_threads_are_all_recorded() -> None:
    recorder = Recorder()

    def call(number: int) -> None:
        recorder.ended(recorder.began(Invocation(str(number), "GET", "/stock/find/a")), Ok(str(number)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(1_000)))
    history = recorder.history()

    assert sorted(int(operation.invocation.client) for operation in history) == list(range(1_000))
    assert all(operation.outcome == Ok(operation.invocation.client) for operation in history)
    assert all(operation.ended is not None and operation.began <= operation.ended for operation in history)
