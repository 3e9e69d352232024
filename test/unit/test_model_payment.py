"""Payment beside a model of plain dicts: any commands, charges, refunds, settlements, fills, in any order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from builders import Entities, after, an_arrival, asked, sent_by
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from strategies import amounts, model, quantities

from common.batch_init import ChunkFilled, FillChunk
from common.decision import Arrival
from common.messages import (
    AMOUNT_MAX,
    ChargeRefused,
    ChargeUser,
    Done,
    Message,
    RefundUser,
    SettleCharge,
    UserCharged,
    UserRefunded,
)
from payment.domain import (
    NO_CREDIT,
    NO_USER,
    TOO_MUCH,
    Account,
    AddFunds,
    CreateUser,
    Pay,
    PaymentMessage,
    decide,
    keys,
)

HERE = "payment-0-9-0"
user_ids = st.sampled_from(["ann", "ann", "0", "1"])
Charge = tuple[str, int]


class Purses(RuleBasedStateMachine):
    """`credit` and `held` are the model; `ledger` has what came in less what went out."""

    charges: Bundle[Charge] = Bundle("charges")

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Entities()
        self.credit: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.ledger: dict[str, int] = {}

    def decide(self, message: PaymentMessage, arrival: Arrival) -> tuple[object, ...]:
        decision = decide(self.accounts, message, arrival)
        assert set(decision.state) <= set(keys(message, arrival)), "what is not announced is not read in one go"
        self.accounts = after(self.accounts, decision.state)
        return decision.messages

    def ask(self, command: PaymentMessage) -> object:
        (outcome,) = self.decide(command, asked(HERE))
        return outcome

    def letter(self, message: PaymentMessage) -> Message | None:
        messages = self.decide(message, sent_by("order-0", HERE))
        (answer,) = messages or (None,)
        return answer

    def move(self, user_id: str, amount: int) -> Done:
        self.credit[user_id] += amount
        self.ledger[user_id] += amount
        return Done(str(self.credit[user_id]))

    @initialize(money=amounts)
    def begin(self, money: int) -> None:
        """There is something to spend."""
        self.create("ann")
        self.add_funds("ann", money)

    @rule(user_id=user_ids)
    def create(self, user_id: str) -> None:
        if user_id not in self.credit:
            self.credit[user_id], self.held[user_id], self.ledger[user_id] = 0, 0, 0
        assert self.ask(CreateUser(user_id)) == Done(user_id)

    @rule(user_id=user_ids, amount=amounts)
    def add_funds(self, user_id: str, amount: int) -> None:
        outcome = self.ask(AddFunds(user_id, amount))
        if user_id not in self.credit:
            assert outcome == NO_USER
        elif self.credit[user_id] + self.held[user_id] + amount >= 10**15:
            assert outcome == TOO_MUCH
        else:
            assert outcome == self.move(user_id, amount)

    @rule(user_id=user_ids, amount=amounts)
    def pay(self, user_id: str, amount: int) -> None:
        outcome = self.ask(Pay(user_id, amount))
        if user_id not in self.credit:
            assert outcome == NO_USER
        elif self.credit[user_id] - amount < 0:
            assert outcome == NO_CREDIT
        else:
            assert outcome == self.move(user_id, -amount)

    @rule(user_id=user_ids, amount=amounts, target=charges)
    def charge(self, user_id: str, amount: int) -> object:
        answer = self.letter(ChargeUser("c1", user_id, amount))
        if user_id not in self.credit:
            assert answer == ChargeRefused("c1", NO_USER)
            return multiple()
        if self.credit[user_id] - amount < 0:
            assert answer == ChargeRefused("c1", NO_CREDIT)
            return multiple()
        assert answer == UserCharged("c1")
        self.credit[user_id] -= amount
        self.held[user_id] += amount
        return (user_id, amount)

    @rule(charge=consumes(charges))
    def refund(self, charge: Charge) -> None:
        user_id, amount = charge
        self.held[user_id] -= amount
        self.credit[user_id] += amount
        assert self.letter(RefundUser("c1", user_id, amount)) == UserRefunded("c1")

    @rule(charge=consumes(charges))
    def settle(self, charge: Charge) -> None:
        user_id, amount = charge
        self.held[user_id] -= amount
        self.ledger[user_id] -= amount
        assert self.letter(SettleCharge("c1", user_id, amount)) is None

    @rule(user_id=user_ids, kind=st.sampled_from([SettleCharge, RefundUser]), more=quantities)
    def nobody_gives_back_more_than_is_held(
        self, user_id: str, kind: type[SettleCharge | RefundUser], more: int
    ) -> None:
        too_much = self.held.get(user_id, 0) + more
        with pytest.raises(AssertionError, match="only what was charged"):
            decide(self.accounts, kind("c1", user_id, too_much), an_arrival(HERE, "order-0"))

    @rule(stop=st.integers(0, 2), money=amounts)
    def fill(self, stop: int, money: int) -> None:
        assert self.letter(FillChunk("i1", 0, stop, (money,))) == ChunkFilled("i1", stop)
        for user_id in ("0", "1")[:stop]:
            before = self.credit.get(user_id, 0)
            self.held.setdefault(user_id, 0)
            self.credit[user_id] = min(money, 10**15 - 1 - self.held[user_id])
            self.ledger[user_id] = self.ledger.get(user_id, 0) + self.credit[user_id] - before

    @invariant()
    def every_account_is_what_the_model_says(self) -> None:
        assert self.accounts == {f"Account:{id_}": Account(self.credit[id_], self.held[id_]) for id_ in self.credit}

    @invariant()
    def nothing_is_negative_or_passes_what_can_be_counted(self) -> None:
        for account in self.accounts.values():
            assert isinstance(account, Account)
            assert min(account.credit, account.held) >= 0
            assert account.credit + account.held <= AMOUNT_MAX

    @invariant()
    def what_came_in_is_there_or_went_out(self) -> None:
        for user_id, balance in self.ledger.items():
            account = self.accounts[f"Account:{user_id}"]
            assert isinstance(account, Account)
            assert account.credit + account.held == balance


TestPurses = Purses.TestCase
TestPurses.settings = model(200, steps=30)
