"""The fold: results, sequences, pages, dead letters, and that batch boundaries do not matter."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec
import pytest
from builders import NOW_MS, ONE_EACH, TWO_EACH
from world import MACHINES, STOCK, MemoryStore, Owner, World, entities_of, state_of

from common.batch_init import FillChunk
from common.decision import Arrival, Decision, Machine, NotLoaded, Reply, Send, State, done
from common.fold import (
    ATTEMPT_RETENTION_MS,
    CLIENT_KEY_RETENTION_MS,
    COMMAND_AGE_MAX_MS,
    OTHER_CALL,
    RESULTS_MAX,
    STUCK,
    TOO_LATE,
    TOO_MANY_RESULTS,
    Codec,
    DeadLetter,
    Fold,
    Header,
    Memory,
    Missing,
    Page,
    Record,
    Result,
    Rules,
    UndecodableRecord,
    result_key,
)
from common.messages import (
    Asker,
    AskPrice,
    ChargeRefused,
    ChargeUser,
    Done,
    Genesis,
    Letter,
    Message,
    PriceRefused,
    PriceTold,
    Reason,
    ReleaseStock,
    Request,
    ReserveStock,
    StockRefused,
    StockReleased,
    Told,
    checksum,
    encode,
)
from common.redelivery import CannotRedeliver, again
from order.domain import AddItem, Addition, CheckOut, CreateOrder, InitOrders, Order
from payment.domain import MACHINE as PAYMENT
from payment.domain import AddFunds, CreateUser
from stock.domain import AddStock, CreateItem, InitItems, Item, SubtractStock

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
APPLES = (("apple", 1),)


def a_world(*machines: Machine, stock: int = 10) -> World:
    """Return one stock partition with apples, and two order partitions to talk to."""
    world = World({"order": 2, "stock": 1, "payment": 1}, machines or [STOCK])
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("stock", "apple", AddStock("apple", stock))
    return world


def apples(world: World) -> int:
    item = world.entity(Item, "stock", "apple")
    assert item is not None
    return item.available


def faulty(machine: Machine, *kinds: type[Message], unless: Callable[[], bool] = lambda: False) -> Machine:
    """Return a machine with a bug: it raises for messages of these kinds."""

    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        if isinstance(message, kinds) and not unless():
            raise ZeroDivisionError("the planted bug")
        return machine.decide(state, message, arrival)

    return msgspec.structs.replace(machine, decide=decide)


# --- results


def test_the_same_request_is_told_the_same_and_nothing_changes() -> None:
    world = a_world(stock=10)
    first = world.ask("stock", "apple", SubtractStock("apple", 3), "key/k1")
    world.run()
    before = entities_of(world.store)

    world.ask("stock", "apple", SubtractStock("apple", 3), "key/k1")
    world.run()

    assert world.told(first) == [Done("7"), Done("7")]
    assert entities_of(world.store) == before


def test_a_refusal_is_remembered_as_well() -> None:
    world = a_world(stock=1)
    refusal = world.carry_out("stock", "apple", SubtractStock("apple", 3), "key/k1")
    world.carry_out("stock", "apple", AddStock("apple", 9))

    assert world.carry_out("stock", "apple", SubtractStock("apple", 3), "key/k1") == refusal
    assert apples(world) == 10


def test_a_repeat_in_the_same_record_is_recognised() -> None:
    world = a_world(stock=10)
    request = Request(Asker("apple/key/k1", 7, "web-1"), NOW_MS, SubtractStock("apple", 3))
    world.log.append("stock-0", [request, request])

    world.run()

    assert world.told(request.asker) == [Done("7"), Done("7")]
    assert apples(world) == 7


def test_another_call_with_the_same_key_is_refused_and_changes_nothing() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "apple", SubtractStock("apple", 3), "key/k1")

    assert world.carry_out("stock", "apple", SubtractStock("apple", 4), "key/k1") == OTHER_CALL
    assert OTHER_CALL.reason == Reason.OTHER_CALL
    assert apples(world) == 7


def test_another_call_with_the_key_of_a_pending_one_is_refused() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    world.ask("order", "o1", CheckOut("o1"), "key/k1")
    other = world.ask("order", "o1", AddItem("o1", "apple", 1), "key/k1")

    world.owners["order-0"].step()

    assert world.told(other) == [OTHER_CALL]


def test_the_refused_other_call_does_not_replace_the_result() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "apple", SubtractStock("apple", 3), "key/k1")
    world.carry_out("stock", "apple", SubtractStock("apple", 4), "key/k1")

    assert world.carry_out("stock", "apple", SubtractStock("apple", 3), "key/k1") == Done("7")


def test_a_repeat_of_a_pending_request_is_told_nothing_and_not_decided_again() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    asker = world.ask("order", "o1", AddItem("o1", "apple", 1), "key/k1")
    order = world.owners["order-0"]
    order.step()
    before = entities_of(world.store)
    world.ask("order", "o1", AddItem("o1", "apple", 1), "key/k1")

    folded = order.step()

    assert world.told(asker) == []
    assert folded.letters == {}
    assert entities_of(world.store) == before
    assert order.header.counts["Addition"] == 1


def test_a_pending_request_has_a_result_without_an_outcome() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    asker = world.ask("order", "o1", AddItem("o1", "apple", 1), "key/k1")

    world.owners["order-0"].step()

    assert world.entity(Result, "order", "o1") is None
    assert world.store.hashes["order-0"][result_key("o1/key/k1")] == encode(Result(asker.fingerprint, None))


def test_the_same_key_on_another_entity_is_another_request() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "pear", CreateItem("pear", 5), "key/k1")

    assert world.carry_out("stock", "apple", AddStock("apple", 1), "key/k1") == Done("11")


def test_replies_go_to_the_process_that_asked() -> None:
    world = a_world(stock=10)
    first = world.ask("stock", "apple", SubtractStock("apple", 1), "key/k1", reply_to="web-7")
    again = world.ask("stock", "apple", SubtractStock("apple", 1), "key/k1", reply_to="web-8")

    world.run()

    assert world.store.replies["web-7"] == [Told("apple/key/k1", first.fingerprint, Done("9"))]
    assert world.store.replies["web-8"] == [Told("apple/key/k1", again.fingerprint, Done("9"))]


# --- too late, too many


def test_a_command_that_is_five_minutes_old_is_carried_out() -> None:
    world = a_world(stock=10)
    asker = Asker("apple/key/k1", 7, "web-1")
    world.log.append("stock-0", [Request(asker, NOW_MS - COMMAND_AGE_MAX_MS, SubtractStock("apple", 1))])

    world.run()

    assert COMMAND_AGE_MAX_MS == 5 * MINUTE_MS
    assert world.told(asker) == [Done("9")]


def test_an_older_command_is_refused_and_not_remembered() -> None:
    world = a_world(stock=10)
    asker = Asker("apple/key/k1", 7, "web-1")
    world.log.append("stock-0", [Request(asker, NOW_MS - COMMAND_AGE_MAX_MS - 1, SubtractStock("apple", 1))])
    world.run()
    world.log.append("stock-0", [Request(asker, NOW_MS, SubtractStock("apple", 1))])

    world.run()

    assert world.told(asker) == [TOO_LATE, Done("9")]
    assert TOO_LATE.reason == Reason.NOT_NOW


def test_a_command_from_the_future_acts_once_however_often_and_late_it_is_repeated() -> None:
    world = a_world(stock=10)
    asker = Asker("apple/attempt/a1", 7, "web-1")
    command = Request(asker, NOW_MS + 6 * MINUTE_MS, SubtractStock("apple", 1))
    for minutes in (0, 2, 11, 13):
        world.log.now_ms = NOW_MS + minutes * MINUTE_MS
        world.log.append("stock-0", [command])
        world.run()

    assert world.told(asker) == [TOO_LATE, Done("9"), Done("9"), TOO_LATE]
    assert world.entity(Item, "stock", "apple") == Item(price=5, available=9)


def test_an_old_command_is_measured_by_the_clock_of_the_log_which_never_goes_back() -> None:
    world = a_world(stock=10)
    world.log.now_ms += COMMAND_AGE_MAX_MS + 1
    world.log.append("stock-0", [])
    world.log.now_ms -= COMMAND_AGE_MAX_MS + 1
    asker = world.ask("stock", "apple", SubtractStock("apple", 1))

    world.run()

    assert world.told(asker) == [TOO_LATE]
    assert world.owners["stock-0"].header.now_ms == NOW_MS + COMMAND_AGE_MAX_MS + 1
    assert world.owners["stock-0"].header.timestamp_ms == NOW_MS


def test_an_old_repeat_is_told_its_result() -> None:
    world = a_world(stock=10)
    asker = world.ask("stock", "apple", SubtractStock("apple", 1), "key/k1")
    world.run()
    world.log.now_ms += COMMAND_AGE_MAX_MS + 1
    world.log.append("stock-0", [Request(asker, NOW_MS, SubtractStock("apple", 1))])

    world.run()

    assert world.told(asker) == [Done("9"), Done("9")]


def test_when_too_many_results_are_kept_new_commands_are_refused_and_repeats_answered() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1")
    world.owners["stock-0"].header.results = RESULTS_MAX

    assert world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k2") == TOO_MANY_RESULTS
    assert world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1") == Done("9")
    assert apples(world) == 9


# --- pages and pruning


def keys_of(world: World, prefix: str) -> list[str]:
    return sorted(key for key in world.store.hashes["stock-0"] if key.startswith(prefix))


def pages(world: World) -> dict[str, tuple[str, ...]]:
    codec = Codec(STOCK)
    entities = {key: codec.entity(world.store.hashes["stock-0"][key]) for key in keys_of(world, "Page:")}
    return {key: page.request_ids for key, page in entities.items() if isinstance(page, Page)}


def a_quiet_world() -> World:
    """Return one stock partition that has only its genesis record, so no pages yet."""
    return World(ONE_EACH, [STOCK])


def add(world: World, *request_ids: str, is_client_key: bool = False) -> None:
    """Put one record of commands into the log."""
    commands = [
        Request(Asker(request_id, 7, "web-1", is_client_key), world.log.now_ms, AddStock("apple", 1))
        for request_id in request_ids
    ]
    world.log.append("stock-0", commands)
    world.run()


def test_a_record_has_one_page_of_the_requests_it_decided() -> None:
    world = a_quiet_world()

    add(world, "a", "b")
    add(world, "c")

    assert pages(world) == {"Page:attempt-1": ("a", "b"), "Page:attempt-2": ("c",)}
    assert world.owners["stock-0"].header.results == 3


def test_client_keys_have_pages_of_their_own() -> None:
    world = a_quiet_world()

    add(world, "a", is_client_key=True)
    add(world, "b")

    assert pages(world) == {"Page:attempt-1": ("b",), "Page:client-1": ("a",)}


@pytest.mark.parametrize(
    ("is_client_key", "retention_ms"), [(False, ATTEMPT_RETENTION_MS), (True, CLIENT_KEY_RETENTION_MS)]
)
def test_results_are_kept_to_the_last_millisecond_and_then_forgotten_with_their_page(
    *, is_client_key: bool, retention_ms: int
) -> None:
    world = a_quiet_world()
    add(world, "a", "b", is_client_key=is_client_key)

    world.log.now_ms += retention_ms
    world.log.append("stock-0", [])
    world.run()
    assert keys_of(world, "Result:") == ["Result:a", "Result:b"]

    world.log.now_ms += 1
    world.log.append("stock-0", [])
    world.run()
    assert keys_of(world, "Result:") == []
    assert keys_of(world, "Page:") == []
    assert world.owners["stock-0"].header.results == 0


def test_attempts_are_kept_10_minutes_and_client_keys_24_hours() -> None:
    assert (ATTEMPT_RETENTION_MS, CLIENT_KEY_RETENTION_MS) == (10 * MINUTE_MS, 24 * HOUR_MS)


def test_a_result_outlives_every_command_that_could_act_again() -> None:
    assert COMMAND_AGE_MAX_MS < ATTEMPT_RETENTION_MS


def test_younger_pages_are_kept_when_older_ones_are_pruned() -> None:
    world = a_quiet_world()
    add(world, "old")
    world.log.now_ms += ATTEMPT_RETENTION_MS
    add(world, "young")
    world.log.now_ms += 1

    add(world, "now")

    assert pages(world) == {"Page:attempt-2": ("young",), "Page:attempt-3": ("now",)}
    assert keys_of(world, "Result:") == ["Result:now", "Result:young"]


def test_a_page_that_is_a_millisecond_younger_is_kept_a_millisecond_longer() -> None:
    world = a_quiet_world()
    add(world, "a")
    world.log.now_ms += 1
    add(world, "b")
    world.log.now_ms += ATTEMPT_RETENTION_MS

    world.log.append("stock-0", [])
    world.run()

    assert keys_of(world, "Result:") == ["Result:b"]


def test_many_old_pages_are_pruned_a_few_a_record_until_none_is_left() -> None:
    world = a_quiet_world()
    for number in range(20):
        add(world, f"old-{number}")
    world.log.now_ms += ATTEMPT_RETENTION_MS + 1

    records = 0
    while keys_of(world, "Result:old"):
        world.log.append("stock-0", [])
        world.run()
        records += 1

    assert 1 < records <= 10  # each prunes more than it can add
    assert world.owners["stock-0"].header.results == 0


def test_after_pruning_pages_go_on_counting() -> None:
    world = a_quiet_world()
    add(world, "a")
    world.log.now_ms += ATTEMPT_RETENTION_MS + 1
    add(world, "b")
    world.log.now_ms += ATTEMPT_RETENTION_MS + 1

    add(world, "c")

    assert pages(world) == {"Page:attempt-3": ("c",)}


def test_a_key_that_comes_back_after_its_time_is_a_new_request() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1")
    world.log.now_ms += CLIENT_KEY_RETENTION_MS + 1
    world.log.append("stock-0", [])
    world.log.append("stock-0", [])

    assert world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1") == Done("8")


def test_a_create_whose_key_comes_back_after_its_time_changes_nothing() -> None:
    world = a_world(stock=10)
    world.carry_out("stock", "pear", CreateItem("pear", 5), "key/k1")
    world.carry_out("stock", "pear", AddStock("pear", 3))
    world.log.now_ms += CLIENT_KEY_RETENTION_MS + 1

    assert world.carry_out("stock", "pear", CreateItem("pear", 5), "key/k1") == Done("pear")
    assert world.entity(Item, "stock", "pear") == Item(5, 3)


def test_a_pending_request_is_never_forgotten() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    asker = world.ask("order", "o1", AddItem("o1", "apple", 1))
    world.owners["order-0"].step()
    world.log.now_ms += CLIENT_KEY_RETENTION_MS + 1
    world.log.append("order-0", [])

    world.owners["order-0"].step()

    assert result_key(asker.request_id) in world.store.hashes["order-0"]


# --- sequences


def letter(sequence: int, message: Message, source: str = "order-0") -> Letter[Message]:
    return Letter(source, sequence, message)


def test_letters_are_taken_in_sequence() -> None:
    world = a_world()
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, ReserveStock("c2", APPLES))])

    world.run()

    assert world.owners["stock-0"].header.taken == {"order-0": 2}
    assert world.entity(Item, "stock", "apple") == Item(5, 8, 2)


def test_a_repeat_is_dropped_and_counted() -> None:
    world = a_world()
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, ReserveStock("c2", APPLES))])
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, ReserveStock("c2", APPLES))])

    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 8, 2)
    assert (world.folded[-1].repeats, world.folded[-1].gaps, world.folded[-1].messages) == (2, 0, 4)
    assert [len(letters) for letters in world.folded[-1].letters.values()] == [2]


def test_a_letter_after_a_gap_is_dropped_and_counted() -> None:
    world = a_world()
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(3, ReserveStock("c3", APPLES))])

    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 9, 1)
    assert (world.folded[-1].repeats, world.folded[-1].gaps) == (0, 1)
    assert world.owners["stock-0"].header.taken == {"order-0": 1}


def test_the_letter_that_was_missing_is_taken_when_it_comes() -> None:
    world = a_world()
    for sequence in (1, 3, 2, 3):
        world.log.append("stock-0", [letter(sequence, ReserveStock(f"c{sequence}", APPLES))])

    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 7, 3)


def test_each_source_has_a_sequence_of_its_own() -> None:
    world = a_world()
    world.log.append(
        "stock-0", [letter(1, ReserveStock("c1", APPLES), "order-0"), letter(1, ReserveStock("c2", APPLES), "order-1")]
    )

    world.run()

    assert world.owners["stock-0"].header.taken == {"order-0": 1, "order-1": 1}
    assert world.folded[-1].repeats == 0


def test_messages_are_numbered_not_records() -> None:
    world = a_world()
    world.log.append("stock-0", [letter(1, AskPrice("a1", "apple")), letter(2, AskPrice("a2", "apple"))])
    world.log.append("stock-0", [letter(3, AskPrice("a3", "apple"))])

    world.run()

    assert world.folded[-1].letters == {
        "order-0": [encode(Letter("stock-0", number, PriceTold(f"a{number}", 5))) for number in (1, 2, 3)]
    }
    assert world.owners["stock-0"].header.sent == {"order-0": 3}


def test_each_target_has_numbers_of_its_own_that_go_on_after_a_reload() -> None:
    world = a_world()
    world.log.append("stock-0", [letter(1, AskPrice("a1", "apple"), "order-0")])
    world.run()
    world.owners["stock-0"].load()
    world.log.append(
        "stock-0", [letter(1, AskPrice("a1", "apple"), "order-1"), letter(2, AskPrice("a2", "apple"), "order-0")]
    )

    world.run()

    assert world.folded[-1].letters == {
        "order-1": [encode(Letter("stock-0", 1, PriceTold("a1", 5)))],
        "order-0": [encode(Letter("stock-0", 2, PriceTold("a2", 5)))],
    }


# --- batch boundaries do not matter


PARTITIONS = [f"{service}-{number}" for service in TWO_EACH for number in range(2)]


@functools.cache
def a_busy_log() -> World:
    """Return a world, not to be changed, whose logs have everything in them."""
    world = World(TWO_EACH, records_max=3, letters_max=2)
    world.carry_out("stock", "i", InitItems(40, 10, 5))
    for user_id in ("ann", "bob"):
        world.carry_out("payment", user_id, CreateUser(user_id))
        world.carry_out("payment", user_id, AddFunds(user_id, 40))
    world.carry_out("order", "i", InitOrders(30, 40, 2, 5))
    for number in range(12):
        order_id = f"o{number}"
        world.ask("order", order_id, CreateOrder(order_id, "ann" if number % 2 else "bob"))
        world.run()
        world.ask("order", order_id, AddItem(order_id, str(number), 2), f"key/{number}", is_client_key=True)
        world.ask("order", order_id, AddItem(order_id, "kiwi", 2))
        world.run()
        for key in ("key/1", "key/1", "key/2"):
            world.ask("order", order_id, CheckOut(order_id), key, is_client_key=True)
        world.log.now_ms += MINUTE_MS if number % 4 else ATTEMPT_RETENTION_MS
    world.run()
    for partition in PARTITIONS:
        message = PriceTold("a1", 5) if partition.startswith("order") else FillChunk("i1", 0, 9, (1, 1))
        source = "stock-0" if partition.startswith("order") else "order-0"
        world.log.append(partition, [letter(1, message, source), letter(9_999, message, source)])
    world.log.now_ms += CLIENT_KEY_RETENTION_MS
    world.ask("order", "o1", CheckOut("o1"))
    world.run()
    return world


def replay(partition: str, cuts: list[int], *, reload: bool) -> tuple[dict[str, bytes], dict[str, bytes], list[Told]]:
    """Fold a partition's whole log in batches that end at the cuts; return hash, letters by target, replies."""
    world = World(TWO_EACH)
    world.log.records[partition] = a_busy_log().log.records[partition]
    owner = world.owners[partition]
    letters: dict[str, list[bytes]] = {}
    for stop in [*cuts, world.log.end(partition)]:
        folded = owner.fold(stop - owner.position)
        assert folded is not None
        assert folded.end == stop
        for target, sent in folded.letters.items():
            letters.setdefault(target, []).extend(sent)
        owner.apply(folded)
        if reload:
            owner.load()
    sent_bytes = {target: b"".join(sent) for target, sent in letters.items()}
    return world.store.hashes[partition], sent_bytes, world.store.replies.get("web-1", [])


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("reload", [False, True], ids=["memory kept", "memory dropped"])
@pytest.mark.parametrize("step", [1, 2, 7, 50])
def test_batches_in_succession_come_to_the_same_as_one(partition: str, step: int, *, reload: bool) -> None:
    end = a_busy_log().log.end(partition)

    assert replay(partition, list(range(step, end, step)), reload=reload) == replay(partition, [], reload=False)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_log_can_be_cut_in_two_anywhere(partition: str) -> None:
    whole = replay(partition, [], reload=False)

    for cut in range(1, a_busy_log().log.end(partition), 3):
        assert replay(partition, [cut], reload=True) == whole


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_replay_comes_to_the_same_bytes_as_the_first_time(partition: str) -> None:
    assert replay(partition, [], reload=False)[0] == a_busy_log().store.hashes[partition]


def test_the_busy_log_has_everything_in_it() -> None:
    """Otherwise the tests above would prove less than they say."""
    world = a_busy_log()
    assert sum(folded.repeats for folded in world.folded) >= 4
    assert sum(folded.gaps for folded in world.folded) == 6
    reasons = {getattr(told.outcome, "reason", None) for told in world.store.replies["web-1"]}
    assert reasons >= {None, Reason.NOT_FOUND, Reason.NO_CREDIT, Reason.OTHER_CALL}
    order = world.owners["order-0"].header
    assert order.attempts.first > 1
    assert order.client_keys.first > 1


def test_a_fold_leaves_the_store_alone() -> None:
    world = a_world()
    before = state_of(world.store)
    world.ask("stock", "apple", SubtractStock("apple", 1))

    world.owners["stock-0"].fold()

    assert state_of(world.store) == before


# --- counts and the header


def test_entities_are_counted_by_kind() -> None:
    world = a_world()
    world.carry_out("stock", "pear", CreateItem("pear", 5))
    world.carry_out("stock", "pear", CreateItem("pear", 5))
    world.carry_out("stock", "apple", AddStock("apple", 5))

    assert world.owners["stock-0"].header.counts == {"Item": 2}


def test_an_entity_that_is_deleted_is_not_counted_any_more() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    world.ask("order", "o1", AddItem("o1", "apple", 1))
    world.owners["order-0"].step()
    during = dict(world.owners["order-0"].header.counts)

    world.run()

    assert during == {"Order": 1, "Addition": 1}
    assert world.owners["order-0"].header.counts == {"Order": 1, "Addition": 0}


def test_genesis_names_the_log_and_the_topology_it_was_begun_with() -> None:
    world = World(TWO_EACH)
    world.run()
    header = world.owners["stock-1"].header

    assert header.log_id == "the log of stock-1"
    assert header.topology == TWO_EACH


def test_a_log_without_genesis_has_a_topology_all_the_same() -> None:
    world = World(ONE_EACH, [STOCK])
    world.log.records["stock-0"].clear()
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    header = world.owners["stock-0"].header

    assert (header.log_id, header.topology) == ("", ONE_EACH)


def test_a_second_genesis_record_changes_nothing() -> None:
    world = World(ONE_EACH)
    world.run()
    world.log.append_value("stock-0", encode(Genesis("another set-up, at the same time")))

    world.run()

    assert world.owners["stock-0"].header.log_id == "the log of stock-0"
    assert world.owners["stock-0"].position == 2


def test_a_genesis_record_that_comes_late_behind_commands_changes_nothing() -> None:
    world = a_world()
    before = dict(world.store.hashes["stock-0"])
    world.log.append_value("stock-0", encode(Genesis("a send of the set-up that nobody knew the end of")))

    world.run()

    after = world.store.hashes["stock-0"]
    assert {field for field in after if after[field] != before.get(field)} == {"header"}
    assert world.owners["stock-0"].header.log_id == "the log of stock-0"


def test_the_header_remembers_the_last_record() -> None:
    world = a_world()
    record = world.log.records["stock-0"][-1]
    header = Codec(STOCK).header(world.store.hashes["stock-0"]["header"])

    assert (header.crc, header.timestamp_ms) == (checksum(record.value), record.timestamp_ms)


def test_the_header_is_stored_with_every_batch() -> None:
    world = a_world()
    world.log.append("stock-0", [])

    folded = world.owners["stock-0"].fold()

    assert folded.changes == {"header": encode(world.owners["stock-0"].header)}
    assert (folded.start, folded.end) == (3, 4)


# --- dead letters


def test_a_message_whose_decision_raises_is_put_on_record_and_the_partition_goes_on() -> None:
    world = a_world()
    world.owners["stock-0"] = Owner("stock-0", faulty(STOCK, SubtractStock), world)
    asker = world.ask("stock", "apple", SubtractStock("apple", 1))
    world.ask("stock", "apple", AddStock("apple", 5))

    world.run()

    (buried,) = world.buried
    assert (buried.partition, buried.offset, buried.index) == ("stock-0", 3, 0)
    assert "the planted bug" in buried.traceback
    assert apples(world) == 15
    (outcome,) = world.told(asker)
    assert outcome.reason == Reason.INTERNAL
    assert "dead letter 0" in outcome.detail


def test_the_answer_to_a_dead_request_is_remembered() -> None:
    world = a_world(faulty(STOCK, SubtractStock))
    first = world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1")

    assert world.carry_out("stock", "apple", SubtractStock("apple", 1), "key/k1") == first
    assert len(world.buried) == 1


def test_the_place_of_a_dead_letter_has_the_index_in_its_record() -> None:
    world = a_world(faulty(STOCK, SubtractStock))
    asker = Asker("apple/key/k1", 7, "web-1")
    messages = [AddStock("apple", 1), SubtractStock("apple", 1)]
    world.log.append(
        "stock-0",
        [
            Request(msgspec.structs.replace(asker, request_id=f"apple/{number}"), NOW_MS, message)
            for number, message in enumerate(messages)
        ],
    )

    world.run()

    assert world.dead_letters["stock-0"] == {(3, 1): 0}


def test_a_dead_letter_that_is_listed_is_skipped_without_deciding_also_by_corrected_code() -> None:
    is_corrected = False
    world = a_world(faulty(STOCK, SubtractStock, unless=lambda: is_corrected))
    world.ask("stock", "apple", SubtractStock("apple", 1))
    world.run()
    before = world.store
    is_corrected = True
    world.store = MemoryStore()
    world.owners["stock-0"].load()

    world.run()

    assert state_of(world.store) == state_of(before)
    assert apples(world) == 10
    assert len(world.buried) == 1


def test_a_reservation_that_raises_is_refused_and_what_follows_keeps_its_number() -> None:
    world = a_world(faulty(STOCK, ReserveStock))
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, AskPrice("a1", "apple"))])

    world.run()

    refusal = STOCK.excuse(ReserveStock("c1", APPLES))[0]
    assert isinstance(refusal, StockRefused)
    assert refusal.refusal.reason == Reason.INTERNAL
    assert world.folded[-1].letters["order-0"] == [
        encode(Letter("stock-0", 1, refusal)),
        encode(Letter("stock-0", 2, PriceTold("a1", 5))),
    ]


def test_a_charge_that_raises_is_refused() -> None:
    world = World(ONE_EACH, [faulty(PAYMENT, ChargeUser)])
    world.log.append("payment-0", [letter(1, ChargeUser("c1", "ann", 5))])

    world.run()

    (refusal,) = PAYMENT.excuse(ChargeUser("c1", "ann", 5))
    assert isinstance(refusal, ChargeRefused)
    assert world.folded[-1].letters == {"order-0": [encode(Letter("payment-0", 1, refusal))]}


def test_a_price_that_raises_is_refused_and_nobody_has_to_look() -> None:
    world = a_world(faulty(STOCK, AskPrice))
    world.log.append("stock-0", [letter(1, AskPrice("a1", "apple"))])

    world.run()

    (refusal,) = STOCK.excuse(AskPrice("a1", "apple"))
    assert isinstance(refusal, PriceRefused)
    assert world.folded[-1].letters == {"order-0": [encode(Letter("stock-0", 1, refusal))]}
    assert STUCK not in world.owners["stock-0"].header.counts


def test_an_addition_whose_price_raises_ends_and_its_client_is_told() -> None:
    is_corrected = False
    stock = faulty(STOCK, AskPrice, unless=lambda: is_corrected)
    world = World(ONE_EACH, [machine if machine != STOCK else stock for machine in MACHINES])
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))

    outcome = world.carry_out("order", "o1", AddItem("o1", "apple", 1), "key/k1")

    assert outcome.reason == Reason.INTERNAL
    assert world.open(Addition) == 0
    assert world.entity(Order, "order", "o1") == Order("ann")
    is_corrected = True
    assert world.carry_out("order", "o1", AddItem("o1", "apple", 1), "key/k1") == outcome
    assert world.carry_out("order", "o1", AddItem("o1", "apple", 1), "key/k2") == Done()


def test_a_checkout_whose_charge_raises_undoes_itself_and_its_client_is_told() -> None:
    world = World(ONE_EACH, [machine if machine != PAYMENT else faulty(PAYMENT, ChargeUser) for machine in MACHINES])
    world.carry_out("stock", "apple", CreateItem("apple", 5))
    world.carry_out("stock", "apple", AddStock("apple", 1))
    world.carry_out("order", "o1", CreateOrder("o1", "ann"))
    world.carry_out("order", "o1", AddItem("o1", "apple", 1))

    outcome = world.carry_out("order", "o1", CheckOut("o1"))

    assert outcome.reason == Reason.INTERNAL
    assert world.entity(Item, "stock", "apple") == Item(5, 1)
    assert world.entity(Order, "order", "o1").checkout_id == ""


def test_an_undo_that_raises_is_skipped_and_answers_nothing() -> None:
    world = a_world(faulty(STOCK, ReleaseStock))
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, ReleaseStock("c1", APPLES))])

    world.run()

    assert world.dead_letters["stock-0"] == {(3, 1): 0}
    assert len(world.folded[-1].letters["order-0"]) == 1
    assert world.owners["stock-0"].header.taken == {"order-0": 2}


@pytest.mark.parametrize(
    "decision",
    [
        done({"Item:apple": Item(2**65)}),
        Decision({}, (PriceTold("a1", 5),)),
        Decision({}, (Send("order-0", PriceTold("a1", 2**65)), Done())),
    ],
    ids=["an entity that cannot be encoded", "an answer that has nowhere to go", "a message that cannot be encoded"],
)
def test_a_decision_that_cannot_be_taken_over_is_a_dead_letter_and_nothing_of_it_happens(decision: Decision) -> None:
    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        return decision if isinstance(message, SubtractStock) else STOCK.decide(state, message, arrival)

    world = a_world(msgspec.structs.replace(STOCK, decide=decide))

    outcome = world.carry_out("stock", "apple", SubtractStock("apple", 1))

    assert outcome.reason == Reason.INTERNAL
    assert len(world.buried) == 1
    assert world.entity(Item, "stock", "apple") == Item(5, 10)
    assert world.folded[-1].letters == {}


def test_an_outcome_for_a_letter_is_a_dead_letter() -> None:
    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        return done({}) if isinstance(message, AskPrice) else STOCK.decide(state, message, arrival)

    world = a_world(msgspec.structs.replace(STOCK, decide=decide))
    world.log.append("stock-0", [letter(1, AskPrice("a1", "apple"))])

    world.run()

    assert len(world.buried) == 1


def test_running_out_of_memory_is_not_a_property_of_the_message() -> None:
    def decide(*_: object) -> Decision:
        raise MemoryError

    world = World(ONE_EACH, [msgspec.structs.replace(STOCK, decide=decide)])
    world.ask("stock", "apple", AddStock("apple", 1))

    with pytest.raises(MemoryError):
        world.run()

    assert world.buried == []


def test_an_outcome_for_somebody_who_asked_earlier_is_told_and_remembered_for_him() -> None:
    earlier = Asker("apple/key/earlier", 7, "web-9")

    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        if isinstance(message, SubtractStock):
            return Decision({}, (Reply(earlier, Done("late")),))
        return STOCK.decide(state, message, arrival)

    world = a_world(msgspec.structs.replace(STOCK, decide=decide))
    asker = world.ask("stock", "apple", SubtractStock("apple", 1))
    world.run()

    assert world.told(earlier) == [Done("late")]
    assert world.told(asker) == []
    assert world.store.hashes["stock-0"][result_key(asker.request_id)] == encode(Result(asker.fingerprint, None))


# --- dead letters that a person delivers again


def dead(envelope: Request[Message] | Letter[Message], offset: int, index: int = 0, traceback: str = "") -> DeadLetter:
    return DeadLetter("stock-0", offset, index, traceback, encode(envelope))


def test_a_dead_letter_that_is_delivered_again_is_decided_as_if_it_came_from_its_source() -> None:
    is_corrected = False
    world = a_world(faulty(STOCK, ReleaseStock, unless=lambda: is_corrected))
    undo = letter(2, ReleaseStock("c1", APPLES))
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), undo])
    world.run()
    is_corrected = True

    world.log.append("stock-0", [again(STOCK, *world.buried)])
    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 10)
    assert world.folded[-1].letters == {"order-0": [encode(Letter("stock-0", 2, StockReleased("c1")))]}


def test_a_dead_letter_is_delivered_again_under_its_place() -> None:
    undo = letter(2, ReleaseStock("c1", APPLES))

    assert again(STOCK, dead(undo, 3, 1)) == Letter("dead-letter-stock-0-3-1", 1, undo.message, "order-0")


def test_two_dead_letters_of_the_same_record_are_both_delivered_again() -> None:
    is_corrected = False
    world = a_world(faulty(STOCK, ReleaseStock, unless=lambda: is_corrected))
    undos = [letter(number, ReleaseStock(f"c{number - 2}", APPLES)) for number in (3, 4)]
    reservations = [letter(number, ReserveStock(f"c{number}", APPLES)) for number in (1, 2)]
    world.log.append("stock-0", [*reservations, *undos])
    world.run()
    is_corrected = True

    world.log.append("stock-0", [again(STOCK, buried) for buried in world.buried])
    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 10)
    assert world.folded[-1].repeats == 0
    assert world.owners["stock-0"].header.counts[STUCK] == 0


def test_a_dead_letter_that_is_delivered_again_twice_is_dropped_as_a_repeat() -> None:
    world = a_world()
    world.owners["stock-0"].header.counts[STUCK] = 1
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES))])
    once_more = again(STOCK, dead(letter(2, ReleaseStock("c1", APPLES)), 4))
    world.log.append("stock-0", [once_more])
    world.log.append("stock-0", [once_more])

    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 10)
    assert world.folded[-1].repeats == 1


def test_a_message_that_is_on_record_twice_is_delivered_again_only_once() -> None:
    """Two owners at once may both bury it.  Undone twice, what another checkout holds would be sold again."""
    world = a_world()
    undo = letter(3, ReleaseStock("c1", APPLES))
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), letter(2, ReserveStock("c2", APPLES))])
    world.run()
    world.owners["stock-0"].header.counts[STUCK] = 2

    for traceback in ("the owner's", "the zombie's"):
        world.log.append("stock-0", [again(STOCK, dead(undo, 4, 0, traceback))])
    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 9, 1)
    assert world.owners["stock-0"].header.counts[STUCK] == 1


def test_what_waits_for_a_person_is_counted() -> None:
    is_corrected = False
    world = a_world(faulty(STOCK, ReleaseStock, ReserveStock, unless=lambda: is_corrected))
    undo = letter(2, ReleaseStock("c1", ()))
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES)), undo])
    world.run()
    stuck = world.owners["stock-0"].header.counts[STUCK]
    is_corrected = True

    world.log.append("stock-0", [again(STOCK, world.buried[1])])
    world.run()

    assert (stuck, world.owners["stock-0"].header.counts[STUCK]) == (1, 0)


def test_a_re_delivery_to_a_partition_that_counts_nothing_stuck_is_decided_all_the_same() -> None:
    """A state that an older version made has no such count: the partition must not stop for good over it."""
    world = a_world()
    world.log.append("stock-0", [letter(1, ReserveStock("c1", APPLES))])
    world.log.append("stock-0", [again(STOCK, dead(letter(2, ReleaseStock("c1", APPLES)), 4))])

    world.run()

    assert world.entity(Item, "stock", "apple") == Item(5, 10)
    assert world.owners["stock-0"].header.counts[STUCK] == 0


def test_a_dead_letter_that_dies_again_can_be_delivered_again() -> None:
    undo = letter(2, ReleaseStock("c1", APPLES))

    once_more = again(STOCK, dead(undo, 3, 1))

    assert again(STOCK, dead(once_more, 4)) == Letter("dead-letter-stock-0-4-0", 1, undo.message, "order-0")


@pytest.mark.parametrize(
    "envelope",
    [
        Request(Asker("apple/key/k1", 7, "web-1"), NOW_MS, AddStock("apple", 1)),
        letter(1, ReserveStock("c1", APPLES)),
        letter(1, AskPrice("a1", "apple")),
    ],
    ids=["a request", "a reservation", "a question for a price"],
)
def test_what_was_answered_is_not_delivered_again(envelope: Request[Message] | Letter[Message]) -> None:
    with pytest.raises(CannotRedeliver, match="it was answered"):
        again(STOCK, dead(envelope, 3))


# --- undecodable records


def test_a_batch_is_folded_up_to_a_record_that_cannot_be_decoded() -> None:
    world = a_world()
    world.ask("stock", "apple", AddStock("apple", 1))
    world.log.append_value("stock-0", encode(["batch", [["letter", "order-0", 1, ["FromTheFuture", 1]]]]))
    world.ask("stock", "apple", AddStock("apple", 1))

    folded = world.owners["stock-0"].step()

    assert (folded.start, folded.end) == (3, 4)
    assert apples(world) == 11


@pytest.mark.parametrize(
    "value",
    [b"", b"\xc1", b"not msgpack", encode(["batch", [["letter", "order-0", 1, ["FromTheFuture", 1]]]])],
)
def test_a_record_that_cannot_be_decoded_is_never_skipped(value: bytes) -> None:
    world = a_world()
    world.log.append_value("stock-0", value)

    for _ in range(2):
        with pytest.raises(UndecodableRecord):
            world.owners["stock-0"].step()

    assert world.store.positions["stock-0"] == 3


def test_a_message_with_a_field_that_is_not_known_is_undecodable() -> None:
    """An old binary that dropped the field would fold something else than the new one."""
    world = a_world()
    world.log.append_value(
        "stock-0", encode(["batch", [["letter", "order-0", 1, ["AskPrice", "a1", "apple", "a field from the future"]]]])
    )

    with pytest.raises(UndecodableRecord):
        world.owners["stock-0"].step()


# --- what is not in memory


def effects(*records: Record, memory: Memory | None = None) -> tuple[list[object], Memory]:
    """Run a fold whose every missing key is absent; return what it asked for."""
    memory = Memory() if memory is None else memory
    rules = Rules(STOCK, Codec(STOCK), "stock-0", ONE_EACH, {})
    asked: list[object] = []
    for effect in Fold(rules, memory, Header(), list(records)).run():
        asked.append(effect)
        assert isinstance(effect, Missing)
        for key in effect.keys:
            memory.remember(key, None)
    return asked, memory


def test_what_messages_need_is_asked_for_in_one_go() -> None:
    world = a_quiet_world()
    world.ask("stock", "apple", AddStock("apple", 1), "key/k1")
    world.ask("stock", "pear", AddStock("pear", 1), "key/k2")

    asked, _ = effects(*world.log.records["stock-0"])

    keys = [key for effect in asked for key in effect.keys]
    assert sorted(keys) == ["Item:apple", "Item:pear", "Result:apple/key/k1", "Result:pear/key/k2"]
    assert len([effect for effect in asked if effect.keys]) == 1


def test_what_is_in_memory_is_not_asked_for() -> None:
    world = a_quiet_world()
    world.ask("stock", "apple", AddStock("apple", 1), "key/k1")
    memory = Memory({"Item:apple": Item(5)})

    asked, _ = effects(*world.log.records["stock-0"], memory=memory)

    assert [key for effect in asked for key in effect.keys] == ["Result:apple/key/k1"]


def test_a_key_that_only_the_decision_knows_is_asked_for_before_deciding_again() -> None:
    def decide(state: State, message: Message, arrival: Arrival) -> Decision:
        if isinstance(message, AskPrice):
            item = state["Item:the twin of apple"]
            return Decision({}, (PriceTold("a1", item.price if isinstance(item, Item) else None),))
        return STOCK.decide(state, message, arrival)

    world = World(ONE_EACH, [msgspec.structs.replace(STOCK, decide=decide)])
    world.carry_out("stock", "the twin of apple", CreateItem("the twin of apple", 8))
    world.owners["stock-0"].load()
    world.log.append("stock-0", [letter(1, AskPrice("a1", "apple"))])

    folded = world.owners["stock-0"].step()

    assert folded.letters == {"order-0": [encode(Letter("stock-0", 1, PriceTold("a1", 8)))]}


def test_a_key_that_a_decision_writes_without_reading_is_asked_for_because_it_is_counted() -> None:
    world = World(ONE_EACH)
    world.carry_out("order", "i", InitOrders(1, 1, 1, 1))
    order = world.owners["order-0"]
    order.load()
    world.log.append("order-0", [letter(3, FillChunk("order-0-1-0", 0, 1, (1, 1, 1, 1)), "order-0")])

    order.fold()

    assert order.header.counts["Order"] == 1


def test_what_is_named_after_the_message_that_makes_it_is_not_asked_for() -> None:
    world = a_quiet_world()
    world.ask("stock", "i", InitItems(1, 10, 5), "key/k1")

    asked, memory = effects(*world.log.records["stock-0"])

    assert [key for effect in asked for key in effect.keys] == ["Result:i/key/k1"]
    assert memory["BatchInit:stock-0-1-0"] is not None


def test_what_is_named_after_the_message_that_makes_it_is_counted_until_it_is_deleted() -> None:
    world = a_quiet_world()
    world.ask("stock", "i", InitItems(1, 10, 5))
    owner = world.owners["stock-0"]
    owner.step()
    during = owner.header.counts["BatchInit"]

    world.run()

    assert (during, owner.header.counts["BatchInit"]) == (1, 0)


@pytest.mark.parametrize("reload", [False, True], ids=["memory kept", "memory dropped"])
def test_what_happens_to_be_named_like_the_message_that_changes_it_is_there_all_the_same(*, reload: bool) -> None:
    item_id = "stock-0-2-0"
    world = a_quiet_world()
    world.carry_out("stock", item_id, CreateItem(item_id, 5))
    if reload:
        world.owners["stock-0"].load()

    world.carry_out("stock", item_id, AddStock(item_id, 3))

    assert world.entity(Item, "stock", item_id) == Item(5, 3)
    assert world.owners["stock-0"].header.counts["Item"] == 1


def test_memory_says_which_key_is_missing() -> None:
    with pytest.raises(NotLoaded) as raised:
        Memory()["Item:apple"]

    assert raised.value.key == "Item:apple"


# --- trimming


def remembered(*keys: str) -> Memory:
    memory = Memory()
    for key in keys:
        memory.remember(key, None)
    return memory


def test_memory_forgets_the_oldest() -> None:
    memory = remembered("a", "b", "c")

    memory.trim(2)

    assert list(memory) == ["b", "c"]


def test_what_is_remembered_again_is_the_youngest() -> None:
    memory = remembered("a", "b", "a")

    memory.trim(1)

    assert list(memory) == ["a"]


def test_memory_that_is_small_enough_forgets_nothing() -> None:
    memory = remembered("a", "b")

    memory.trim(2)

    assert list(memory) == ["a", "b"]


def test_a_decision_after_trimming_sees_what_was_applied() -> None:
    world = a_world(stock=10)
    owner = world.owners["stock-0"]
    owner.memory.trim(0)
    assert len(owner.memory) == 0

    assert world.carry_out("stock", "apple", SubtractStock("apple", 1)) == Done("9")


# --- the digest


def digests(records_max: int) -> list[int]:
    """Return what the digest is after each step."""
    world = a_world()
    for quantity in (1, 1, 2):
        world.ask("stock", "apple", AddStock("apple", quantity))
    owner = world.owners["stock-0"]
    seen = [owner.header.digest]
    while owner.step(records_max):
        seen.append(owner.header.digest)
    return seen


def test_every_change_makes_another_digest_and_batches_make_no_difference() -> None:
    assert len(set(digests(1))) == 4
    assert digests(500) == [digests(1)[0], digests(1)[-1]]
