"""What travels in the log, and where it goes.

A *record* is a batch of messages for one partition.  A message comes from a web process (`Request`) or from another
partition (`Letter`).  Everything here is plain data: no clock, no randomness, no I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

AMOUNT_MAX = 10**15 - 1
"""The largest credit, stock or total, in the smallest unit of money or in pieces."""

RECORD_BYTES_MAX = 900_000
"""Kafka refuses records over 1 MB; messages beyond this go into the next record."""

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of everything that a state machine takes or emits; its tag in the log is its class name.

    A field that this version does not know makes a record undecodable: an old binary must wait, not guess.
    """


# --- who asks, and what they are told -------------------------------------------------------------------------------


class Reason(StrEnum):
    """Why something was refused.  common.http maps each to one HTTP status."""

    NOT_FOUND = "not found"
    CONFLICT = "conflict"
    NO_CREDIT = "not enough credit"
    OTHER_CALL = "key used for another call"
    BUSY = "busy"
    NOT_NOW = "not now"
    INTERNAL = "internal error"


class Done(Message, frozen=True):
    """The request was carried out; `value` is the new amount or the id of what was created, as text."""

    value: str = ""


class Refused(Message, frozen=True):
    """The request changed nothing; `detail` says what to do, for people."""

    reason: Reason
    detail: str


Outcome = Done | Refused


class Asker(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who waits for an outcome.

    `request_id` is scoped by the entity: "<entity id>/<Idempotency-Key or attempt id>".
    `fingerprint` is a hash of method and path: another one under the same request id is another call.
    `reply_to` names the web process that waits.
    """

    request_id: str
    fingerprint: int
    reply_to: str
    is_client_key: bool = False


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A reply on its way to a web process.  It only wakes: the result itself is part of the state."""

    request_id: str
    fingerprint: int
    outcome: Outcome


# --- records --------------------------------------------------------------------------------------------------------


class Request(msgspec.Struct, Generic[M], frozen=True, array_like=True, tag="request", forbid_unknown_fields=True):
    """A command of a client.  `made_ms` is the web process's wall clock, milliseconds since 1970."""

    asker: Asker
    made_ms: int
    message: M


class Letter(msgspec.Struct, Generic[M], frozen=True, array_like=True, tag="letter", forbid_unknown_fields=True):
    """A message from partition `source`, its `sequence`-th to the partition that reads it: 1, 2, 3 ...

    A dead letter that a person re-delivers has a source of its own, "dead-letter-<its place>", and is `on_behalf_of`
    the partition that it came from in the first place.
    """

    source: str
    sequence: int
    message: M
    on_behalf_of: str = ""


class Genesis(msgspec.Struct, frozen=True, array_like=True, tag="genesis", forbid_unknown_fields=True):
    """Record 0 of every partition.  A log with another `log_id` is another log."""

    log_id: str


class NewRules(msgspec.Struct, frozen=True, array_like=True, tag="rules", forbid_unknown_fields=True):
    """From this record on the partition is folded by the rules of `version`.  An older version changes nothing."""

    version: int


class Batch(msgspec.Struct, Generic[M], frozen=True, array_like=True, tag="batch", forbid_unknown_fields=True):
    """Every other record."""

    messages: list[Request[M] | Letter[M]]


Content = Genesis | NewRules | Batch[Any]
"""What a record is."""


_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    """Return the one encoding of `value`: the same bytes for the same value, always."""
    return _encoder.encode(value)


def encode_batch(messages: list[msgspec.Raw]) -> bytes:
    """Return a record of messages that are already encoded."""
    return _encoder.encode(["batch", messages])


def checksum(value: bytes, running: int = 0) -> int:
    """Return the CRC-32 of a record's value, or of what `running` is the CRC-32 of, followed by it."""
    return zlib.crc32(value, running)


# --- partitions -----------------------------------------------------------------------------------------------------

Topology = Mapping[str, int]
"""How many partitions each service's inbox has.  It never changes during the life of a log."""


def partition_of(service: str, entity_id: str, topology: Topology) -> str:
    """Return the partition that `entity_id` lives in, for example "stock-1"."""
    return f"{service}-{zlib.crc32(entity_id.encode()) % topology[service]}"


def partitions_of(service: str, topology: Topology) -> list[str]:
    """Return all partitions of a service's inbox."""
    return [f"{service}-{number}" for number in range(topology[service])]


# --- between order, stock and payment -------------------------------------------------------------------------------


class AskPrice(Message, frozen=True):
    """Order asks stock for an item's price, on behalf of an open addition."""

    addition_id: str
    item_id: str


class PriceTold(Message, frozen=True):
    """Stock answers `AskPrice`; None means that there is no such item."""

    addition_id: str
    price: int | None


class PriceRefused(Message, frozen=True):
    """Stock could not answer `AskPrice`."""

    addition_id: str
    refusal: Refused


class ReserveStock(Message, frozen=True):
    """Order asks one stock partition for all its lines of a checkout: all or nothing."""

    checkout_id: str
    lines: tuple[tuple[str, int], ...]


class StockReserved(Message, frozen=True):
    """The lines are held for the checkout."""

    checkout_id: str


class StockRefused(Message, frozen=True):
    """Nothing was held."""

    checkout_id: str
    refusal: Refused


class SettleStock(Message, frozen=True):
    """The checkout was paid: what was held is sold."""

    checkout_id: str
    lines: tuple[tuple[str, int], ...]


class ReleaseStock(Message, frozen=True):
    """The checkout failed: what was held is free again.  Never refused."""

    checkout_id: str
    lines: tuple[tuple[str, int], ...]


class StockReleased(Message, frozen=True):
    """The undo is done."""

    checkout_id: str


class ChargeUser(Message, frozen=True):
    """Order asks payment for the money of a checkout."""

    checkout_id: str
    user_id: str
    amount: int


class UserCharged(Message, frozen=True):
    """The amount is held for the checkout."""

    checkout_id: str


class ChargeRefused(Message, frozen=True):
    """Nothing was held."""

    checkout_id: str
    refusal: Refused


class SettleCharge(Message, frozen=True):
    """The checkout was paid: what was held is spent."""

    checkout_id: str
    user_id: str
    amount: int


class RefundUser(Message, frozen=True):
    """The checkout failed: what was held is credit again.  Never refused."""

    checkout_id: str
    user_id: str
    amount: int


class UserRefunded(Message, frozen=True):
    """The undo is done."""

    checkout_id: str
