"""Where a trimmed log begins: a snapshot stands for the records that were deleted.

Each partition begins where it begins, and letters cross these beginnings.  Whether one was taken before its target's
records begin is told by its sequence, never by a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import msgspec

from audit.evidence import PartitionEvidence
from common.decision import Entity
from common.fold import Codec, Header
from order.checkout import Checkout
from order.domain import Order


class Opening(msgspec.Struct, frozen=True):
    """A partition's state at the position where its records begin: empty at 0, else the snapshot's.

    `taken` by source and `sent` by target are the sequences of the last letters before it, `now_ms` is the log's time.
    """

    position: int = 0
    now_ms: int = 0
    taken: Mapping[str, int] = {}
    sent: Mapping[str, int] = {}
    entities: Mapping[str, Entity] = {}


def opening_of(evidence: PartitionEvidence, codec: Codec) -> tuple[Opening, Header]:
    """Return it, and the header from which to fold; raise msgspec.DecodeError when one of them is not known here."""
    header = codec.header(evidence.opening.get("header"))
    decoded = {key: codec.entity(value) for key, value in evidence.opening.items() if key != "header"}
    entities = {key: entity for key, entity in decoded.items() if entity is not None}
    return Opening(evidence.begins, header.now_ms, dict(header.taken), dict(header.sent), entities), header


def order_of(checkout: Checkout) -> Order:
    """Return the order that an open checkout was opened for, as it was."""
    lines = tuple(chain.from_iterable(checkout.lines.values()))
    return Order(checkout.user_id, lines, checkout.amount, checkout_id=checkout.id)


def holds_of(checkout: Checkout) -> dict[str, str]:
    """Return what a checkout wants held, by key, and the partition that it asks for it."""
    items = {f"Item:{item_id}": partition for partition, lines in checkout.lines.items() for item_id, _ in lines}
    return {f"Account:{checkout.user_id}": checkout.payment, **items}


def is_before(message_id: str, openings: Mapping[str, Opening]) -> bool:
    """Say whether a message stood below where its partition's records begin."""
    partition, _, place = message_id.rpartition("-")[0].rpartition("-")
    return partition in openings and place.isdigit() and int(place) < openings[partition].position
