"""What an audit can find: kinds of offenders, each with the invariant that it breaks, and one offender."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What is wrong.  The values are stable: scripts and drills may look for them."""

    # I1: account by account
    ACCOUNT_MOVED_WRONGLY = "account moved wrongly"
    MONEY_DOES_NOT_ADD_UP = "money does not add up"

    # I2: item by item
    ITEM_MOVED_WRONGLY = "item moved wrongly"
    GOODS_DO_NOT_ADD_UP = "goods do not add up"

    # I3: orders, charges and deductions, joined
    PAID_WITHOUT_CHARGE = "paid without charge"
    CHARGED_TWICE = "charged twice"
    CHARGE_OF_ANOTHER_AMOUNT = "charge of another amount"
    CHARGE_OF_ANOTHER_USER = "charge of another user"
    CHARGE_WITHOUT_ORDER = "charge without order"
    DEDUCTION_MISSING = "deduction missing"
    DEDUCTED_TWICE = "deducted twice"
    DEDUCTION_OF_ANOTHER_QUANTITY = "deduction of another quantity"
    DEDUCTION_WITHOUT_LINE = "deduction without line"
    DEDUCTION_WITHOUT_ORDER = "deduction without order"
    FAILED_BUT_CHARGED = "failed but charged"
    FAILED_BUT_DEDUCTED = "failed but deducted"
    PAID_BUT_UNDONE = "paid but undone"
    UNDONE_TWICE = "undone twice"
    UNDO_OF_ANOTHER_AMOUNT = "undo of another amount"
    UNDO_WITHOUT_HOLD = "undo without hold"
    SETTLED_WRONGLY = "settled wrongly"
    PAID_TWICE = "paid twice"
    PAID_WITHOUT_CHECKOUT = "paid without checkout"
    PAID_AND_FORGOTTEN = "paid and forgotten"
    ORDER_CHANGED_WRONGLY = "order changed wrongly"
    HEARD_OTHERWISE = "order heard otherwise"
    ENDED_EARLY = "ended before its answers"

    # I4: what clients are told
    TOLD_OTHERWISE = "told otherwise"
    DECIDED_TWICE = "decided twice"
    NEVER_TOLD = "never told"

    # I5, whatever is counted
    NEGATIVE = "negative"
    TOO_LARGE = "too large"
    NOT_AN_INTEGER = "not an integer"

    # I6: the state is the fold of the log
    STATE_DIFFERS = "state differs from fold"
    STATE_MISSING = "state missing"
    STATE_EXTRA = "state without record"
    HEADER_DIFFERS = "header differs from fold"
    POSITION_BEYOND_LOG = "position beyond log"
    RECORD_MISSING = "record missing"
    RECORD_UNDECODABLE = "record undecodable"
    GENESIS_MISSING = "genesis missing"
    DEAD_LETTER_MISSING = "raises but no dead letter"
    DEAD_LETTER_WITHOUT_MESSAGE = "dead letter without message"

    # I7: everything ends
    STILL_OPEN = "still open"
    UNAPPLIED = "unapplied"
    DEAD_LETTER_UNDELIVERED = "dead letter not delivered again"

    # From partition to partition: everything sent is taken, once
    LETTER_LOST = "letter lost"
    LETTER_INVENTED = "letter invented"
    LETTER_DIFFERS = "letter differs"
    LETTER_OUT_OF_TURN = "letter out of turn"
    LETTER_TAKEN_TWICE = "letter taken twice"
    LETTER_NOT_TAKEN = "letter not taken"


FIRST_OF = {
    Kind.ACCOUNT_MOVED_WRONGLY: "I1",
    Kind.ITEM_MOVED_WRONGLY: "I2",
    Kind.PAID_WITHOUT_CHARGE: "I3",
    Kind.TOLD_OTHERWISE: "I4",
    Kind.NEGATIVE: "I5",
    Kind.STATE_DIFFERS: "I6",
    Kind.STILL_OPEN: "I7",
    Kind.LETTER_LOST: "letters",
}
"""The first kind of each invariant; the others follow it, in the order above."""


def invariant_of(kind: Kind) -> str:
    """Return the invariant that a kind of offender breaks: "I3"; "letters" for the rules between partitions."""
    kinds = list(Kind)
    upto = kinds[: kinds.index(kind) + 1]
    return next(FIRST_OF[each] for each in reversed(upto) if each in FIRST_OF)


class Event(msgspec.Struct, frozen=True):
    """One message in an offender's history: when it was logged, what it said, and what came of it."""

    message_id: str
    time_ms: int
    said: str
    changed: tuple[str, ...]


class Finding(msgspec.Struct, frozen=True):
    """One offender.

    `entity` is a key of the state ("Order:o-1"), or what else is wrong: a partition's name, "letter order-0>stock-1 7".
    `messages` are the ids of the messages that show it: <partition>-<offset>-<index>.
    `related` are the keys of other entities whose messages belong to the history.
    """

    kind: Kind
    entity: str
    partition: str
    detail: str
    messages: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()
    left_out: int = 0

    @property
    def invariant(self) -> str:
        """The invariant that it breaks."""
        return invariant_of(self.kind)
