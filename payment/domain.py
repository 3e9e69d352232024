"""Payment: how much credit each user has.

Pure: replaying a partition's log from offset zero rebuilds its state byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from common import batch_init
from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Arrival, Decision, Entity, Machine, State, done, find, key, refused
from common.messages import (
    AMOUNT_MAX,
    ChargeRefused,
    ChargeUser,
    Message,
    Reason,
    RefundUser,
    Refused,
    SettleCharge,
    UserCharged,
    UserRefunded,
)

SERVICE = "payment"


class Account(Entity, frozen=True):
    """One user's money.  `credit` never counts what a checkout has charged.

    `held` is what was charged and neither refunded nor settled: at least all that may come back.
    """

    credit: int = 0
    held: int = 0


class CreateUser(Message, frozen=True):
    """Open an account, without credit."""

    user_id: str


class AddFunds(Message, frozen=True):
    """Money has come in."""

    user_id: str
    amount: int


class Pay(Message, frozen=True):
    """Money goes out, not by a checkout."""

    user_id: str
    amount: int


class InitUsers(Message, frozen=True):
    """Replace the users "0".."count-1"."""

    count: int
    starting_money: int


Command = CreateUser | AddFunds | Pay | InitUsers
PaymentMessage = Command | ChargeUser | SettleCharge | RefundUser | FillChunk | ChunkFilled
PaymentEntity = Account | BatchInit

NO_USER = Refused(Reason.NOT_FOUND, "there is no such user: create one with POST /payment/create_user")
NO_CREDIT = Refused(Reason.NO_CREDIT, "not enough credit: add some with POST /payment/add_funds/{user_id}/{amount}")
FAILED = Refused(Reason.INTERNAL, "a bug of ours in payment: it is on record there as a dead letter")
TOO_MUCH = Refused(Reason.CONFLICT, f"a user's credit, holds included, may not pass {AMOUNT_MAX}")


def keys(message: PaymentMessage, arrival: Arrival) -> Iterable[str]:
    """Return the entities that deciding `message` needs, to read them in one go."""
    match message:
        case CreateUser() | AddFunds() | Pay() | ChargeUser() | SettleCharge() | RefundUser():
            return [key(Account, message.user_id)]
        case FillChunk():
            return [key(Account, user_id) for user_id in batch_init.numbers_here(SERVICE, message, arrival)]
        case ChunkFilled():
            return [key(BatchInit, message.init_id)]
        case InitUsers():
            return []
        case _:
            assert_never(message)


def decide(state: State, message: PaymentMessage, arrival: Arrival) -> Decision:
    """Answer `message`, whatever state the accounts are in."""
    match message:
        case CreateUser():
            return create(find(state, Account, message.user_id), message)
        case AddFunds():
            return add_funds(find(state, Account, message.user_id), message)
        case Pay():
            return pay(find(state, Account, message.user_id), message)
        case ChargeUser():
            return charge(find(state, Account, message.user_id), message)
        case SettleCharge():
            return settle(find(state, Account, message.user_id), message)
        case RefundUser():
            return refund(find(state, Account, message.user_id), message)
        case InitUsers():
            return batch_init.start(SERVICE, message.count, (message.starting_money,), arrival)
        case FillChunk():
            return fill(state, message, arrival)
        case ChunkFilled():
            return batch_init.advance(state, message, SERVICE, arrival)
        case _:
            assert_never(message)


def excuse(message: PaymentMessage) -> tuple[Message, ...]:
    """Return the answer to a message that could not be decided because of a bug of ours."""
    if isinstance(message, ChargeUser):
        return (ChargeRefused(message.checkout_id, FAILED),)
    return ()


def create(account: Account | None, command: CreateUser) -> Decision:
    """Create once: an id that exists already is told again and nothing changes."""
    if account is not None:
        return done({}, command.user_id)
    return done({key(Account, command.user_id): Account()}, command.user_id)


def add_funds(account: Account | None, command: AddFunds) -> Decision:
    """Add, unless the credit would pass what can be counted."""
    if account is None:
        return refused(NO_USER)
    if account.credit + account.held + command.amount > AMOUNT_MAX:
        return refused(TOO_MUCH)
    return _change(command.user_id, account, command.amount)


def pay(account: Account | None, command: Pay) -> Decision:
    """Pay, unless there is less credit."""
    if account is None:
        return refused(NO_USER)
    if account.credit < command.amount:
        return refused(NO_CREDIT)
    return _change(command.user_id, account, -command.amount)


def charge(account: Account | None, message: ChargeUser) -> Decision:
    """Hold the whole amount or nothing."""
    if account is None or account.credit < message.amount:
        refusal = NO_CREDIT if account else NO_USER
        return Decision({}, (ChargeRefused(message.checkout_id, refusal),))
    held = Account(account.credit - message.amount, account.held + message.amount)
    return Decision({key(Account, message.user_id): held}, (UserCharged(message.checkout_id),))


def settle(account: Account | None, message: SettleCharge) -> Decision:
    """What a paid checkout held is spent."""
    return Decision({key(Account, message.user_id): _unheld(account, message.amount, 0)})


def refund(account: Account | None, message: RefundUser) -> Decision:
    """What a failed checkout held is credit again."""
    refunded = _unheld(account, message.amount, message.amount)
    return Decision({key(Account, message.user_id): refunded}, (UserRefunded(message.checkout_id),))


def fill(state: State, chunk: FillChunk, arrival: Arrival) -> Decision:
    """Replace the accounts of a chunk; what is held stays held, within the limit of what can be counted."""
    (money,) = chunk.parameters
    accounts = {}
    for user_id in batch_init.numbers_here(SERVICE, chunk, arrival):
        account = find(state, Account, user_id)
        held = account.held if account else 0
        accounts[key(Account, user_id)] = Account(min(money, AMOUNT_MAX - held), held)
    return Decision(accounts, (ChunkFilled(chunk.init_id, chunk.stop),))


def _change(user_id: str, account: Account, amount: int) -> Decision:
    changed = Account(account.credit + amount, account.held)
    return done({key(Account, user_id): changed}, str(changed.credit))


def _unheld(account: Account | None, amount: int, freed: int) -> Account:
    assert account is not None, "only what was charged is settled or refunded"
    assert account.held >= amount, "only what was charged is settled or refunded"
    return Account(account.credit + freed, account.held - amount)


MACHINE = Machine(SERVICE, PaymentMessage, PaymentEntity, keys, decide, excuse)
