"""Stock beside a model of plain dicts: any commands, reservations, releases, settlements, fills, in any order."""

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
    AskPrice,
    Done,
    Message,
    PriceTold,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleStock,
    StockRefused,
    StockReleased,
    StockReserved,
)
from stock.domain import (
    NO_ITEM,
    SHORTAGE,
    TOO_MUCH,
    AddStock,
    CreateItem,
    Item,
    StockMessage,
    SubtractStock,
    decide,
    keys,
)

HERE = "stock-0-9-0"
item_ids = st.sampled_from(["fig", "fig", "0", "1"])
lines = st.dictionaries(item_ids, quantities, min_size=1).map(lambda drawn: tuple(drawn.items()))
Lines = tuple[tuple[str, int], ...]


class Shelves(RuleBasedStateMachine):
    """`prices`, `free`, `held` are the model; `ledger` has what came in less what went out."""

    holds: Bundle[Lines] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.items = Entities()
        self.prices: dict[str, int] = {}
        self.free: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.ledger: dict[str, int] = {}

    def decide(self, message: StockMessage, arrival: Arrival) -> tuple[object, ...]:
        decision = decide(self.items, message, arrival)
        assert set(decision.state) <= set(keys(message, arrival)), "what is not announced is not read in one go"
        self.items = after(self.items, decision.state)
        return decision.messages

    def ask(self, command: StockMessage) -> object:
        (outcome,) = self.decide(command, asked(HERE))
        return outcome

    def letter(self, message: StockMessage) -> Message | None:
        messages = self.decide(message, sent_by("order-0", HERE))
        (answer,) = messages or (None,)
        return answer

    def move(self, item_id: str, amount: int) -> Done:
        self.free[item_id] += amount
        self.ledger[item_id] += amount
        return Done(str(self.free[item_id]))

    @initialize(stock=amounts)
    def begin(self, stock: int) -> None:
        """There is something to sell."""
        self.create("fig", 5)
        self.add("fig", stock)

    @rule(item_id=item_ids, price=amounts)
    def create(self, item_id: str, price: int) -> None:
        if item_id not in self.prices:
            self.prices[item_id], self.free[item_id], self.held[item_id], self.ledger[item_id] = price, 0, 0, 0
        assert self.ask(CreateItem(item_id, price)) == Done(item_id)

    @rule(item_id=item_ids, amount=amounts)
    def add(self, item_id: str, amount: int) -> None:
        outcome = self.ask(AddStock(item_id, amount))
        if item_id not in self.prices:
            assert outcome == NO_ITEM
        elif self.free[item_id] + self.held[item_id] + amount >= 10**15:
            assert outcome == TOO_MUCH
        else:
            assert outcome == self.move(item_id, amount)

    @rule(item_id=item_ids, amount=amounts)
    def subtract(self, item_id: str, amount: int) -> None:
        outcome = self.ask(SubtractStock(item_id, amount))
        if item_id not in self.prices:
            assert outcome == NO_ITEM
        elif self.free[item_id] - amount < 0:
            assert outcome == SHORTAGE
        else:
            assert outcome == self.move(item_id, -amount)

    @rule(item_id=item_ids)
    def tell_price(self, item_id: str) -> None:
        assert self.letter(AskPrice("a1", item_id)) == PriceTold("a1", self.prices.get(item_id))

    @rule(wanted=lines, target=holds)
    def reserve(self, wanted: Lines) -> object:
        answer = self.letter(ReserveStock("c1", wanted))
        refusal = self.why_not(wanted)
        if refusal is not None:
            assert answer == StockRefused("c1", refusal)
            return multiple()
        assert answer == StockReserved("c1")
        for item_id, quantity in wanted:
            self.free[item_id] -= quantity
            self.held[item_id] += quantity
        return wanted

    def why_not(self, wanted: Lines) -> Refused | None:
        for item_id, quantity in wanted:
            if item_id not in self.prices:
                return NO_ITEM
            if self.free[item_id] - quantity < 0:
                return SHORTAGE
        return None

    @rule(hold=consumes(holds))
    def release(self, hold: Lines) -> None:
        for item_id, quantity in hold:
            self.held[item_id] -= quantity
            self.free[item_id] += quantity
        assert self.letter(ReleaseStock("c1", hold)) == StockReleased("c1")

    @rule(hold=consumes(holds), some=st.integers(0, 3))
    def settle(self, hold: Lines, some: int) -> None:
        """Only large lines are settled: what small ones held stays held."""
        for item_id, quantity in hold[:some]:
            self.held[item_id] -= quantity
            self.ledger[item_id] -= quantity
        assert self.letter(SettleStock("c1", hold[:some])) is None

    @rule(item_id=item_ids, kind=st.sampled_from([SettleStock, ReleaseStock]), more=quantities)
    def nobody_gives_back_more_than_is_held(
        self, item_id: str, kind: type[SettleStock | ReleaseStock], more: int
    ) -> None:
        too_many = self.held.get(item_id, 0) + more
        with pytest.raises(AssertionError, match="only what was reserved"):
            decide(self.items, kind("c1", ((item_id, too_many),)), an_arrival(HERE, "order-0"))

    @rule(stop=st.integers(0, 2), stock=amounts, price=amounts)
    def fill(self, stop: int, stock: int, price: int) -> None:
        assert self.letter(FillChunk("i1", 0, stop, (stock, price))) == ChunkFilled("i1", stop)
        for item_id in ("0", "1")[:stop]:
            before = self.free.get(item_id, 0)
            self.held.setdefault(item_id, 0)
            self.prices[item_id] = price
            self.free[item_id] = min(stock, 10**15 - 1 - self.held[item_id])
            self.ledger[item_id] = self.ledger.get(item_id, 0) + self.free[item_id] - before

    @invariant()
    def every_item_is_what_the_model_says(self) -> None:
        modelled = {f"Item:{id_}": Item(price, self.free[id_], self.held[id_]) for id_, price in self.prices.items()}
        assert self.items == modelled

    @invariant()
    def nothing_is_negative_or_passes_what_can_be_counted(self) -> None:
        for item in self.items.values():
            assert isinstance(item, Item)
            assert min(item.available, item.held) >= 0
            assert item.available + item.held <= AMOUNT_MAX

    @invariant()
    def what_came_in_is_there_or_went_out(self) -> None:
        for item_id, balance in self.ledger.items():
            item = self.items[f"Item:{item_id}"]
            assert isinstance(item, Item)
            assert item.available + item.held == balance


TestShelves = Shelves.TestCase
TestShelves.settings = model(200, steps=30)
