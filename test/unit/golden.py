"""A log in which everything happens, and what it came to, as text: whatever is changed later is held to it.

A line is a record: where it stands, what it says, which of its messages are dead letters, what the fold makes of it.
Each version of the rules has its file.  What is new goes to the end of the story; then

    PYTHONPATH=. .venv/bin/python test/unit/golden.py

writes the newest version's file.  It only adds lines: one that would come to something else needs a new version.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from world import MACHINES, Owner, World

from common import batch_init, fold
from common.decision import RULES, Arrival, Decision, Machine, State
from common.fold import ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS, COMMAND_AGE_MAX_MS, Folded, Header, Record
from common.messages import (
    AMOUNT_MAX,
    Asker,
    AskPrice,
    ChargeUser,
    Letter,
    Message,
    NewRules,
    PriceTold,
    RefundUser,
    ReleaseStock,
    Request,
    ReserveStock,
    Topology,
    encode,
    partition_of,
)
from common.redelivery import again
from order import checkout, domain
from order.checkout import SETTLED_LEAST
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders
from payment.domain import AddFunds, CreateUser, InitUsers, Pay
from stock.domain import AddStock, CreateItem, InitItems, SubtractStock

TOPOLOGY: Topology = {"order": 1, "stock": 2, "payment": 1}
LIMITS = ((domain, "LINES_MAX", 3), (checkout, "ASKERS_MAX", 2), (batch_init, "CHUNK_ENTITIES", 2))
RESULTS = (fold, "RESULTS_MAX", 25)
BUGS = (
    (CheckOut, "moth"),
    (PriceTold, "77"),
    (AddStock, "bug"),
    (AskPrice, "bug"),
    (ReserveStock, "wasp"),
    (ReleaseStock, "fig"),
    (ChargeUser, "bug"),
    (RefundUser, "midas"),
)
Ask = tuple[str, str, Message] | tuple[str, str, Message, str]


def path(version: int) -> Path:
    """Return where the log of a version is."""
    return Path(__file__).parent / f"golden-rules-{version}.jsonl"


@contextlib.contextmanager
def low_limits() -> Iterator[None]:
    """What takes a hundred lines, a thousand waiters or millions of results takes a few; `limits` has the real ones."""
    with ExitStack() as stack:
        for owner, name, low in (*LIMITS, RESULTS):
            stack.enter_context(patch.object(owner, name, low))
        yield


def limits() -> dict[str, int]:
    """Return the numbers that decisions depend on and that the story cannot show."""
    shown = {name: getattr(owner, name) for owner, name, _ in (*LIMITS, RESULTS)}
    return {**shown, "PAGES_PRUNED_MAX": fold.PAGES_PRUNED_MAX}


# --- what a log comes to ---------------------------------------------------------------------------------------------


def folded(records: dict[str, list[Record]], dead: dict[str, dict[tuple[int, int], int]]) -> Iterator[str]:
    """Yield the line of each record, as this code folds it."""
    with low_limits():
        for name, log in records.items():
            world = World(TOPOLOGY)
            world.log.records = {name: log}
            world.dead_letters[name] = dict(dead.get(name, {}))
            owner = Owner(name, world.machines[name.rpartition("-")[0]], world)
            header: dict[str, Any] = {}
            for record in log:
                came = owner.fold(1)
                assert came is not None
                owner.apply(came)
                header_before, header = header, plain_header(came)
                header_changes = {field: value for field, value in header.items() if header_before.get(field) != value}
                yield line(world, name, record, came, header_changes)


def line(world: World, name: str, record: Record, came: Folded, header_changes: dict[str, Any]) -> str:
    dead = {str(index): number for (at, index), number in world.dead_letters[name].items() if at == record.offset}
    state = {key: value and plain(value) for key, value in came.changes.items() if key != "header"}
    came_to = {
        "header": header_changes,
        "state": state,
        "letters": {target: [plain(letter) for letter in letters] for target, letters in came.letters.items()},
        "replies": {web: plain(encode(told)) for web, told in came.replies.items()},
        "ended": msgspec.to_builtins(came.ended),
    }
    said = {"partition": name, "offset": record.offset, "ms": record.timestamp_ms, "record": plain(record.value)}
    return msgspec.json.encode({**said, "dead": dead, "came to": came_to}).decode()


def plain_header(came: Folded) -> dict[str, Any]:
    value = came.changes["header"]
    assert value is not None
    return dict(zip(Header.__struct_fields__, plain(value), strict=True))


def plain(value: bytes) -> Any:
    """Return what the bytes say; what is here in text is there byte for byte."""
    said = msgspec.msgpack.decode(value)
    assert encode(msgspec.json.decode(msgspec.json.encode(said))) == value
    return said


def refolded(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the same records, as this code folds them."""
    records: dict[str, list[Record]] = {}
    dead: dict[str, dict[tuple[int, int], int]] = {}
    for each in map(msgspec.json.decode, lines):
        name, offset = each["partition"], each["offset"]
        records.setdefault(name, []).append(Record(offset, each["ms"], encode(each["record"])))
        dead.setdefault(name, {}).update({(offset, int(index)): number for index, number in each["dead"].items()})
    return folded(records, dead)


# --- the story -------------------------------------------------------------------------------------------------------


def tell() -> World:
    """Let everything happen."""
    with low_limits():
        world = World(TOPOLOGY, [careless(machine) for machine in MACHINES])
        for name in world.owners:
            world.log.append_value(name, encode(NewRules(RULES)))
        for chapter in CHAPTERS:
            chapter(world)
            world.run()
            world.log.now_ms += ATTEMPT_RETENTION_MS + 1
    return world


def careless(machine: Machine) -> Machine:
    """Return code with bugs: it raises on messages of a kind with a word in them."""

    def decide(state: State, message: Any, arrival: Arrival) -> Decision:
        if any(isinstance(message, kind) and word in repr(message) for kind, word in BUGS):
            raise ZeroDivisionError("planted")
        return machine.decide(state, message, arrival)

    return msgspec.structs.replace(machine, decide=decide)


def ask(world: World, *asks: Ask, age_ms: int = 0) -> None:
    """Put commands into the log together: one record for each partition."""
    records: dict[str, list[Request[Message]]] = {}
    for number, (service, entity_id, command, *key) in enumerate(asks):
        name = partition_of(service, entity_id, TOPOLOGY)
        request_id = f"{entity_id}/{f'key/{key[0]}' if key else f'attempt/{world.log.end(name)}-{number}'}"
        asker = Asker(request_id, fold.checksum(encode(command)), f"web-{number % 2}", bool(key))
        records.setdefault(name, []).append(Request(asker, world.log.now_ms - age_ms, command))
    for name, requests in records.items():
        world.log.append(name, requests)


def stock(command: Any, *key: str) -> Any:
    return ("stock", command.item_id, command, *key)


def payment(command: Any, *key: str) -> Any:
    return ("payment", command.user_id, command, *key)


def order(command: Any, *key: str) -> Any:
    return ("order", command.order_id, command, *key)


def goods(world: World) -> None:
    for item_id, price, amount in (
        ("apple", 3, 10),
        ("pear", 4, 2),
        ("fig", 1, 9),
        ("gold", SETTLED_LEAST, 5),
        ("wasp", 2, 9),
    ):
        ask(world, stock(CreateItem(item_id, price)), stock(AddStock(item_id, amount)))
    ask(
        world,
        stock(CreateItem("apple", 7)),
        stock(AddStock("apple", AMOUNT_MAX)),
        stock(AddStock("nothing", 1)),
        stock(SubtractStock("apple", 1)),
        stock(SubtractStock("apple", 10)),
        stock(SubtractStock("nothing", 1)),
        stock(AddStock("bug", 1)),
        stock(CreateItem("moth", 77)),
        stock(CreateItem("sand", 0)),
        stock(AddStock("sand", AMOUNT_MAX)),
    )


def money(world: World) -> None:
    ask(
        world,
        payment(CreateUser("ann")),
        payment(CreateUser("ann")),
        payment(AddFunds("ann", 100)),
        payment(AddFunds("ann", AMOUNT_MAX)),
        payment(AddFunds("nobody", 1)),
        payment(Pay("ann", 1)),
        payment(Pay("ann", 100)),
        payment(Pay("nobody", 1)),
        payment(CreateUser("midas")),
        payment(AddFunds("midas", AMOUNT_MAX)),
    )


def orders(world: World) -> None:
    for user_id, order_ids in (
        ("ann", "small dear long empty joined figs moth wasps small"),
        ("midas", "large unlucky"),
    ):
        ask(world, *(order(CreateOrder(order_id, user_id)) for order_id in order_ids.split()))
    ask(world, order(CreateOrder("poor", "nobody")), order(CreateOrder("bugs", "bug")))


def additions(world: World) -> None:
    ask(
        world,
        order(AddItem("nothing", "apple", 1)),
        order(AddItem("small", "nothing", 1)),
        order(AddItem("small", "bug", 1)),
        order(AddItem("small", "moth", 1)),
        order(AddItem("small", "apple", 2)),
        order(AddItem("small", "pear", 1)),
        order(AddItem("small", "apple", AMOUNT_MAX)),
        order(AddItem("small", "sand", AMOUNT_MAX)),
        order(AddItem("small", "sand", AMOUNT_MAX)),
        *(order(AddItem("long", item_id, 1)) for item_id in ("apple", "pear", "fig", "sand", "apple")),
    )
    world.run()
    world.log.now_ms += ATTEMPT_RETENTION_MS + 1
    ask(world, order(AddItem("dear", "gold", 1)))
    ask(
        world,
        order(AddItem("dear", "apple", 1)),
        order(AddItem("dear", "pear", 1)),
        order(AddItem("large", "gold", 1)),
        order(AddItem("large", "apple", 1)),
        order(AddItem("large", "sand", SETTLED_LEAST)),
        order(AddItem("joined", "pear", 9)),
        order(AddItem("joined", "apple", 1)),
        order(AddItem("poor", "pear", 9)),
        order(AddItem("figs", "fig", 1)),
        order(AddItem("figs", "gold", 1)),
        order(AddItem("wasps", "wasp", 1)),
        order(AddItem("unlucky", "pear", 9)),
    )


def checkouts(world: World) -> None:
    ask(world, order(AddItem("empty", "apple", 1)), order(CheckOut("empty")), order(AddItem("empty", "apple", 1)))
    ask(world, *(order(CheckOut(order_id)) for order_id in ("nothing", "long", "large", "dear")))
    world.run()
    ask(world, *(order(CheckOut(order_id)) for order_id in ("poor", "bugs", "moth", "wasps", "unlucky")))
    world.run()
    ask(world, order(AddItem("large", "apple", 1)), order(CheckOut("large")), order(CheckOut("figs")))
    world.run()
    ask(world, *(order(CheckOut("joined"), key) for key in ("k1", "k2", "k3", "k1")))


def replacements(world: World) -> None:
    """What is replaced while it is checked out, also while that is being undone, undoes itself."""
    ask(world, ("stock", "all", InitItems(5, 9, 2)), ("payment", "all", InitUsers(4, 50)))
    ask(world, ("order", "all", InitOrders(3, 4, 4, 1)), ("order", "all", InitOrders(1, 4, 4, AMOUNT_MAX)))
    world.run()
    ask(world, order(CheckOut("0")), order(CheckOut("1")))
    ask(world, ("order", "all", InitOrders(1, 1, 4, 1)), ("stock", "all", InitItems(1, AMOUNT_MAX, 2)))
    world.run()
    ask(world, order(AddItem("0", "pear", 9)))
    world.run()
    ask(world, order(CheckOut("0")))
    for name in ("order-0", "stock-0", "stock-1", "payment-0"):
        world.owners[name].step()
    ask(world, ("order", "all", InitOrders(3, 40, 40, 1)), ("payment", "all", InitUsers(4, AMOUNT_MAX)))
    world.owners["order-0"].step()
    world.run()
    ask(world, order(CheckOut("0")), order(CheckOut("1")), order(CheckOut("2")))


def repeats(world: World) -> None:
    """Requests and letters come again, too late, out of turn, and from a person."""
    ask(world, payment(AddFunds("ann", 5), "k1"), payment(AddFunds("ann", 5), "k1"), payment(AddFunds("ann", 6), "k1"))
    ask(world, order(CreateOrder("again", "ann")), order(AddItem("again", "apple", 1), "k1"))
    ask(world, order(AddItem("again", "apple", 1), "k1"), order(AddItem("again", "apple", 2), "k1"))
    ask(world, payment(AddFunds("ann", 7)), age_ms=COMMAND_AGE_MAX_MS + 1)
    ask(world, payment(AddFunds("ann", 8)), age_ms=-COMMAND_AGE_MAX_MS - 1)
    ask(world, payment(AddFunds("ann", 9)), age_ms=COMMAND_AGE_MAX_MS)
    world.log.append("stock-0", [Letter("order-0", 1, AskPrice("again", "apple"))])
    world.log.append("stock-0", [Letter("order-0", 9_999, AskPrice("too far", "apple"))])
    world.log.append_value("stock-0", encode(NewRules(0)))
    world.run()
    for letter in world.buried:
        redeliver(world, letter)


def redeliver(world: World, letter: fold.DeadLetter) -> None:
    record = world.log.records[letter.partition][letter.offset]
    machine = next(machine for machine in MACHINES if letter.partition.startswith(machine.service))
    envelope: Any = fold.Codec(machine).record(record.value)
    envelope = envelope.messages[letter.index]
    if isinstance(envelope, Letter) and not machine.excuse(envelope.message):
        world.owners[letter.partition] = Owner(letter.partition, machine, world)
        world.log.append(letter.partition, [again(machine, letter)])


def crowd(world: World) -> None:
    """More requests than results are kept for, and then time passes."""
    ask(world, *(payment(AddFunds("ann", 1)) for _ in range(fold.RESULTS_MAX)))
    world.run()
    for wait_ms in (ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS, 1):
        world.log.now_ms += wait_ms
        ask(world, payment(Pay("ann", 1)), stock(AddStock("pear", 1)), order(CheckOut("0")))


CHAPTERS = (goods, money, orders, additions, checkouts, replacements, repeats, crowd)


# --- writing it ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Write the newest version's log; only ever add to it."""
    file = path(RULES)
    before = file.read_text().splitlines() if file.exists() else []
    world = tell()
    after = [msgspec.json.encode(limits()).decode(), *folded(world.log.records, world.dead_letters)]
    changed = [line for line in before if line not in after]
    if changed:
        sys.exit(f"{len(changed)} lines of {file} would change, the first is\n{changed[0]}")
    file.write_text("\n".join(after) + "\n")
    sys.stdout.write(f"{len(after)} lines in {file}\n")


if __name__ == "__main__":
    main()
