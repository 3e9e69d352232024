"""Orders beside a model of plain dicts: any commands, prices, answers and fills, in any order.

Stock and payment are a mailbox here: what order sent them and they have not answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from builders import Entities, after, an_arrival, an_asker
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import amounts, model, quantities

from common.batch_init import ChunkFilled, FillChunk
from common.decision import Arrival, Ended, Reply, Send
from common.messages import (
    AMOUNT_MAX,
    AskPrice,
    ChargeRefused,
    ChargeUser,
    Done,
    Message,
    Outcome,
    PriceRefused,
    PriceTold,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    StockRefused,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
    partition_of,
)
from order.checkout import SUPERSEDED, Checkout
from order.domain import (
    CHECKING_OUT,
    LINES_MAX,
    NO_ITEM,
    NO_ORDER,
    PAID,
    TOO_LONG,
    TOO_MUCH,
    AddItem,
    CheckOut,
    CreateOrder,
    Order,
    OrderMessage,
    decide,
)

PLACES = {"order": 1, "stock": 2, "payment": 2}
LATER = Refused(Reason.INTERNAL, "a bug in stock")
SHORT = Refused(Reason.CONFLICT, "too few, or too poor")
ANSWERS = (StockReserved, UserCharged, StockReleased, UserRefunded)
order_ids = st.sampled_from(["0", "0", "0", "1", "long", "new"])
item_ids = st.sampled_from(["0", "1", "fig", "kiwi", "plum"])
places = st.integers(0, 20)


@dataclass
class Cart:
    """An order, as the model has it: `saga` is the number of its open checkout."""

    user: str
    lines: dict[str, int] = field(default_factory=dict)
    total: int = 0
    paid: bool = False
    saga: str = ""


@dataclass
class Saga:
    """A checkout, as the model has it."""

    order_id: str
    user: str
    total: int
    lines: dict[str, int]
    askers: list[str]
    asked: set[str]
    holding: set[str] = field(default_factory=set)
    why: dict[str, Refused] = field(default_factory=dict)
    undoing: bool = False


class Shop(RuleBasedStateMachine):
    """`carts`, `sagas`, `additions` are the model; `told` has every outcome by asker."""

    @initialize()
    def begin(self) -> None:
        """One order has nearly as many lines as it may have."""
        self.state = Entities({"Order:long": Order("ann", tuple((f"i{n}", 1) for n in range(LINES_MAX - 2)))})
        self.state["Order:0"] = Order("ann")
        self.carts = {"0": Cart("ann"), "long": Cart("ann", {f"i{n}": 1 for n in range(LINES_MAX - 2)})}
        self.sagas: dict[str, Saga] = {}
        self.additions: dict[str, tuple[str, str, str, int]] = {}
        self.mailbox: list[tuple[str, Message]] = []
        self.told: dict[str, list[Outcome]] = {}
        self.expected: dict[str, Outcome] = {}
        self.end = 0

    # --- what goes in

    def take(self, message: OrderMessage, arrival: Arrival) -> list[object]:
        """Decide; send what is to be sent, tell who is to be told, return the rest."""
        decision = decide(self.state, message, arrival)
        self.state = after(self.state, decision.state)
        rest: list[object] = []
        for sent in decision.messages:
            match sent:
                case Send():
                    self.mailbox.append((sent.partition, sent.message))
                case Reply():
                    self.told[sent.asker.request_id].append(sent.outcome)
                case Ended():
                    pass
                case _:
                    rest.append(sent)
        return rest

    def ask(self, command: OrderMessage) -> str:
        """Return the id of the command: its asker has the same."""
        self.end += 1
        arrival_id = f"order-0-{self.end}-0"
        self.told[arrival_id] = []
        arrival = an_arrival(arrival_id, asker=an_asker(arrival_id), topology=PLACES)
        self.told[arrival_id] += self.take(command, arrival)
        return arrival_id

    def answer(self, message: OrderMessage, source: str) -> list[object]:
        self.end += 1
        return self.take(message, an_arrival(f"order-0-{self.end}-0", source, topology=PLACES))

    # --- commands

    @rule(order_id=order_ids, user=st.sampled_from(["ann", "bob"]))
    def create(self, order_id: str, user: str) -> None:
        asked = self.ask(CreateOrder(order_id, user))
        self.carts.setdefault(order_id, Cart(user))
        self.expected[asked] = Done(order_id)

    @rule(order_id=order_ids, item_id=item_ids, quantity=quantities)
    def add_item(self, order_id: str, item_id: str, quantity: int) -> None:
        asked = self.ask(AddItem(order_id, item_id, quantity))
        refusal = self.closed(order_id)
        if refusal is None:
            self.additions[asked] = (asked, order_id, item_id, quantity)
        else:
            self.expected[asked] = refusal

    def closed(self, order_id: str) -> Refused | None:
        if order_id not in self.carts:
            return NO_ORDER
        if self.carts[order_id].paid:
            return PAID
        return CHECKING_OUT if self.carts[order_id].saga else None

    @rule(order_id=order_ids)
    def check_out(self, order_id: str) -> None:
        asked = self.ask(CheckOut(order_id))
        cart = self.carts.get(order_id)
        if cart is None:
            self.expected[asked] = NO_ORDER
        elif cart.paid:
            self.expected[asked] = Done(order_id)
        elif cart.saga:
            self.sagas[cart.saga].askers.append(asked)
        else:
            cart.saga = asked
            parts = {partition_of("stock", item_id, PLACES) for item_id in cart.lines}
            parts.add(partition_of("payment", cart.user, PLACES))
            self.sagas[asked] = Saga(order_id, cart.user, cart.total, dict(cart.lines), [asked], parts)

    @rule(stop=st.integers(1, 2), items=st.integers(1, 3), users=st.integers(1, 3), price=amounts)
    def fill(self, stop: int, items: int, users: int, price: int) -> None:
        price = min(price, AMOUNT_MAX // 2)
        chunk = FillChunk("i1", 0, stop, (items, users, price, 7))
        assert self.answer(chunk, "order-0") == [ChunkFilled("i1", stop)]
        for order_id in ("0", "1")[:stop]:
            self.supersede(order_id)
            self.carts[order_id] = self.drawn(order_id, items, users, price)

    def supersede(self, order_id: str) -> None:
        saga = self.sagas.get(self.carts[order_id].saga) if order_id in self.carts else None
        if saga is not None and not saga.undoing:
            saga.why["batch_init"] = SUPERSEDED

    def drawn(self, order_id: str, items: int, users: int, price: int) -> Cart:
        """What is drawn is chance, within limits: two different items where there are two, some user."""
        order = self.state[f"Order:{order_id}"]
        assert isinstance(order, Order)
        assert [quantity for _, quantity in order.lines] == ([1, 1] if items > 1 else [2])
        assert {item_id for item_id, _ in order.lines} <= {str(number) for number in range(items)}
        assert len(dict(order.lines)) == len(order.lines)
        assert int(order.user_id) < users
        return Cart(order.user_id, dict(order.lines), 2 * price)

    # --- answers to additions

    @precondition(lambda self: self.additions)
    @rule(which=places, price=st.none() | amounts | amounts, is_refused=st.integers(0, 9).map(lambda drawn: not drawn))
    def tell_price(self, which: int, price: int | None, *, is_refused: bool) -> None:
        asks = [(target, message) for target, message in self.mailbox if isinstance(message, AskPrice)]
        target, message = asks[which % len(asks)]
        self.mailbox.remove((target, message))
        if is_refused:
            self.answer(PriceRefused(message.addition_id, LATER), target)
        else:
            self.answer(PriceTold(message.addition_id, price), target)
        asked, order_id, item_id, quantity = self.additions.pop(message.addition_id)
        assert (target, message.item_id) == (partition_of("stock", item_id, PLACES), item_id)
        self.expected[asked] = LATER if is_refused else self.line(order_id, item_id, quantity, price)

    def line(self, order_id: str, item_id: str, quantity: int, price: int | None) -> Outcome:
        refusal = NO_ITEM if price is None else self.closed(order_id)
        if price is None or refusal is not None:
            return refusal or NO_ITEM
        cart = self.carts[order_id]
        if item_id not in cart.lines and len(cart.lines) == LINES_MAX:
            return TOO_LONG
        total, pieces = cart.total + price * quantity, cart.lines.get(item_id, 0) + quantity
        if max(total, pieces) >= 10**15:
            return TOO_MUCH
        cart.total, cart.lines[item_id] = total, pieces
        return Done()

    # --- answers to checkouts

    @precondition(lambda self: self.sagas)
    @rule(which=places, willing=st.integers(0, 4))
    def a_part_answers(self, which: int, willing: int) -> None:
        asks = [(target, message) for target, message in self.mailbox if not isinstance(message, AskPrice)]
        target, message = asks[which % len(asks)]
        self.mailbox.remove((target, message))
        match message:
            case ReserveStock():
                self.reserved(target, message, is_willing=bool(willing))
            case ChargeUser():
                self.charged(target, message, is_willing=bool(willing))
            case ReleaseStock():
                self.answer(StockReleased(message.checkout_id), target)
                self.undone(target, message.checkout_id)
            case RefundUser():
                self.answer(UserRefunded(message.checkout_id), target)
                self.undone(target, message.checkout_id)

    def reserved(self, target: str, message: ReserveStock, *, is_willing: bool) -> None:
        saga_id = message.checkout_id
        assert dict(message.lines) == self.lines_at(self.sagas[saga_id], target)
        self.answer(StockReserved(saga_id) if is_willing else StockRefused(saga_id, SHORT), target)
        self.heard(target, saga_id, is_willing=is_willing)

    def charged(self, target: str, message: ChargeUser, *, is_willing: bool) -> None:
        saga_id = message.checkout_id
        assert (message.user_id, message.amount) == (self.sagas[saga_id].user, self.sagas[saga_id].total)
        self.answer(UserCharged(saga_id) if is_willing else ChargeRefused(saga_id, SHORT), target)
        self.heard(target, saga_id, is_willing=is_willing)

    def heard(self, target: str, saga_id: str, *, is_willing: bool) -> None:
        saga = self.sagas[saga_id]
        saga.asked.remove(target)
        if is_willing:
            saga.holding.add(target)
        else:
            saga.why[target] = SHORT
        if saga.asked:
            return
        if not saga.why:
            self.ends(saga_id, Done(saga.order_id))
        elif not saga.holding:
            self.ends(saga_id, saga.why.get("batch_init", SHORT))
        else:
            saga.undoing = True

    def undone(self, target: str, saga_id: str) -> None:
        saga = self.sagas[saga_id]
        saga.holding.remove(target)
        if not saga.holding:
            self.ends(saga_id, saga.why.get("batch_init", SHORT))

    def ends(self, saga_id: str, outcome: Outcome) -> None:
        saga = self.sagas.pop(saga_id)
        self.expected.update(dict.fromkeys(saga.askers, outcome))
        if self.carts[saga.order_id].saga == saga_id:
            self.carts[saga.order_id].saga = ""
            self.carts[saga.order_id].paid = isinstance(outcome, Done)
        settled = [(target, m) for target, m in self.mailbox if isinstance(m, SettleStock | SettleCharge)]
        self.mailbox = [sent for sent in self.mailbox if sent not in settled]
        assert isinstance(outcome, Done) or not settled

    def lines_at(self, saga: Saga, target: str) -> dict[str, int]:
        return {id_: pieces for id_, pieces in saga.lines.items() if partition_of("stock", id_, PLACES) == target}

    @rule(
        answer=st.sampled_from(
            [*(kind("order-0-9999-0") for kind in ANSWERS), PriceTold("order-0-9999-0", 1), PriceRefused("c1", LATER)]
        )
    )
    def an_answer_that_nobody_waits_for_raises(self, answer: OrderMessage) -> None:
        with pytest.raises(AssertionError, match=r"not open|nobody waits"):
            self.answer(answer, "stock-0")

    # --- what is true after each

    @invariant()
    def every_order_is_what_the_model_says(self) -> None:
        modelled = {
            f"Order:{id_}": Order(cart.user, tuple(cart.lines.items()), cart.total, cart.paid, cart.saga)
            for id_, cart in self.carts.items()
        }
        assert {key: value for key, value in self.state.items() if isinstance(value, Order)} == modelled

    @invariant()
    def no_order_is_larger_than_it_may_be(self) -> None:
        for order in self.state.values():
            if isinstance(order, Order):
                assert 0 <= order.total_cost <= AMOUNT_MAX
                assert all(0 < quantity <= AMOUNT_MAX for _, quantity in order.lines)
                assert len(order.lines) <= LINES_MAX

    @invariant()
    def everybody_was_told_once_what_the_model_says_or_is_waiting(self) -> None:
        for request_id, outcomes in self.told.items():
            assert outcomes == ([self.expected[request_id]] if request_id in self.expected else [])

    @invariant()
    def what_is_open_is_what_the_model_has_open(self) -> None:
        open_ = {key for key, entity in self.state.items() if entity is not None and not isinstance(entity, Order)}
        assert open_ == {f"Checkout:{id_}" for id_ in self.sagas} | {f"Addition:{id_}" for id_ in self.additions}

    @invariant()
    def who_is_asked_is_who_the_model_waits_for(self) -> None:
        asked = sorted((target, m.checkout_id) for target, m in self.mailbox if not isinstance(m, AskPrice))
        sagas = self.sagas.items()
        assert asked == sorted((part, id_) for id_, saga in sagas for part in saga.asked or saga.holding)
        for saga_id, saga in sagas:
            checkout = self.state[f"Checkout:{saga_id}"]
            assert isinstance(checkout, Checkout)
            assert checkout.undoing == saga.undoing

    def teardown(self) -> None:
        """When everybody has answered, nothing is open and nobody waits."""
        while getattr(self, "additions", {}):
            self.tell_price(0, 1, is_refused=False)
        while getattr(self, "sagas", {}):
            self.a_part_answers(0, 1)
        assert all(len(outcomes) == 1 for outcomes in getattr(self, "told", {}).values())


TestShop = Shop.TestCase
TestShop.settings = model(300, steps=40)
