"""I1 and I2 across the services: what there is of each account and item is what orders left of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from audit.checkouts import Case
from audit.findings import Finding, Kind
from audit.join import large, parts
from audit.keys import letter_decoder
from audit.movements import Balance, Move, balance, claims
from audit.replay import Replay
from common.messages import SettleCharge, SettleStock
from payment.domain import Account
from stock.domain import Item


def settlements(letters: Iterable[bytes]) -> set[tuple[str, str]]:
    """Return what will be settled once it is published: checkout id and key."""
    messages = (letter_decoder.decode(letter).message for letter in letters)
    settling = (message for message in messages if isinstance(message, SettleStock | SettleCharge))
    return {(message.checkout_id, key) for message in settling for key in claims(message)}


def does_not_add_up(
    replays: Iterable[Replay], cases: Iterable[Case], added: Mapping[str, int], in_flight: set[tuple[str, str]]
) -> Iterator[Finding]:
    """Each account and item has what was added, less what paid orders took, less what open checkouts hold.

    Added up over all of them this is I1 and I2 themselves; one by one nothing cancels.  Held is what open checkouts
    hold, and what paid ones took and is too small to be settled.  Where a log is trimmed, this begins with what the
    snapshot has; what a checkout did before that is in there.
    """
    replays = list(replays)
    expected = {key: balance(entity) for replay in replays for key, entity in replay.opening.entities.items()}
    for key, amount in added.items():
        was = expected.get(key, Balance())
        expected[key] = Balance(was.free + amount, was.held)
    for case in cases:
        for key, taken, held in _taken(case, in_flight):
            was = expected.get(key, Balance())
            expected[key] = Balance(was.free - taken, was.held + held)
    for replay in replays:
        for key, entity in replay.memory.items():
            if isinstance(entity, Item | Account) and balance(entity) != expected.get(key, Balance()):
                yield _finding(replay, key, balance(entity), expected.get(key, Balance()))


def _taken(case: Case, in_flight: set[tuple[str, str]]) -> Iterator[tuple[str, int, int]]:
    """Yield what a checkout takes away from what is free, and adds to what is held, by key."""
    if case.order is None and not case.is_before:
        return
    if case.outcome == "paid":
        settled = {key for key in large(case) if (case.id, key) not in in_flight}
        for key, amount in parts(case).items():
            taken = 0 if key in case.unseen else amount
            is_settled = key in settled and key not in case.settled_unseen
            yield key, taken, taken - amount if is_settled else taken
    elif case.outcome == "failed":
        for key in case.moved(Move.UNDO, "").keys() & case.unseen.keys():
            amount = parts(case).get(key, 0)
            yield key, -amount, -amount
    else:
        for each in case.movements:
            taken = {Move.HOLD: each.amount, Move.UNDO: -each.amount}.get(each.move, 0)
            yield each.key, taken, -each.amount if each.move is Move.SETTLE else taken


def _finding(replay: Replay, key: str, is_: Balance, should_be: Balance) -> Finding:
    kind = Kind.MONEY_DOES_NOT_ADD_UP if key.startswith("Account:") else Kind.GOODS_DO_NOT_ADD_UP
    free, held = is_.free - should_be.free, is_.held - should_be.held
    detail = f"free is {is_.free}, by its orders {should_be.free} ({free:+}); held {is_.held}, by its orders "
    return Finding(kind, key, replay.name, f"{detail}{should_be.held} ({held:+})")
