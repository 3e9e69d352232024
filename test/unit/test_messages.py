"""What stands in logs and stores for years: encodings and places that must never change."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

import msgspec
import pytest
from world import MACHINES, ORDER, PAYMENT, STOCK

from common.batch_init import BatchInit, ChunkFilled, FillChunk
from common.decision import Entity, Machine
from common.fold import Codec, Header, Page, Result, Shelf, UndecodableRecord, result_key
from common.messages import (
    AMOUNT_MAX,
    RECORD_BYTES_MAX,
    Asker,
    AskPrice,
    Batch,
    ChargeRefused,
    ChargeUser,
    Done,
    Genesis,
    Letter,
    Message,
    NewRules,
    PriceRefused,
    PriceTold,
    Reason,
    RefundUser,
    Refused,
    ReleaseStock,
    Request,
    ReserveStock,
    SettleCharge,
    SettleStock,
    StockRefused,
    StockReleased,
    StockReserved,
    Told,
    UserCharged,
    UserRefunded,
    checksum,
    encode,
    encode_batch,
    partition_of,
    partitions_of,
)
from order.checkout import Checkout
from order.domain import AddItem, Addition, CheckOut, CreateOrder, InitOrders, Order
from payment.domain import Account, AddFunds, CreateUser, InitUsers, Pay
from stock.domain import AddStock, CreateItem, InitItems, Item, SubtractStock

ASKER = Asker("o1/key/k1", 2**64 - 1, "web-1", is_client_key=True)
ASKER_PLAIN = ["o1/key/k1", 2**64 - 1, "web-1", True]
REFUSED = Refused(Reason.CONFLICT, "out of stock")
REFUSED_PLAIN = ["Refused", "conflict", "out of stock"]
LINES = (("apple", 2), ("pear", 1))
LINES_PLAIN = [["apple", 2], ["pear", 1]]

MESSAGES: list[tuple[Machine, Message, list[Any]]] = [
    (ORDER, CreateOrder("o1", "ann"), ["CreateOrder", "o1", "ann"]),
    (ORDER, AddItem("o1", "apple", 2), ["AddItem", "o1", "apple", 2]),
    (ORDER, CheckOut("o1"), ["CheckOut", "o1"]),
    (ORDER, InitOrders(1, 2, 3, 4), ["InitOrders", 1, 2, 3, 4]),
    (ORDER, PriceTold("a1", AMOUNT_MAX), ["PriceTold", "a1", AMOUNT_MAX]),
    (ORDER, PriceTold("a1", None), ["PriceTold", "a1", None]),
    (ORDER, PriceRefused("a1", REFUSED), ["PriceRefused", "a1", REFUSED_PLAIN]),
    (ORDER, StockReserved("c1"), ["StockReserved", "c1"]),
    (ORDER, StockRefused("c1", REFUSED), ["StockRefused", "c1", REFUSED_PLAIN]),
    (ORDER, StockReleased("c1"), ["StockReleased", "c1"]),
    (ORDER, UserCharged("c1"), ["UserCharged", "c1"]),
    (ORDER, ChargeRefused("c1", REFUSED), ["ChargeRefused", "c1", REFUSED_PLAIN]),
    (ORDER, UserRefunded("c1"), ["UserRefunded", "c1"]),
    (ORDER, FillChunk("i1", 0, 9, (1, 2, 3, 4)), ["FillChunk", "i1", 0, 9, [1, 2, 3, 4]]),
    (ORDER, ChunkFilled("i1", 9), ["ChunkFilled", "i1", 9]),
    (STOCK, CreateItem("apple", 5), ["CreateItem", "apple", 5]),
    (STOCK, AddStock("apple", 5), ["AddStock", "apple", 5]),
    (STOCK, SubtractStock("apple", 5), ["SubtractStock", "apple", 5]),
    (STOCK, InitItems(1, 2, 3), ["InitItems", 1, 2, 3]),
    (STOCK, AskPrice("a1", "apple"), ["AskPrice", "a1", "apple"]),
    (STOCK, ReserveStock("c1", LINES), ["ReserveStock", "c1", LINES_PLAIN]),
    (STOCK, SettleStock("c1", LINES), ["SettleStock", "c1", LINES_PLAIN]),
    (STOCK, ReleaseStock("c1", LINES), ["ReleaseStock", "c1", LINES_PLAIN]),
    (STOCK, FillChunk("i1", 0, 9, (1, 2)), ["FillChunk", "i1", 0, 9, [1, 2]]),
    (STOCK, ChunkFilled("i1", 9), ["ChunkFilled", "i1", 9]),
    (PAYMENT, CreateUser("ann"), ["CreateUser", "ann"]),
    (PAYMENT, AddFunds("ann", 5), ["AddFunds", "ann", 5]),
    (PAYMENT, Pay("ann", 5), ["Pay", "ann", 5]),
    (PAYMENT, InitUsers(1, 2), ["InitUsers", 1, 2]),
    (PAYMENT, ChargeUser("c1", "ann", 5), ["ChargeUser", "c1", "ann", 5]),
    (PAYMENT, SettleCharge("c1", "ann", 5), ["SettleCharge", "c1", "ann", 5]),
    (PAYMENT, RefundUser("c1", "ann", 5), ["RefundUser", "c1", "ann", 5]),
    (PAYMENT, FillChunk("i1", 0, 9, (1,)), ["FillChunk", "i1", 0, 9, [1]]),
    (PAYMENT, ChunkFilled("i1", 9), ["ChunkFilled", "i1", 9]),
]
CHECKOUT = Checkout(
    "c1", "o1", "ann", 17, "payment-0", {"stock-0": LINES}, 1_700_000_000_000, ("stock-0",), (ASKER,), ("payment-0",),
    {"stock-1": REFUSED}, undoing=True,
)  # fmt: skip
CHECKOUT_PLAIN = [
    "Checkout", "c1", "o1", "ann", 17, "payment-0", {"stock-0": LINES_PLAIN}, 1_700_000_000_000, ["stock-0"],
    [ASKER_PLAIN], ["payment-0"], {"stock-1": REFUSED_PLAIN}, True,
]  # fmt: skip
BATCH_INIT = BatchInit(ASKER, 10, (1, 2), ("stock-0",))
BATCH_INIT_PLAIN = ["BatchInit", ASKER_PLAIN, 10, [1, 2], ["stock-0"]]

ENTITIES: list[tuple[Machine, Entity, list[Any]]] = [
    (ORDER, Order("ann", LINES, 17, True, "c1"), ["Order", "ann", LINES_PLAIN, 17, True, "c1"]),  # noqa: FBT003
    (ORDER, Addition(ASKER, "o1", "apple", 2), ["Addition", ASKER_PLAIN, "o1", "apple", 2]),
    (ORDER, CHECKOUT, CHECKOUT_PLAIN),
    (ORDER, BATCH_INIT, BATCH_INIT_PLAIN),
    (STOCK, Item(5, 1, 2), ["Item", 5, 1, 2]),
    (STOCK, BATCH_INIT, BATCH_INIT_PLAIN),
    (PAYMENT, Account(1, 2), ["Account", 1, 2]),
    (PAYMENT, BATCH_INIT, BATCH_INIT_PLAIN),
    *((machine, Result(7, Done("9")), ["Result", 7, ["Done", "9"]]) for machine in MACHINES),
    *((machine, Result(7, REFUSED), ["Result", 7, REFUSED_PLAIN]) for machine in MACHINES),
    *((machine, Result(7, None), ["Result", 7, None]) for machine in MACHINES),
    *((machine, Page(9, ("a", "b")), ["Page", 9, ["a", "b"]]) for machine in MACHINES),
]


def kinds(union: UnionType) -> set[type]:
    return set(get_args(union))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_every_message_and_every_entity_has_its_line_above(machine: Machine) -> None:
    assert {type(message) for of, message, _ in MESSAGES if of is machine} == kinds(machine.message_type)
    assert {type(entity) for of, entity, _ in ENTITIES if of is machine} - {Result, Page} == kinds(machine.entity_type)


@pytest.mark.parametrize(("machine", "message", "plain"), MESSAGES)
def test_a_message_is_encoded_as_its_name_and_its_fields(machine: Machine, message: Message, plain: list[Any]) -> None:  # noqa: ARG001
    assert encode(message) == msgspec.msgpack.encode(plain)


@pytest.mark.parametrize(("machine", "message", "plain"), MESSAGES)
def test_a_message_comes_out_of_the_log_as_it_went_in(machine: Machine, message: Message, plain: list[Any]) -> None:
    request = Request(ASKER, 1_700_000_000_000, message)
    letter = Letter("order-1", 3, message)
    record = encode_batch([msgspec.Raw(encode(request)), msgspec.Raw(encode(letter))])

    assert Codec(machine).record(record) == Batch([request, letter])
    assert msgspec.msgpack.decode(record) == [
        "batch",
        [["request", ASKER_PLAIN, 1_700_000_000_000, plain], ["letter", "order-1", 3, plain, ""]],
    ]


@pytest.mark.parametrize(("machine", "message", "plain"), MESSAGES)
def test_a_message_with_a_field_too_many_is_not_known(machine: Machine, message: Message, plain: list[Any]) -> None:  # noqa: ARG001
    with pytest.raises(UndecodableRecord):
        Codec(machine).record(encode(["batch", [["letter", "order-1", 3, [*plain, "from the future"]]]]))


@pytest.mark.parametrize(("machine", "entity", "plain"), ENTITIES)
def test_an_entity_with_a_field_too_many_is_not_known(machine: Machine, entity: Entity, plain: list[Any]) -> None:  # noqa: ARG001
    with pytest.raises(msgspec.DecodeError):
        Codec(machine).entity(encode([*plain, "from the future"]))


@pytest.mark.parametrize(
    "record",
    [
        ["genesis", "log", "from the future"],
        ["rules", 1, "from the future"],
        ["batch", [], "from the future"],
        ["batch", [["letter", "order-1", 3, ["AskPrice", "a1", "apple"], "", "from the future"]]],
        ["batch", [["request", ASKER_PLAIN, 1, ["AskPrice", "a1", "apple"], "from the future"]]],
        ["batch", [["request", [*ASKER_PLAIN, "from the future"], 1, ["AskPrice", "a1", "apple"]]]],
    ],
    ids=["genesis", "rules", "batch", "letter", "request", "asker"],
)
def test_a_record_with_a_field_too_many_is_not_known(record: list[Any]) -> None:
    with pytest.raises(UndecodableRecord):
        Codec(STOCK).record(encode(record))


def test_a_header_with_a_field_too_many_is_not_known() -> None:
    plain = ["log", 1, 2, 3, {}, {}, {}, {}, 7, [1, 2, 3], [1, 0, 0], 0, 1]

    for header in ([*plain, "from the future"], [*plain[:-3], [1, 0, 0, "from the future"], 0, 1]):
        with pytest.raises(msgspec.DecodeError):
            Codec(STOCK).header(encode(header))


@pytest.mark.parametrize(("machine", "entity", "plain"), ENTITIES)
def test_an_entity_comes_out_of_the_store_as_it_went_in(machine: Machine, entity: Entity, plain: list[Any]) -> None:
    assert encode(entity) == msgspec.msgpack.encode(plain)
    assert Codec(machine).entity(encode(entity)) == entity


def test_an_absent_entity_is_none_and_an_absent_header_is_empty() -> None:
    assert Codec(STOCK).entity(None) is None
    assert Codec(STOCK).header(None) == Header()


def test_a_header_comes_out_of_the_store_as_it_went_in() -> None:
    header = Header("log", 1, 2, 3, {"stock": 1}, {"order-0": 4}, {"order-0": 5}, {"Item": 6}, 7, Shelf(1, 2, 3))

    assert Codec(STOCK).header(encode(header)) == header
    assert encode(header) == msgspec.msgpack.encode(
        ["log", 1, 2, 3, {"stock": 1}, {"order-0": 4}, {"order-0": 5}, {"Item": 6}, 7, [1, 2, 3], [1, 0, 0], 0, 1]
    )


def test_a_header_of_before_rules_had_versions_is_known() -> None:
    plain = ["log", 1, 2, 3, {}, {}, {}, {}, 7, [1, 2, 3], [1, 0, 0], 0]

    assert Codec(STOCK).header(encode(plain)).rules == 1


def test_a_letter_of_before_re_delivery_was_thought_of_is_known() -> None:
    record = encode(["batch", [["letter", "order-1", 3, ["AskPrice", "a1", "apple"]]]])

    assert Codec(STOCK).record(record) == Batch([Letter("order-1", 3, AskPrice("a1", "apple"))])


def test_a_batch_of_encoded_messages_is_the_batch_of_the_messages() -> None:
    request = Request(ASKER, 1, AskPrice("a1", "apple"))

    assert encode_batch([msgspec.Raw(encode(request))]) == encode(Batch([request]))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_a_genesis_record_is_known_to_every_service(machine: Machine) -> None:
    assert Codec(machine).record(encode(Genesis("log"))) == Genesis("log")


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.service)
def test_rules_that_the_code_knows_may_begin_and_others_may_not(machine: Machine) -> None:
    for version in (0, 1, machine.rules):
        assert Codec(machine).record(encode(NewRules(version))) == NewRules(version)
        assert encode(NewRules(version)) == encode(["rules", version])

    with pytest.raises(UndecodableRecord, match=f"rules {machine.rules + 1} hold, this code knows {machine.rules}"):
        Codec(machine).record(encode(NewRules(machine.rules + 1)))


def test_a_message_for_another_service_is_not_known() -> None:
    record = encode(Batch([Letter("order-0", 1, StockReserved("c1"))]))

    with pytest.raises(UndecodableRecord, match="StockReserved"):
        Codec(STOCK).record(record)


def test_a_reply_comes_out_as_it_went_in() -> None:
    told = [Told("o1/key/k1", 7, Done("9")), Told("o1/key/k2", 7, REFUSED)]

    assert msgspec.msgpack.decode(encode(told), type=list[Told]) == told


@pytest.mark.parametrize("reason", list(Reason))
def test_a_reason_is_stored_as_the_words_that_people_read(reason: Reason) -> None:
    assert encode(reason) == encode(str(reason.value))


def test_the_reasons_never_change() -> None:
    assert [reason.value for reason in Reason] == [
        "not found",
        "conflict",
        "not enough credit",
        "key used for another call",
        "busy",
        "not now",
        "internal error",
    ]


@pytest.mark.parametrize(
    ("entity_id", "of_2", "of_4", "of_7"),
    [
        ("0", 1, 1, 4),
        ("1", 1, 3, 2),
        ("apple", 0, 0, 4),
        ("pear", 1, 1, 0),
        ("kiwi", 0, 0, 6),
        ("A-Za-z0-9_-", 1, 1, 4),
        ("x" * 64, 0, 2, 1),
    ],
)
def test_where_an_entity_lives_never_changes(entity_id: str, of_2: int, of_4: int, of_7: int) -> None:
    """Pinned: with another hash everybody would look for old entities where they are not."""
    places = [partition_of("stock", entity_id, {"stock": count}) for count in (2, 4, 7)]

    assert places == [f"stock-{of_2}", f"stock-{of_4}", f"stock-{of_7}"]


def test_the_partitions_of_a_service_are_numbered_from_zero() -> None:
    assert partitions_of("stock", {"stock": 3, "order": 1}) == ["stock-0", "stock-1", "stock-2"]


def test_the_checksum_of_a_record_never_changes() -> None:
    assert checksum(b"a record") == 2619898082


def test_a_result_is_stored_under_its_request_id() -> None:
    assert result_key("o1/key/k1") == "Result:o1/key/k1"


def test_limits_are_what_the_contract_says() -> None:
    assert AMOUNT_MAX == 10**15 - 1
    assert RECORD_BYTES_MAX < 1_000_000


def test_the_encoding_does_not_depend_on_how_a_value_was_made() -> None:
    assert encode(ReserveStock("c1", LINES)) == encode(ReserveStock("c" + "1", tuple(tuple(line) for line in LINES)))
