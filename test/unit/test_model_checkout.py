"""The checkout beside a model that keeps one word a part: whatever its parts say, in any order, it ends as it has to.

The words: a part is "asked", then "holds" or "refused"; one that holds may be "undoing" and then "undone".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from builders import NOW_MS, an_arrival, an_asker, asked, sent_by
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import amounts, model, quantities

from common.decision import Arrival, Ended, Reply, Send
from common.messages import (
    Asker,
    ChargeUser,
    Done,
    Message,
    Outcome,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    SettleCharge,
    SettleStock,
    Topology,
    partition_of,
)
from order.checkout import (
    SETTLED_LEAST,
    SUPERSEDED,
    Lines,
    Step,
    accept,
    acknowledge_undo,
    join,
    open_checkout,
    refuse,
    supersede,
)

ID = "order-0-9-0"
lines_drawn = st.dictionaries(st.sampled_from("abcdefgh"), quantities, max_size=6).map(
    lambda drawn: tuple(drawn.items())
)
topologies = st.builds(
    lambda stock, payment: {"stock": stock, "payment": payment}, st.integers(1, 4), st.integers(1, 3)
)
KINDS = ("accepted", "refused", "undone")


def why(source: str) -> Refused:
    return Refused(Reason.CONFLICT, f"the reason of {source}")


def hear(checkout_step: Step, kind: str, arrival: Arrival) -> Step:
    match kind:
        case "accepted":
            return accept(checkout_step.checkout, arrival)
        case "refused":
            return refuse(checkout_step.checkout, why(arrival.source), arrival)
        case _:
            return acknowledge_undo(checkout_step.checkout, arrival)


def lines_at(partition: str, lines: Lines, topology: Topology) -> Lines:
    return tuple(line for line in lines if partition_of("stock", line[0], topology) == partition)


class Course(RuleBasedStateMachine):
    """One checkout: `parts` has the word of each part."""

    @initialize(lines=lines_drawn, amount=amounts, topology=topologies)
    def open(self, lines: Lines, amount: int, topology: Topology) -> None:
        self.lines, self.amount, self.topology = lines, amount, topology
        self.payment = partition_of("payment", "ann", topology)
        self.askers = [an_asker("o1/0")]
        self.superseded, self.over = False, False
        self.step = open_checkout("o1", "ann", amount, lines, asked(ID, "o1/0", topology))
        stock = {partition_of("stock", item_id, topology) for item_id, _ in lines}
        self.parts = dict.fromkeys([*sorted(stock), self.payment], "asked")
        self.sent(self.step, {part: self.reservation(part) for part in self.parts})

    def reservation(self, part: str) -> Message:
        if part == self.payment:
            return ChargeUser(ID, "ann", self.amount)
        return ReserveStock(ID, lines_at(part, self.lines, self.topology))

    def undo(self, part: str) -> Message:
        if part == self.payment:
            return RefundUser(ID, "ann", self.amount)
        return ReleaseStock(ID, lines_at(part, self.lines, self.topology))

    def settlements(self) -> dict[str, Message]:
        """Return what is sent when all is paid: only what is large."""
        settled: dict[str, Message] = {}
        for part in self.parts:
            here = tuple(line for line in lines_at(part, self.lines, self.topology) if line[1] >= SETTLED_LEAST)
            if here:
                settled[part] = SettleStock(ID, here)
        if self.amount >= SETTLED_LEAST:
            settled[self.payment] = SettleCharge(ID, "ann", self.amount)
        return settled

    def sent(self, step: Step, letters: dict[str, Message]) -> None:
        """These letters were sent, each once, and no others."""
        sends = [message for message in step.messages if isinstance(message, Send)]
        assert len(sends) == len(letters)
        assert {send.partition: send.message for send in sends} == letters

    def said(self, word: str) -> list[str]:
        return [part for part, said in self.parts.items() if said == word]

    # --- what may come

    @rule(which=st.integers(0, 6), kind=st.sampled_from(KINDS))
    def somebody_answers(self, which: int, kind: str) -> None:
        """Whatever was not asked for raises, also when it is over."""
        sources = [*self.parts, "order-0", "stock-9"]
        source = sources[which % len(sources)]
        expected = {"accepted": "asked", "refused": "asked", "undone": "undoing"}[kind]
        if self.parts.get(source) == expected:
            self.answer(source, kind)
        else:
            with pytest.raises(AssertionError, match="answer from"):
                hear(self.step, kind, sent_by(source))

    @precondition(lambda self: not self.over)
    @rule(which=st.integers(0, 6), willing=st.integers(0, 2))
    def one_that_is_waited_for_answers(self, which: int, willing: int) -> None:
        waiting = self.said("asked") or self.said("undoing")
        kind = "undone" if self.said("undoing") else "accepted" if willing else "refused"
        self.answer(waiting[which % len(waiting)], kind)

    @precondition(lambda self: not self.over)
    @rule()
    def another_request_joins(self) -> None:
        asker = an_asker(f"o1/{len(self.askers)}")
        self.askers.append(asker)
        joined = join(self.step.checkout, asker)
        assert joined is not None
        self.step = Step(joined)

    @precondition(lambda self: not self.over)
    @rule()
    def batch_init_replaces_the_order(self) -> None:
        self.superseded = self.superseded or not self.said("undoing")
        self.step = Step(supersede(self.step.checkout))

    # --- what becomes of it

    def answer(self, source: str, kind: str) -> None:
        self.parts[source] = {"accepted": "holds", "refused": "refused", "undone": "undone"}[kind]
        self.step = hear(self.step, kind, an_arrival(ID, source, topology=self.topology, time_ms=NOW_MS + 5))
        if self.said("asked") or self.said("undoing"):
            self.nothing_happens()
        elif kind == "undone" or not self.said("holds"):
            self.ends(self.reason(), {})
        elif self.said("refused") or self.superseded:
            self.undoes()
        else:
            self.ends(Done("o1"), self.settlements())

    def nothing_happens(self) -> None:
        assert self.step.messages == ()
        assert self.step.outcome is None

    def undoes(self) -> None:
        assert self.step.outcome is None
        assert all(isinstance(message, Send) for message in self.step.messages), "nobody is told yet"
        self.sent(self.step, {part: self.undo(part) for part in self.said("holds")})
        for part in self.said("holds"):
            self.parts[part] = "undoing"

    def reason(self) -> Refused:
        if self.superseded:
            return SUPERSEDED
        stock = sorted(part for part in self.said("refused") if part != self.payment)
        return why([*stock, self.payment][0])

    def ends(self, outcome: Outcome, letters: dict[str, Message]) -> None:
        self.over = True
        assert self.step.outcome == outcome
        self.sent(self.step, letters)
        replies = [message for message in self.step.messages if isinstance(message, Reply)]
        assert replies == [Reply(asker, outcome) for asker in self.askers]
        word = "paid" if isinstance(outcome, Done) else outcome.reason
        assert self.step.messages[-1] == Ended("checkout", ID, "o1", word, 5)

    @invariant()
    def it_waits_for_whom_the_model_waits_for(self) -> None:
        checkout = self.step.checkout
        assert sorted(checkout.waiting) == sorted(self.said("asked") or self.said("undoing"))
        assert checkout.undoing == bool(self.said("undoing") or self.said("undone"))
        assert sorted(checkout.accepted) == sorted(self.said("holds") + self.said("undoing") + self.said("undone"))
        assert set(checkout.refusals) == {*self.said("refused"), *(["batch_init"] if self.superseded else [])}

    def teardown(self) -> None:
        """Whatever went before, it ends when each part has said what it has to say: at most two words a part."""
        for _ in range(2 * len(getattr(self, "parts", ()))):
            if not self.over:
                self.one_that_is_waited_for_answers(0, 1)
        assert getattr(self, "over", True)


TestCourse = Course.TestCase
TestCourse.settings = model(300, steps=20)


# --- the order of answers


def ended(step: Step, words: dict[str, str], order: list[int], arrival: Callable[[str], Arrival]) -> tuple[object, ...]:
    """Let each part answer, and undo, in this order of its names; return what became of it, and what it sent."""
    sent: Counter[Send] = Counter()
    told: list[tuple[Asker, Outcome]] = []
    while step.outcome is None:
        waiting = sorted(step.checkout.waiting)
        source = waiting[order[len(waiting)] % len(waiting)]
        step = hear(step, "undone" if step.checkout.undoing else words[source], arrival(source))
        sent.update(message for message in step.messages if isinstance(message, Send))
        told += [(message.asker, message.outcome) for message in step.messages if isinstance(message, Reply)]
    return step.outcome, sent, told


orders = st.lists(st.integers(0, 6), min_size=8, max_size=8)


@model(200)
@given(
    lines=lines_drawn,
    topology=topologies,
    words=st.lists(st.sampled_from(["accepted", "accepted", "refused"]), min_size=8, max_size=8),
    order=orders,
    other=orders,
)
def test_the_order_of_answers_does_not_change_the_outcome(
    lines: Lines, topology: Topology, words: list[str], order: list[int], other: list[int]
) -> None:
    step = open_checkout("o1", "ann", SETTLED_LEAST, lines, asked(ID, topology=topology))
    by_part = dict(zip(sorted(step.checkout.waiting), words, strict=False))

    first = ended(step, by_part, order, sent_by)

    assert ended(step, by_part, other, sent_by) == first
    assert (first[0] == Done("o1")) == ("refused" not in by_part.values())
