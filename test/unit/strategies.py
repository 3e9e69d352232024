"""What hypothesis draws, and how it runs: the same examples every time, and nothing kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import hypothesis.strategies as st
import msgspec
import msgspec.inspect as types
from builders import TWO_EACH
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy
from world import MACHINES, World

from common.decision import Machine
from common.messages import AMOUNT_MAX, Asker, Message, NewRules, Request, encode, partition_of, partitions_of
from order.checkout import SETTLED_LEAST
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders
from payment.domain import AddFunds, CreateUser, InitUsers, Pay
from stock.domain import AddStock, CreateItem, InitItems, SubtractStock

MINUTE_MS = 60_000

set_hypothesis_home_dir(Path(__file__).parents[2] / ".cache" / "hypothesis")
settings.register_profile(
    "model",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def model(examples: int, steps: int = 40) -> settings:
    """Return how to run a property: as the profile says, so many examples (of so many steps, if it has steps)."""
    return settings(settings.get_profile("model"), max_examples=examples, stateful_step_count=steps)


# --- any value of a type ---------------------------------------------------------------------------------------------


def of(kind: Any) -> SearchStrategy[Any]:
    """Return any value that msgspec lets through for a type."""
    return _of(types.type_info(kind))


def _of(info: types.Type) -> SearchStrategy[Any]:
    match info:
        case types.UnionType():
            return st.one_of([_of(kind) for kind in info.types])
        case types.StructType():
            return st.builds(info.cls, *(_of(field.type) for field in info.fields))
        case types.VarTupleType():
            return st.lists(_of(info.item_type), max_size=3).map(tuple)
        case types.TupleType():
            return st.tuples(*(_of(kind) for kind in info.item_types))
        case types.ListType():
            return st.lists(_of(info.item_type), max_size=3)
        case types.DictType():
            return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3)
        case types.EnumType():
            return st.sampled_from(info.cls)
        case _:
            return SCALARS[type(info)]


SCALARS: dict[type[types.Type], SearchStrategy[Any]] = {
    types.IntType: st.integers(-(2**63), 2**64 - 1) | st.integers(0, 3) | st.just(AMOUNT_MAX),
    types.StrType: st.text(max_size=5),
    types.BytesType: st.binary(max_size=5),
    types.BoolType: st.booleans(),
    types.NoneType: st.none(),
}


def plain(value: Any, spoil: Callable[[msgspec.Struct, list[Any]], list[Any]] = lambda _, fields: fields) -> Any:
    """Return what a value looks like in the log: a struct is a list of its tag and its fields.  `spoil` changes it."""
    match value:
        case msgspec.Struct():
            tag = value.__struct_config__.tag
            fields = [plain(getattr(value, name), spoil) for name in value.__struct_fields__]
            return spoil(value, fields if tag is None else [tag, *fields])
        case dict():
            return {key: plain(part, spoil) for key, part in value.items()}
        case list() | tuple():
            return [plain(part, spoil) for part in value]
        case _:
            return value


# --- numbers that matter ---------------------------------------------------------------------------------------------

small = st.integers(0, 4)
amounts = small | st.sampled_from([SETTLED_LEAST - 1, SETTLED_LEAST, AMOUNT_MAX // 2, AMOUNT_MAX - 1, AMOUNT_MAX])
"""What a client may say: few, around a limit, or the most of all."""
quantities = amounts.filter(bool)


# --- what happens to a whole system ----------------------------------------------------------------------------------


class Shown(msgspec.Struct, frozen=True):
    """What a failing example shows as it can be typed: hypothesis would show how it was drawn."""

    def _repr_pretty_(self, printer: Any, _cycle: Any) -> None:
        printer.text(repr(self))


class Ask(Shown, frozen=True):
    """A command.  Without a `key` nothing else is a repeat of it; `age_ms` is how long it took to the log."""

    service: str
    entity_id: str
    command: Message
    key: str = ""
    age_ms: int = 0


class Asks(Shown, frozen=True):
    """Commands that web processes put into the log together: one record for each partition."""

    asks: list[Ask]


class Do(Shown, frozen=True):
    """Something that one partition's owner, or the broker, does."""

    what: str
    partition: str


class Wait(Shown, frozen=True):
    """The broker's clock goes on, or back."""

    milliseconds: int


class Script(Shown, frozen=True):
    """What is there in the beginning, where batches end, and what happens then."""

    stock: int
    price: int
    money: int
    quantity: int
    records_max: int
    letters_max: int
    acts: list[Asks | Do | Wait]


PARTITIONS = [partition for service in TWO_EACH for partition in partitions_of(service, TWO_EACH)]
STEPS = ("step", "fold and crash", "publish and crash", "apply twice", "run", "nothing but an empty record")
# Some of each live in one partition, some in the other.
ORDERS = ("0", "0", "4", "4", "5", "o3")
ITEMS = ("0", "1", "4", "5", "fig")
USERS = ("0", "4", "bob")


def _with(service: str, entity_ids: tuple[str, ...], kind: type[Message], *fields: SearchStrategy[Any]) -> Any:
    def ask(drawn: tuple[Any, ...]) -> Ask:
        entity_id, key, *values = drawn
        return Ask(service, entity_id, kind(entity_id, *values), key)

    return st.tuples(st.sampled_from(entity_ids), st.sampled_from(["", "", "", "a", "b"]), *fields).map(ask)


commands = st.one_of(
    *(_with("order", ORDERS, CheckOut) for _ in range(5)),
    _with("order", ORDERS, CreateOrder, st.sampled_from(USERS)),
    _with("order", ORDERS, AddItem, st.sampled_from(ITEMS), quantities),
    _with("stock", ITEMS, CreateItem, amounts),
    _with("stock", ITEMS, AddStock, amounts),
    _with("stock", ITEMS, SubtractStock, amounts),
    _with("payment", USERS, CreateUser),
    _with("payment", USERS, AddFunds, amounts),
    _with("payment", USERS, Pay, amounts),
    st.builds(
        lambda count, price: Ask("order", "i", InitOrders(count, 6, 6, price)), st.sampled_from([1, 1, 1, 6]), small
    ),
)
late = st.builds(lambda ask: msgspec.structs.replace(ask, key="", age_ms=10 * MINUTE_MS), commands)
inits = st.one_of(
    st.builds(lambda stock, price: Ask("stock", "i", InitItems(6, stock, price)), amounts, amounts),
    st.builds(lambda money: Ask("payment", "i", InitUsers(6, money)), amounts),
)


def scripts(asks: SearchStrategy[Ask], waits_ms: tuple[int, ...] = (1, -1), acts: int = 10) -> SearchStrategy[Script]:
    """Return scripts of these commands, with crashes, and empty records that leave room for others."""
    one_act = st.one_of(
        st.builds(Asks, st.lists(asks, min_size=1, max_size=3)),
        st.builds(Do, st.sampled_from(STEPS), st.sampled_from(PARTITIONS)),
        st.builds(Wait, st.sampled_from(waits_ms)),
    )
    return st.builds(
        Script,
        st.sampled_from([6, 3 * SETTLED_LEAST, 0]),
        st.sampled_from([5, 0, SETTLED_LEAST]),
        st.sampled_from([60, AMOUNT_MAX, 10 * SETTLED_LEAST]),
        st.sampled_from([1, SETTLED_LEAST]),
        st.integers(1, 4),
        st.integers(1, 4),
        st.lists(one_act, min_size=acts, max_size=4 * acts),
    )


def play(script: Script, machines: Iterable[Machine] = MACHINES) -> tuple[World, list[Asker]]:
    """Let a script happen, and then whatever is left to do; return the world, and everybody who asked."""
    world = World(TWO_EACH, machines, records_max=script.records_max, letters_max=script.letters_max)
    askers: list[Asker] = []
    for act in [*_beginning(script), *script.acts, Do("run", "")]:
        match act:
            case Asks():
                askers += _put(world, act.asks, len(askers))
            case Do():
                _do(world, act)
            case Wait():
                world.log.now_ms += act.milliseconds
    return world, askers


def _beginning(script: Script) -> list[Asks | Do]:
    items = Ask("stock", "i", InitItems(6, script.stock, script.price))
    users = Ask("payment", "i", InitUsers(6, script.money))
    creates = [Ask("order", "0", CreateOrder("0", "4")), Ask("order", "4", CreateOrder("4", "0"))]
    additions = [("0", "0", script.quantity), ("0", "4", 2), ("4", "5", 3 * script.quantity)]
    adds = [Ask("order", addition[0], AddItem(*addition)) for addition in additions]
    return [Asks([items, users]), Do("run", ""), Asks([*creates, *adds]), Do("run", "")]


def _put(world: World, asks: list[Ask], count: int) -> list[Asker]:
    records: dict[str, list[Request[Message]]] = {}
    for number, ask in enumerate(asks, count):
        partition = partition_of(ask.service, ask.entity_id, TWO_EACH)
        request_id = f"{ask.entity_id}/{f'key/{ask.key}' if ask.key else f'attempt/{number}'}"
        asker = Asker(request_id, crc32(repr(ask.command).encode()), f"web-{number % 2}", bool(ask.key))
        records.setdefault(partition, []).append(Request(asker, world.log.now_ms - ask.age_ms, ask.command))
    for partition, requests in records.items():
        world.log.append(partition, requests)
    return [request.asker for requests in records.values() for request in requests]


def _do(world: World, act: Do) -> None:
    if act.what == "run":
        world.run()
        return
    if act.what == "nothing but an empty record":
        world.log.append(act.partition, [])
        return
    if act.what == "new rules":
        world.log.append_value(act.partition, encode(NewRules(2)))
        return
    owner = world.owners[act.partition]
    folded = owner.fold(world.records_max)
    if folded is None:
        return
    if act.what != "fold and crash":
        owner.publish(folded)
    if act.what.endswith("and crash"):
        owner.load()
        return
    owner.apply(folded)
    if act.what == "apply twice":
        owner.apply(folded)
