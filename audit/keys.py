"""Which entities a message is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from common.messages import Letter
from order.domain import OrderMessage
from payment.domain import PaymentMessage
from stock.domain import StockMessage

KINDS = {
    "order_id": "Order",
    "checkout_id": "Checkout",
    "addition_id": "Addition",
    "init_id": "BatchInit",
    "item_id": "Item",
    "user_id": "Account",
}
letter_decoder = msgspec.msgpack.Decoder(Letter[OrderMessage | StockMessage | PaymentMessage])
"""Decodes a letter to any partition."""


def keys_of(message: Any) -> Iterator[str]:
    """Yield the keys of the entities that a message names: of its fields, and of its lines."""
    for field, kind in KINDS.items():
        entity_id = getattr(message, field, "")
        if entity_id:
            yield f"{kind}:{entity_id}"
    for item_id, _ in getattr(message, "lines", ()):
        yield f"Item:{item_id}"
