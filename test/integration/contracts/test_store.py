"""What the store promises, to everybody: the simulated one and the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from integration.contracts.store_worlds import StoreWorld, store_contract

from common.fold import Folded
from common.messages import Done, Told
from common.processor import Store
from common.snapshot import Manifest, Unreadable
from common.store import REPLY_WAIT_S, Fenced, StoreFailed

WEB = "web-1"
OTHER_WEB = "web-2"
A_WHILE_S = 0.2
Fields = dict[str, bytes | None]


def a_fold(start: int, end: int, changes: Fields | None = None, replies: dict[str, list[Told]] | None = None) -> Folded:
    return Folded(start, end, 0, changes or {}, replies=replies or {})


def told(*names: str) -> list[Told]:
    return [Told(f"request {name}", number, Done(name)) for number, name in enumerate(names)]


async def apply(world: StoreWorld, *folds: Folded) -> None:
    """Apply one after the other, with replies."""
    store = await world.store()
    for folded in folds:
        await insist(world, store, folded)


async def insist(world: StoreWorld, store: Store, folded: Folded) -> None:
    """Apply as an owner does: after a failover a client may fail until it knows the new primary."""
    while True:
        try:
            return await store.apply(world.partition, folded, with_replies=True)
        except StoreFailed:
            await asyncio.sleep(A_WHILE_S)


async def state(world: StoreWorld, *fields: str) -> tuple[int, list[bytes | None]]:
    """Return the position and the fields, as a client sees them that has just come."""
    return await (await world.store()).read(world.partition, list(fields))


async def all_told(world: StoreWorld, web_id: str = WEB) -> list[list[Told]]:
    """Return what each take gets, until there is nothing more."""
    replies = await world.replies(web_id)
    taken = []
    while told_now := await replies.take(world.partition):
        taken.append(told_now)
    return taken


# --- reading and applying --------------------------------------------------------------------------------------------


@store_contract
async def test_a_partition_without_state_stands_at_0_and_has_no_field(world: StoreWorld) -> None:
    store = await world.store()

    assert await store.read(world.partition, []) == (0, [])
    assert await store.read(world.partition, ["header", "Item:apple"]) == (0, [None, None])


@store_contract
async def test_an_apply_moves_fields_and_position_together_and_none_deletes(world: StoreWorld) -> None:
    await apply(world, a_fold(0, 3, {"header": b"h", "Item:apple": b"a", "Item:pear": b"\x00\xff"}))
    assert await state(world, "Item:pear", "Item:apple", "none") == (3, [b"\x00\xff", b"a", None])

    await apply(world, a_fold(3, 4, {"header": b"", "Item:apple": None, "Item:never": None}))
    assert await state(world, "header", "Item:apple", "Item:pear") == (4, [b"", None, b"\x00\xff"])


@store_contract
async def test_an_apply_without_changes_moves_the_position(world: StoreWorld) -> None:
    await apply(world, a_fold(0, 3, {"Item:apple": b"a"}), a_fold(3, 9))

    assert await state(world, "Item:apple") == (9, [b"a"])


@store_contract
async def test_an_apply_from_elsewhere_is_fenced_and_changes_nothing(world: StoreWorld) -> None:
    store = await world.store()
    await apply(world, a_fold(0, 5, {"Item:apple": b"mine"}))

    for start, end in ((0, 8), (4, 8), (6, 8), (3, 4), (5_000, 8_000)):
        zombies = a_fold(start, end, {"Item:apple": b"zombie's", "Item:new": b"n"}, {WEB: told("zombie's")})
        with pytest.raises(Fenced) as fenced:
            await store.apply(world.partition, zombies, with_replies=True)
        assert fenced.value.stored == 5

    assert await state(world, "Item:apple", "Item:new") == (5, [b"mine", None])
    assert await all_told(world) == []


@store_contract
async def test_a_partition_without_state_takes_only_an_apply_from_0(world: StoreWorld) -> None:
    store = await world.store()

    with pytest.raises(Fenced) as fenced:
        await store.apply(world.partition, a_fold(7, 8, {"Item:apple": b"a"}), with_replies=True)

    assert fenced.value.stored == 0
    assert await state(world, "Item:apple") == (0, [None])


@store_contract
async def test_of_two_owners_at_once_one_moves_each_step_and_the_other_is_fenced(world: StoreWorld) -> None:
    owners = [await world.store(), await world.store()]
    position = 0

    for _ in range(10):
        folds = [a_fold(position, position + 1, {"by": b"0"}), a_fold(position, position + 2, {"by": b"1"})]
        steps = [
            store.apply(world.partition, fold, with_replies=True) for store, fold in zip(owners, folds, strict=True)
        ]
        ends = await asyncio.gather(*steps, return_exceptions=True)
        winner = ends.index(None)
        position += 1 + winner

        assert isinstance(ends[1 - winner], Fenced)
        assert await owners[0].read(world.partition, ["by"]) == (position, [b"%d" % winner])


@store_contract
async def test_a_read_has_position_and_fields_of_the_same_moment(world: StoreWorld) -> None:
    owner, reader = await world.store(), await world.store()
    moving = asyncio.ensure_future(move(world, owner, 100))

    seen = []
    while not moving.done():
        position, values = await reader.read(world.partition, ["one", "other"])
        assert values == ([b"%d" % position] * 2 if position else [None, None])
        seen.append(position)

    await moving
    assert seen == sorted(seen)
    assert await state(world, "one") == (100, [b"100"])


async def move(world: StoreWorld, store: Store, end: int) -> None:
    for position in range(end):
        value = b"%d" % (position + 1)
        await store.apply(
            world.partition, a_fold(position, position + 1, {"one": value, "other": value}), with_replies=True
        )


# --- replies ---------------------------------------------------------------------------------------------------------


@store_contract
async def test_replies_are_taken_once_in_the_order_of_the_applies_by_whom_they_are_for(world: StoreWorld) -> None:
    await apply(
        world,
        a_fold(0, 1, {}, {WEB: told("a", "b"), OTHER_WEB: told("other")}),
        a_fold(1, 2, {"Item:apple": b"nobody asked"}),
        a_fold(2, 3, {}, {WEB: told("c")}),
    )

    assert await all_told(world) == [told("a", "b"), told("c")]
    assert await (await world.replies(OTHER_WEB)).take(world.partition) == told("other")


@store_contract
async def test_what_two_take_at_once_each_gets_a_part_of(world: StoreWorld) -> None:
    takers = [await world.replies(WEB), await world.replies(WEB)]
    await apply(world, a_fold(0, 1, {}, {WEB: told("a", "b")}), a_fold(1, 2, {}, {WEB: told("c")}))

    taken = await asyncio.gather(*[taker.take(world.partition) for taker in takers])

    assert sorted(taken, key=len) == [told("c"), told("a", "b")]


@store_contract
async def test_a_take_waits_for_about_a_second_and_gets_nothing(world: StoreWorld) -> None:
    replies = await world.replies(WEB)
    loop = asyncio.get_running_loop()
    started_s = loop.time()

    assert await replies.take(world.partition) == []
    assert loop.time() - started_s >= 0.9 * REPLY_WAIT_S


@store_contract
async def test_a_take_that_waits_wakes_when_something_is_pushed(world: StoreWorld) -> None:
    replies = await world.replies(WEB)
    taking = asyncio.ensure_future(replies.take(world.partition))
    await asyncio.sleep(A_WHILE_S)
    await apply(world, a_fold(0, 1, {}, {WEB: told("a")}))

    assert (await taking or await replies.take(world.partition)) == told("a")


@store_contract
async def test_an_apply_without_replies_pushes_none(world: StoreWorld) -> None:
    store = await world.store()

    await store.apply(world.partition, a_fold(0, 1, {"Item:apple": b"a"}, {WEB: told("a")}), with_replies=False)

    assert await state(world, "Item:apple") == (1, [b"a"])
    assert await all_told(world) == []


# --- answers that are lost -------------------------------------------------------------------------------------------


@store_contract
async def test_an_apply_whose_answer_was_lost_can_be_repeated_and_tells_once(world: StoreWorld) -> None:
    store = await world.store()
    folded = a_fold(0, 5, {"Item:apple": b"a", "Item:gone": None}, {WEB: told("once")})
    await store.read(world.partition, [])

    async with world.answers_lost():
        with suppress(StoreFailed):
            await store.apply(world.partition, folded, with_replies=True)
    for _ in range(2):
        await store.apply(world.partition, folded, with_replies=True)

    assert await state(world, "Item:apple") == (5, [b"a"])
    assert await all_told(world) == [told("once")]


@store_contract
async def test_a_store_that_does_not_answer_fails_as_such_and_in_no_other_way(world: StoreWorld) -> None:
    store, replies = await world.store(), await world.replies(WEB)
    folded = a_fold(0, 5, {"Item:apple": b"a"})
    await store.read(world.partition, [])

    async with world.outage():
        read, applied, taken = await asyncio.gather(
            store.read(world.partition, ["Item:apple"]),
            store.apply(world.partition, folded, with_replies=True),
            replies.take(world.partition),
            return_exceptions=True,
        )

    assert isinstance(read, StoreFailed)
    assert isinstance(applied, StoreFailed)
    assert taken == [] or isinstance(taken, StoreFailed)
    assert await store.read(world.partition, ["Item:apple"]) in [(0, [None]), (5, [b"a"])]
    await store.apply(world.partition, folded, with_replies=True)
    assert await state(world, "Item:apple") == (5, [b"a"])


# --- failovers -------------------------------------------------------------------------------------------------------


@store_contract
async def test_a_failover_that_forgets_goes_back_to_one_earlier_moment_of_everything(world: StoreWorld) -> None:
    await apply(world, a_fold(0, 3, {"a": b"a3", "b": b"b3"}), a_fold(3, 4, {"b": b"b4"}))
    async with world.forgetting():
        await apply(world, a_fold(4, 6, {"a": None, "c": b"c6"}), a_fold(6, 7, {"a": b"a7", "b": b"b7"}))
        assert await state(world, "a", "b", "c") == (7, [b"a7", b"b7", b"c6"])

    assert await state(world, "a", "b", "c") == (4, [b"a3", b"b4", None])


@store_contract
async def test_the_owner_is_fenced_after_a_failover_that_forgets_and_goes_on_from_there(world: StoreWorld) -> None:
    store = await world.store()
    last = a_fold(3, 5, {"a": b"a5"})
    await apply(world, a_fold(0, 3, {"a": b"a3"}))
    async with world.forgetting():
        await store.apply(world.partition, last, with_replies=True)

    with pytest.raises(Fenced) as fenced:
        await insist(world, store, a_fold(5, 6, {"a": b"a6"}))
    assert fenced.value.stored == 3
    await insist(world, store, last)
    assert await state(world, "a") == (5, [b"a5"])


@store_contract
async def test_the_owner_goes_on_undisturbed_after_a_failover_that_forgets_nothing(world: StoreWorld) -> None:
    store = await world.store()
    await store.apply(world.partition, a_fold(0, 3, {"a": b"a3"}), with_replies=True)
    async with world.forgetting():
        pass

    await insist(world, store, a_fold(3, 4, {"b": b"b4"}))
    assert await state(world, "a", "b") == (4, [b"a3", b"b4"])


@store_contract
async def test_a_failover_takes_replies_back_with_the_state_and_one_that_was_taken_comes_again(
    world: StoreWorld,
) -> None:
    replies = await world.replies(WEB)
    await apply(world, *[a_fold(at, at + 1, {}, {WEB: told(name)}) for at, name in enumerate(("a", "b", "c"))])
    assert await replies.take(world.partition) == told("a")
    async with world.forgetting():
        assert await replies.take(world.partition) == told("b")
        await apply(world, a_fold(3, 4, {}, {WEB: told("forgotten")}))

    assert await all_told(world) == [told("b"), told("c")]


@store_contract
async def test_what_reaches_only_the_replaced_primary_is_gone(world: StoreWorld) -> None:
    await apply(world, a_fold(0, 5, {"a": b"a5"}))
    await world.apply_while_replaced(a_fold(5, 9, {"a": b"a9", "b": b"b9"}))

    assert await state(world, "a", "b") == (5, [b"a5", None])
    await apply(world, a_fold(5, 6, {"a": b"a6"}))
    assert await state(world, "a", "b") == (6, [b"a6", None])


@store_contract
async def test_an_emptied_primary_stands_at_0_and_has_neither_fields_nor_replies(world: StoreWorld) -> None:
    store = await world.store()
    await apply(world, a_fold(0, 5, {"a": b"a5"}, {WEB: told("a")}))
    await world.empty()

    assert await state(world, "a") == (0, [None])
    with pytest.raises(Fenced) as fenced:
        await insist(world, store, a_fold(5, 6, {"a": b"a6"}))
    assert fenced.value.stored == 0
    await store.apply(world.partition, a_fold(0, 2, {"b": b"b2"}), with_replies=True)
    assert await state(world, "a", "b") == (2, [None, b"b2"])
    assert await all_told(world) == []


# --- restoring -------------------------------------------------------------------------------------------------------

CHUNKS = ({"Item:apple": b"a", "Item:pear": b"\x00\xff"}, {"Page:attempt-1": b"p"})
SNAPSHOT = Manifest(7, b"the header", 3, ())
RESTORED = (7, [b"the header", b"a", b"\x00\xff", b"p"])
FIELDS = ("header", "Item:apple", "Item:pear", "Page:attempt-1")


async def chunks() -> AsyncIterator[dict[str, bytes]]:
    for chunk in CHUNKS:
        yield chunk


async def insist_on_restoring(world: StoreWorld, store: Store, expected: int) -> None:
    """Restore as an owner does."""
    while True:
        try:
            return await store.restore(world.partition, expected, SNAPSHOT, chunks())
        except StoreFailed:
            await asyncio.sleep(A_WHILE_S)


@store_contract
async def test_a_snapshot_comes_in_place_of_nothing_and_of_all_that_an_older_state_has(world: StoreWorld) -> None:
    store = await world.store()
    await store.restore(world.partition, 0, SNAPSHOT, chunks())
    assert await state(world, *FIELDS) == RESTORED

    await apply(world, a_fold(7, 9, {"header": b"newer", "Item:new": b"n", "Item:pear": None}))
    await store.restore(world.partition, 9, SNAPSHOT, chunks())  # whether it is newer is for whoever restores to know

    assert await state(world, *FIELDS) == RESTORED
    assert await state(world, "Item:new") == (7, [None])
    await apply(world, a_fold(7, 8, {"Item:apple": b"a8"}))
    assert await state(world, "Item:apple") == (8, [b"a8"])


@store_contract
async def test_a_restore_over_another_state_is_fenced_and_changes_nothing(world: StoreWorld) -> None:
    store = await world.store()
    await apply(world, a_fold(0, 5, {"header": b"h", "Item:apple": b"mine"}))

    for expected in (0, 4, 6, 50):
        with pytest.raises(Fenced) as fenced:
            await store.restore(world.partition, expected, SNAPSHOT, chunks())
        assert fenced.value.stored == 5

    assert await state(world, *FIELDS) == (5, [b"h", b"mine", None, None])


@store_contract
async def test_a_restore_that_was_carried_out_already_succeeds(world: StoreWorld) -> None:
    store = await world.store()
    await store.read(world.partition, [])

    async with world.answers_lost():
        with suppress(StoreFailed):
            await store.restore(world.partition, 0, SNAPSHOT, chunks())
    for _ in range(2):
        await store.restore(world.partition, 0, SNAPSHOT, chunks())

    assert await state(world, *FIELDS) == RESTORED


@store_contract
async def test_what_lacks_a_field_or_cannot_be_read_is_never_seen(world: StoreWorld) -> None:
    async def unreadable() -> AsyncIterator[dict[str, bytes]]:
        yield CHUNKS[0]
        raise Unreadable

    async def first_only() -> AsyncIterator[dict[str, bytes]]:
        yield CHUNKS[0]

    store = await world.store()

    with pytest.raises(Unreadable):
        await store.restore(world.partition, 0, SNAPSHOT, unreadable())
    with pytest.raises(StoreFailed):
        await store.restore(world.partition, 0, SNAPSHOT, first_only())

    assert await state(world, *FIELDS) == (0, [None] * 4)


@store_contract
async def test_a_snapshot_of_which_a_failover_forgets_a_part_is_not_put_in_place(world: StoreWorld) -> None:
    store = await world.store()
    first_is_there, go_on, all_is_there, end = (asyncio.Event() for _ in range(4))

    async def slow_chunks() -> AsyncIterator[dict[str, bytes]]:
        yield CHUNKS[0]
        first_is_there.set()
        await go_on.wait()
        yield CHUNKS[1]
        all_is_there.set()
        await end.wait()

    restoring = asyncio.ensure_future(store.restore(world.partition, 0, SNAPSHOT, slow_chunks()))
    await first_is_there.wait()
    async with world.forgetting():
        go_on.set()
        await all_is_there.wait()
    end.set()

    with pytest.raises(StoreFailed):
        await restoring
    assert await state(world, *FIELDS) == (0, [None] * 4)
    await insist_on_restoring(world, store, 0)
    assert await state(world, *FIELDS) == RESTORED
