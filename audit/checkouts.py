"""Every checkout, pieced together from all logs: what its order asked and heard, what stock and payment did for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from audit.facts import Fact
from audit.findings import Finding, Kind
from audit.movements import Hold, Move, Movement, OfCheckout, Undo, claims, is_accepted, movements
from audit.opening import Opening, holds_of, order_of
from common.batch_init import FillChunk
from common.decision import Reply
from common.messages import (
    ChargeRefused,
    Done,
    StockRefused,
    StockReleased,
    StockReserved,
    UserCharged,
    UserRefunded,
)
from order.checkout import Checkout
from order.domain import Order

Answer = StockReserved | StockRefused | UserCharged | ChargeRefused
Answers = Counter[tuple[str, bool]]
"""How often each partition accepted and refused."""


class Case(msgspec.Struct):
    """One checkout.  `order` is None for one that no order knows.

    `order` is as the checkout found it, once it is paid as it was paid.  `outstanding` counts what was asked and not
    answered, by partition.  `decided` is what the partitions decided, `heard` what the order was told of it.
    `undoing` are the keys whose undo was sent.

    Where logs are trimmed, `is_before` says that the command is older than its order's log; then `wanted` are the keys
    to be held, with their partitions.  `unseen` are the keys whose hold is older than the log of their partition, and
    `settled_unseen` those of which the same is known of the settlement.
    """

    id: str
    order_id: str = ""
    order: Order | None = None
    outcome: str = "open"
    seen: list[str] = []
    movements: list[Movement] = []
    outstanding: Counter[str] = msgspec.field(default_factory=Counter)
    decided: Answers = msgspec.field(default_factory=Counter)
    heard: Answers = msgspec.field(default_factory=Counter)
    undoing: set[str] = set()
    is_before: bool = False
    wanted: dict[str, str] = {}
    unseen: dict[str, str] = {}
    settled_unseen: set[str] = set()

    @property
    def is_in_part(self) -> bool:
        """Say whether some of it is older than the logs."""
        return self.is_before or bool(self.unseen)

    def moved(self, move: Move, kind: str) -> dict[str, list[Movement]]:
        """Return the movements of accounts ("Account") or items ("Item"), by key."""
        found: dict[str, list[Movement]] = {}
        for each in self.movements:
            if each.move is move and each.key.startswith(kind):
                found.setdefault(each.key, []).append(each)
        return found

    def finding(self, kind: Kind, detail: str, moved: Iterable[Movement] = (), key: str = "") -> Finding:
        """Return what is wrong with this checkout."""
        entity = f"Order:{self.order_id}" if self.order_id else f"Checkout:{self.id}"
        shown = list(moved)
        related = dict.fromkeys((f"Checkout:{self.id}", *((key,) if key else ()), *(each.key for each in shown)))
        messages = tuple(each.message_id for each in shown) or tuple(self.seen[:1])
        partition = (messages[0] if messages else self.id).rsplit("-", 2)[0]
        return Finding(kind, entity, partition, f"checkout {self.id}: {detail}", messages, tuple(related))


class Checkouts:
    """Collects the cases, and watches each order from decision to decision."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.findings: list[Finding] = []
        self._paid_by: dict[str, str] = {}

    def begin(self, _name: str, opening: Opening) -> None:
        """Note the checkouts that are open, and the orders that are paid, where a partition's records begin."""
        for key, entity in opening.entities.items():
            if isinstance(entity, Checkout):
                self.cases[entity.id] = _begun(entity)
            elif isinstance(entity, Order) and entity.paid:
                self._paid_by[key.partition(":")[2]] = "one before the log begins"

    def take(self, fact: Fact) -> None:
        """Note what a message has to do with a checkout."""
        message = fact.message
        if isinstance(message, OfCheckout):
            self._take_part(fact, message)
        elif fact.decision is not None and not fact.is_dead:
            self._take_order(fact)

    def _case(self, checkout_id: str, fact: Fact) -> Case:
        case = self.cases.get(checkout_id)
        if case is None:
            case = self.cases[checkout_id] = Case(checkout_id)
        case.seen.append(fact.id)
        return case

    # --- what stock and payment do

    def _take_part(self, fact: Fact, message: OfCheckout) -> None:
        if fact.decision is None:
            return
        case = self._case(message.checkout_id, fact)
        case.movements.extend(movements(fact))
        if isinstance(message, Hold):
            case.decided[fact.partition, is_accepted(fact)] += 1

    # --- what order does

    def _take_order(self, fact: Fact) -> None:
        message = fact.message
        if isinstance(message, Answer):
            case = self._case(message.checkout_id, fact)
            case.heard[fact.source, isinstance(message, StockReserved | UserCharged)] += 1
            case.outstanding[fact.source] -= 1
        elif isinstance(message, StockReleased | UserRefunded):
            self._case(message.checkout_id, fact).outstanding[fact.source] -= 1
        for send in fact.sends():
            if isinstance(send.message, Hold | Undo):
                case = self._case(send.message.checkout_id, fact)
                case.outstanding[send.partition] += 1
                if isinstance(send.message, Undo):
                    case.undoing.update(claims(send.message))
        changes = list(fact.changes())
        closed = [self._close(fact, before) for _, before, after in changes if _is_end(before, after)]
        for key, before, after in changes:
            if isinstance(after, Checkout) and before is None:
                self._open(fact, after)
            elif isinstance(after, Order):
                self._watch(fact, before, after, key.partition(":")[2], closed)

    def _open(self, fact: Fact, checkout: Checkout) -> None:
        case = self._case(checkout.id, fact)
        order = fact.before.get(f"Order:{checkout.order_id}")
        case.order_id = checkout.order_id
        case.order = order if isinstance(order, Order) else None

    def _close(self, fact: Fact, checkout: Checkout) -> Case:
        """Note the outcome: paid where the order says so, whatever was answered."""
        case = self._case(checkout.id, fact)
        assert fact.decision is not None
        order = fact.decision.state.get(f"Order:{checkout.order_id}")
        is_paid = isinstance(order, Order) and order.paid
        case.outcome = "paid" if is_paid else "failed"
        case.order = order if is_paid and isinstance(order, Order) else case.order
        if any(case.outstanding.values()):
            waiting = sorted(partition for partition, count in case.outstanding.items() if count)
            self.findings.append(self._by(fact, case, Kind.ENDED_EARLY, f"{', '.join(waiting)} had not answered"))
        if any(isinstance(reply.outcome, Done) != is_paid for reply in fact.emitted(Reply)):
            self.findings.append(self._by(fact, case, Kind.TOLD_OTHERWISE, f"the order is {case.outcome}"))
        return case

    def _watch(self, fact: Fact, before: Order | None, after: Order, order_id: str, closed: list[Case]) -> None:
        """Follow one order: it is paid once, by a checkout, and stays as it was paid until batch_init replaces it."""
        if isinstance(fact.message, FillChunk):
            self._paid_by.pop(order_id, None)
            before = None
        if before is not None and before.paid and not after.paid:
            self._find_order(fact, Kind.PAID_AND_FORGOTTEN, order_id, f"{before} became {after}")
        paying = next((case for case in closed if case.order_id == order_id and case.outcome == "paid"), None)
        if paying is None and after.paid and not (before and before.paid):
            self._find_order(fact, Kind.PAID_WITHOUT_CHECKOUT, order_id, "it is paid, and no checkout of it ended")
        if paying is not None and order_id in self._paid_by:
            detail = f"by checkout {self._paid_by[order_id]} and by {paying.id}"
            self._find_order(fact, Kind.PAID_TWICE, order_id, detail, f"Checkout:{paying.id}")
        if paying is not None:
            self._paid_by[order_id] = paying.id

    def _by(self, fact: Fact, case: Case, kind: Kind, detail: str) -> Finding:
        return msgspec.structs.replace(case.finding(kind, detail), messages=(fact.id,), partition=fact.partition)

    def _find_order(self, fact: Fact, kind: Kind, order_id: str, detail: str, *related: str) -> None:
        self.findings.append(Finding(kind, f"Order:{order_id}", fact.partition, detail, (fact.id,), related))


def _begun(checkout: Checkout) -> Case:
    """Return the case of a checkout that is open where its order's records begin."""
    wanted = holds_of(checkout)
    refused = {partition for partition in checkout.refusals if partition in wanted.values()}
    heard = [(partition, True) for partition in checkout.accepted] + [(partition, False) for partition in refused]
    undoing = {key for key, partition in wanted.items() if checkout.undoing and partition in checkout.accepted}
    return Case(
        checkout.id,
        checkout.order_id,
        order_of(checkout),
        outstanding=Counter(checkout.waiting),
        heard=Counter(heard),
        undoing=undoing,
        is_before=True,
        wanted=wanted,
    )


def _is_end(before: object, after: object) -> bool:
    return isinstance(before, Checkout) and after is None
