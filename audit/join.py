"""I3: orders, charges and deductions, joined one by one.  Sums are not enough: two opposite mistakes cancel in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from audit.checkouts import Case
from audit.findings import Finding, Kind
from audit.movements import Move, Movement
from order.checkout import SETTLED_LEAST

Moved = dict[str, list[Movement]]
"""Movements of one kind, by the key of the account or item."""


def join(case: Case, in_flight: set[tuple[str, str]]) -> Iterator[Finding]:
    """Yield what does not fit together.  `in_flight` has the settlements not published yet: checkout id and key."""
    if case.order is None:
        yield from _ended_before(case) if case.is_before else _unknown(case)
        return
    yield from _charge_fits(case)
    yield from _deductions_fit(case)
    yield from _heard(case)
    if case.outcome == "paid":
        yield from _complete(case)
    if case.outcome == "failed":
        yield from _undone(case, case.moved(Move.HOLD, ""), case.moved(Move.UNDO, ""))
    yield from _settled(case, in_flight)


def _unknown(case: Case) -> Iterator[Finding]:
    """No order knows this checkout: nothing may have moved for it."""
    for moved in case.moved(Move.HOLD, "Account").values():
        yield case.finding(Kind.CHARGE_WITHOUT_ORDER, f"{_amounts(moved)} of {moved[0].key}", moved)
    for moved in case.moved(Move.HOLD, "Item").values():
        yield case.finding(Kind.DEDUCTION_WITHOUT_ORDER, f"{_amounts(moved)} of {moved[0].key}", moved)
    holds = case.moved(Move.HOLD, "")
    for key, moved in case.moved(Move.UNDO, "").items():
        if key not in holds:
            yield case.finding(Kind.UNDO_WITHOUT_HOLD, f"{_amounts(moved)} of {key}", moved)


def _ended_before(case: Case) -> Iterator[Finding]:
    """Its order's log begins behind its end: what is seen of it is at least no more than one checkout does."""
    for key, held in case.moved(Move.HOLD, "").items():
        if len(held) > 1:
            yield case.finding(_twice(key), f"{_amounts(held)} of {key}", held)
    for key, undone in case.moved(Move.UNDO, "").items():
        held = case.moved(Move.HOLD, "").get(key, undone[:1])
        if len(undone) > 1:
            yield case.finding(Kind.UNDONE_TWICE, f"{_amounts(undone)} of {key}", undone)
        elif held[0].amount != undone[0].amount:
            detail = f"{_amounts(held)} of {key} was held, {_amounts(undone)} undone"
            yield case.finding(Kind.UNDO_OF_ANOTHER_AMOUNT, detail, held + undone)


def _twice(key: str) -> Kind:
    return Kind.CHARGED_TWICE if key.startswith("Account:") else Kind.DEDUCTED_TWICE


def _charge_fits(case: Case) -> Iterator[Finding]:
    """One charge at most, of the order's user and of exactly its total."""
    assert case.order is not None
    charges = [charge for moved in case.moved(Move.HOLD, "Account").values() for charge in moved]
    unseen = [key for key in case.unseen if key.startswith("Account:")]
    if charges and len(charges) + len(unseen) > 1:
        yield case.finding(Kind.CHARGED_TWICE, f"{_amounts(charges)} were charged{_and_before(unseen)}", charges)
    for charge in charges:
        if charge.key != f"Account:{case.order.user_id}":
            detail = f"{charge.key} was charged, the order is {case.order.user_id}'s"
            yield case.finding(Kind.CHARGE_OF_ANOTHER_USER, detail, [charge])
        if charge.amount != case.order.total_cost:
            detail = f"{charge.amount} was charged, the order's total is {case.order.total_cost}"
            yield case.finding(Kind.CHARGE_OF_ANOTHER_AMOUNT, detail, [charge])


def _deductions_fit(case: Case) -> Iterator[Finding]:
    """One deduction a line at most, of exactly its quantity, and none without a line."""
    assert case.order is not None
    lines = {f"Item:{item_id}": quantity for item_id, quantity in case.order.lines}
    for key, moved in case.moved(Move.HOLD, "Item").items():
        if key not in lines:
            yield case.finding(Kind.DEDUCTION_WITHOUT_LINE, f"{_amounts(moved)} of {key}", moved)
            continue
        unseen = [key] if key in case.unseen else []
        if len(moved) + len(unseen) > 1:
            yield case.finding(Kind.DEDUCTED_TWICE, f"{_amounts(moved)} of {key}{_and_before(unseen)}", moved)
        for each in moved:
            if each.amount != lines[key]:
                detail = f"{each.amount} of {key} were deducted, the order has {lines[key]}"
                yield case.finding(Kind.DEDUCTION_OF_ANOTHER_QUANTITY, detail, [each])


def _heard(case: Case) -> Iterator[Finding]:
    for partition, was_accepted in sorted(case.heard - case.decided):
        if partition in case.unseen.values():
            continue
        detail = f"the order heard that {partition} {'accepted' if was_accepted else 'refused'}: it did not"
        yield case.finding(Kind.HEARD_OTHERWISE, detail)


def _complete(case: Case) -> Iterator[Finding]:
    """Paid: a charge, a deduction a line, and nothing of it undone."""
    assert case.order is not None
    if not case.moved(Move.HOLD, "Account") and not _is_held_before(case, f"Account:{case.order.user_id}"):
        detail = f"the order's total is {case.order.total_cost}"
        yield case.finding(Kind.PAID_WITHOUT_CHARGE, detail, key=f"Account:{case.order.user_id}")
    deducted = case.moved(Move.HOLD, "Item")
    for item_id, quantity in case.order.lines:
        if f"Item:{item_id}" not in deducted and not _is_held_before(case, f"Item:{item_id}"):
            yield case.finding(Kind.DEDUCTION_MISSING, f"{quantity} of {item_id}", key=f"Item:{item_id}")
    for key, moved in case.moved(Move.UNDO, "").items():
        yield case.finding(Kind.PAID_BUT_UNDONE, f"{_amounts(moved)} of {key}", moved)


def _is_held_before(case: Case, key: str) -> bool:
    """Say whether it was held before the log of its partition begins, by what the order has heard."""
    return key in case.unseen and (case.unseen[key], True) in case.heard


def _undone(case: Case, holds: Moved, undos: Moved) -> Iterator[Finding]:
    """Failed: each hold was undone, once, and exactly it."""
    yield from _undone_unseen(case, undos)
    for key in sorted((holds.keys() | undos.keys()) - case.unseen.keys()):
        held, undone = holds.get(key, []), undos.get(key, [])
        detail = f"{_amounts(held) or 'nothing'} of {key} was held, {_amounts(undone) or 'nothing'} undone"
        if len(held) > len(undone):
            kind = Kind.FAILED_BUT_CHARGED if key.startswith("Account:") else Kind.FAILED_BUT_DEDUCTED
            yield case.finding(kind, detail, held + undone)
        elif len(held) < len(undone):
            yield case.finding(Kind.UNDONE_TWICE if held else Kind.UNDO_WITHOUT_HOLD, detail, held + undone)
        elif sorted(each.amount for each in held) != sorted(each.amount for each in undone):
            yield case.finding(Kind.UNDO_OF_ANOTHER_AMOUNT, detail, held + undone)


def _undone_unseen(case: Case, undos: Moved) -> Iterator[Finding]:
    """Of a hold that was not seen its order has heard, and has sent an undo: whatever is sent is taken."""
    for key in sorted(case.unseen):
        undone = undos.get(key, [])
        if _is_held_before(case, key) and key not in case.undoing:
            kind = Kind.FAILED_BUT_CHARGED if key.startswith("Account:") else Kind.FAILED_BUT_DEDUCTED
            yield case.finding(kind, f"{key} was held before the log begins, and not undone", key=key)
        elif len(undone) > 1:
            yield case.finding(Kind.UNDONE_TWICE, f"{_amounts(undone)} of {key}", undone)
        elif undone and undone[0].amount != parts(case).get(key):
            detail = f"{_amounts(undone)} of {key} undone, the order has {parts(case).get(key)}"
            yield case.finding(Kind.UNDO_OF_ANOTHER_AMOUNT, detail, undone)


def _settled(case: Case, in_flight: set[tuple[str, str]]) -> Iterator[Finding]:
    """What is large is settled once it is paid, once; what is small never is."""
    due = large(case) if case.outcome == "paid" else {}
    settled = case.moved(Move.SETTLE, "")
    for key in sorted(due.keys() | settled.keys()):
        if key in case.settled_unseen:
            continue
        amounts = [each.amount for each in settled.get(key, [])]
        expected = [due[key]] if key in due and (case.id, key) not in in_flight else []
        if amounts != expected:
            detail = f"{amounts} of {key} was settled, not {expected}"
            yield case.finding(Kind.SETTLED_WRONGLY, detail, settled.get(key, []), key)


def large(case: Case) -> dict[str, int]:
    """Return what of an order is settled when it is paid, by key."""
    return {key: amount for key, amount in parts(case).items() if amount >= SETTLED_LEAST}


def parts(case: Case) -> Mapping[str, int]:
    """Return what an order takes: its total of the account, and its lines, by key."""
    assert case.order is not None
    items = {f"Item:{item_id}": quantity for item_id, quantity in case.order.lines}
    return {f"Account:{case.order.user_id}": case.order.total_cost, **items}


def _and_before(unseen: list[str]) -> str:
    return f", and {' and '.join(unseen)} before the log begins" if unseen else ""


def _amounts(moved: list[Movement]) -> str:
    return " and ".join(str(each.amount) for each in moved)
