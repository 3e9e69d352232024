"""Enters the calls on items and users into the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator

from histories import amounts
from histories.attempts import Attempt, Malformed
from histories.ledger import Entity, Ledger
from histories.model import Verb
from histories.orders import is_numbered

KINDS: dict[Verb, str] = {
    "create_item": "item",
    "add": "item",
    "subtract": "item",
    "find_item": "item",
    "init_items": "item",
    "create_user": "user",
    "add_funds": "user",
    "pay": "user",
    "find_user": "user",
    "init_users": "user",
    "create_order": "order",
    "add_item": "order",
    "checkout": "order",
    "find_order": "order",
    "init_orders": "order",
}
CREATES: tuple[Verb, ...] = ("create_item", "create_user")
FINDS: dict[Verb, tuple[str, ...]] = {"find_item": ("stock", "price"), "find_user": ("credit",)}
CHANGES: dict[Verb, int] = {"add": 1, "add_funds": 1, "subtract": -1, "pay": -1}
SHORTAGES = (("subtract", 409), ("pay", 402))
EXCESSES = (("add", 409), ("add_funds", 409))


class Book:
    """The attempts of one history, by verb, and all items, users and orders that they name."""

    def __init__(self, attempts: Iterable[Attempt], others: Iterable[Entity] = ()) -> None:
        self.by_verb: defaultdict[Verb, list[Attempt]] = defaultdict(list)
        named: dict[Entity, None] = dict.fromkeys(others)
        for attempt in attempts:
            self.by_verb[attempt.call.verb].append(attempt)
            named.update(dict.fromkeys(_names(attempt)))
        self.named = tuple(named)

    def of(self, *verbs: Verb) -> Iterator[Attempt]:
        """Yield the attempts with these verbs."""
        return (attempt for verb in verbs for attempt in self.by_verb[verb])

    def numbered(self, kind: str, count: int) -> list[Entity]:
        """Return what is named and is made by a batch_init of so many."""
        return [entity for entity in self.named if entity.kind == kind and is_numbered(entity.id, count)]


def entity_of(attempt: Attempt) -> Entity:
    """Return what is called or, for a create, what was made."""
    kind = KINDS[attempt.call.verb]
    made = attempt.call.verb.startswith("create_")
    return Entity(kind, attempt.field(f"{kind}_id", str) if made else (*attempt.call.ids, "?")[0])


def _names(attempt: Attempt) -> Iterator[Entity]:
    match attempt.call.verb, attempt.call.ids:
        case "create_order", (user_id,):
            yield Entity("user", user_id)
        case "add_item", (order_id, item_id):
            yield from (Entity("order", order_id), Entity("item", item_id))
        case verb, (entity_id,):
            yield Entity(KINDS[verb], entity_id)


def enter_amounts(book: Book, ledger: Ledger) -> None:
    """Enter all calls on items and users."""
    for attempt in book.of("init_items", "init_users"):
        count, *parameters = attempt.call.numbers
        for entity in [] if attempt.status else book.numbered(KINDS[attempt.call.verb], count):
            ledger.place(entity, amounts.Replaced(*parameters), attempt)
    verbs = (*CREATES, *FINDS, *CHANGES)
    for attempt in book.of(*verbs):
        enter(attempt, ledger, _move)


def enter(attempt: Attempt, ledger: Ledger, move_of: Callable[[Attempt], Hashable | None]) -> None:
    """Enter the move that an attempt is, if it is one; an answer that cannot be read is a violation."""
    try:
        move = move_of(attempt)
        if move is not None:
            ledger.place(entity_of(attempt), move, attempt)
    except Malformed as why:
        ledger.violate(Entity(KINDS[attempt.call.verb], (*attempt.call.ids, "?")[0]), attempt.operation, str(why))


def _move(attempt: Attempt) -> amounts.Move | None:
    verb, numbers = attempt.call.verb, attempt.call.numbers
    if attempt.status:
        return _refused(verb, numbers, attempt.status)
    if verb in CHANGES:
        by = CHANGES[verb] * numbers[0]
        return amounts.Changed(by, attempt.number() if attempt.is_done else None)
    if not attempt.is_done:
        return None
    if verb in CREATES:
        return amounts.Created(*numbers)
    return amounts.Found(*(attempt.field(name, int) for name in FINDS[verb]))


def _refused(verb: Verb, numbers: tuple[int, ...], status: int) -> amounts.Move:
    if status == 404 and verb not in CREATES:
        return amounts.Missed()
    if (verb, status) in SHORTAGES:
        return amounts.Short(numbers[0])
    if (verb, status) in EXCESSES:
        return amounts.Full(numbers[0])
    raise Malformed(f"api.md has no {status} for this call")
