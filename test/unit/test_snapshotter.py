"""The snapshotter: folds once more up to where the store is, compares, and takes snapshots of what was compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import structlog
from builders import NOW_MS, ONE_EACH
from prometheus_client import REGISTRY
from test_fold import faulty
from test_processor import PARTITION, Bench, a_bench, ends_a_saga, eventually, run
from world import STOCK, state_of

from common import processor, snapshotter, telemetry
from common.decision import Machine
from common.fold import Codec, Record
from common.log import LogFailed
from common.messages import AskPrice, encode
from common.snapshot import Snapshots
from common.snapshotter import Snapshotter
from common.store import StoreFailed
from stock.domain import AddStock, Item, SubtractStock

MANY = 1_000_000
ENDING = msgspec.structs.replace(STOCK, decide=ends_a_saga)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "PAUSE_S", 0.0)


def a_snapshotter(bench: Bench, records_min: int = MANY, machine: Machine = STOCK) -> Snapshotter:
    return Snapshotter(machine, ONE_EACH, bench.world(), records_min)


@asynccontextmanager
async def working(tested: Snapshotter) -> AsyncIterator[asyncio.Future[None]]:
    """Have it work while the block runs."""
    work = asyncio.ensure_future(tested.run())
    try:
        yield work
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


def sample(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"partition": PARTITION}) or 0.0


def compared() -> float:
    return sample("checkout_states_compared_total")


def halted() -> float:
    return sample("checkout_partition_halted")


async def compare(tested: Snapshotter) -> None:
    """Let it work until it has compared."""
    before = compared()
    async with working(tested) as work:
        await eventually(lambda: compared() > before, work)


def altered(header: bytes) -> bytes:
    """Return a header that says that something else has changed."""
    changed = Codec(STOCK).header(header)
    changed.digest ^= 1
    return encode(changed)


# --- comparing


def test_a_state_that_is_what_its_log_makes_is_compared_and_nothing_is_said_to_anybody() -> None:
    async def test(bench: Bench) -> None:
        bench.write(1, AskPrice("a1", "apple"))
        bench.write(3, AskPrice("a3", "apple"))
        bench.ask(SubtractStock("apple", 1))
        await bench.catch_up()
        before = state_of(bench.store.memory), len(bench.told()), len(bench.publisher.published)

        with structlog.testing.capture_logs() as logs:
            await compare(a_snapshotter(bench, machine=ENDING))

        assert (state_of(bench.store.memory), len(bench.told()), len(bench.publisher.published)) == before
        assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == ["loaded"]

    run(test, a_bench(ENDING))


def test_nothing_is_folded_that_the_store_has_not_folded() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        position = bench.position
        for _ in range(5):
            bench.ask(AddStock("apple", 1))
        bench.journal.clear()

        await compare(a_snapshotter(bench))

        assert [what for what in bench.journal if what.startswith("poll")] == [f"poll 0..{position - 1}"]

    run(test, a_bench())


def test_what_the_store_goes_on_to_is_compared_too() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        tested = a_snapshotter(bench)
        await compare(tested)
        for _ in range(3):
            bench.ask(AddStock("apple", 1))
            await bench.catch_up()
        before = compared()

        async with working(tested) as work:
            await eventually(lambda: compared() > before, work)
            bench.ask(AddStock("apple", 1))
            await bench.catch_up()
            await eventually(lambda: compared() > before + 1, work)

    run(test, a_bench())


def test_a_state_that_is_not_what_its_log_makes_halts_until_it_is() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        stored = bench.store.memory.hashes[PARTITION]
        right = stored["header"]
        stored["header"] = altered(right)
        before = compared()
        with structlog.testing.capture_logs() as logs:
            async with working(a_snapshotter(bench, records_min=1)) as work:
                await eventually(lambda: any(entry["event"] == "halted" for entry in logs), work)
                assert (halted(), compared(), bench.snapshot_log.manifest_log) == (1, before, {})
                assert "I6 is broken" in next(entry["why"] for entry in logs if entry["event"] == "halted")
                stored["header"] = right
                await eventually(lambda: compared() > before, work)
        assert halted() == 0
        assert PARTITION in bench.snapshot_log.manifest_log

    run(test, a_bench())


class Shown(list[int]):
    """Stands where the gauge of halted partitions is, and keeps all that it has shown."""

    def labels(self, _partition: str) -> Shown:
        return self

    def set(self, value: int) -> None:
        self.append(value)


def test_who_is_halted_shows_it_while_it_folds_again_until_it_finds_what_its_log_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Shown()
    monkeypatch.setattr(telemetry, "HALTED", shown)
    monkeypatch.setattr(processor, "RECORDS_MAX", 1)  # there are many to be folded again

    async def test(bench: Bench) -> None:
        await bench.catch_up()
        stored = bench.store.memory.hashes[PARTITION]
        right, stored["header"] = stored["header"], altered(stored["header"])
        async with working(a_snapshotter(bench)) as work:
            await eventually(lambda: shown.count(1) >= 3, work)
            assert 0 not in shown[shown.index(1) :]
            stored["header"] = right
            await eventually(lambda: shown[-1] == 0, work)

    run(test, a_bench())


def test_a_state_that_rests_is_compared_too() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        seen = compared()
        async with working(a_snapshotter(bench)) as work:
            await eventually(lambda: compared() > seen + 3, work)
            stored = bench.store.memory.hashes[PARTITION]
            stored["header"] = altered(stored["header"])
            with structlog.testing.capture_logs() as logs:
                await eventually(lambda: any(entry["event"] == "halted" for entry in logs), work)

    run(test, a_bench())


def test_a_field_that_is_not_what_the_log_makes_halts_sooner_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "SEEN_FIELDS", 1)

    async def test(bench: Bench) -> None:
        await bench.catch_up()
        stored = bench.store.memory.hashes[PARTITION]
        seen = compared()
        async with working(a_snapshotter(bench)) as work:
            await eventually(lambda: compared() > seen + 2 * len(stored), work)
            stored["Item:apple"] = encode(Item(5, 11))
            with structlog.testing.capture_logs() as logs:
                await eventually(lambda: any(entry["event"] == "halted" for entry in logs), work)

    run(test, a_bench())


def test_a_store_that_was_taken_back_is_compared_when_it_is_further_on_again() -> None:
    async def test(bench: Bench) -> None:
        before = bench.store.memory.snapshot(PARTITION)
        await bench.catch_up()
        tested = a_snapshotter(bench)
        seen = compared()
        async with working(tested) as work:
            await eventually(lambda: compared() > seen, work)
            bench.store.memory.roll_back(PARTITION, before)
            for _ in range(20):
                await asyncio.sleep(0)
            bench.ask(AddStock("apple", 1))
            await bench.catch_up()
            await eventually(lambda: compared() > seen + 1, work)
        assert halted() == 0

    run(test, a_bench())


@pytest.mark.parametrize(
    ("call", "why"), [("open", LogFailed("no broker")), ("poll", LogFailed("no broker")), ("read", StoreFailed("down"))]
)
def test_whatever_fails_it_goes_on_from_what_it_has(call: str, why: Exception) -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        tested = a_snapshotter(bench)
        bench.fail(call, why, why)
        await compare(tested)
        assert bench.failures[call] == []

    run(test, a_bench())


# --- dead letters


def test_a_message_that_its_owner_has_buried_is_skipped_also_with_corrected_code() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        seen = compared()
        async with working(a_snapshotter(bench)) as work:
            await eventually(lambda: compared() > seen, work)
            bench.ask(SubtractStock("apple", 1))
            await bench.catch_up()
            await eventually(lambda: compared() > seen + 1, work)
        assert len(bench.box.letters) == 1
        assert halted() == 0

    run(test, a_bench(faulty(STOCK, SubtractStock)))


def test_a_message_that_raises_here_only_halts_and_is_not_buried() -> None:
    async def test(bench: Bench) -> None:
        bench.ask(SubtractStock("apple", 1))
        await bench.catch_up()
        with structlog.testing.capture_logs() as logs:
            async with working(a_snapshotter(bench, machine=faulty(STOCK, SubtractStock))) as work:
                await eventually(lambda: any(entry["event"] == "halted" for entry in logs), work)
        assert "message 3-0 of stock-0 raises here only" in next(e["why"] for e in logs if e["event"] == "halted")
        assert bench.box.letters == []

    run(test, a_bench())


# --- taking snapshots


def test_a_snapshot_is_what_was_compared() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        await compare(a_snapshotter(bench, records_min=1))

        snapshots = Snapshots(bench.snapshot_log)
        (manifest,) = await snapshots.newest_first(PARTITION)
        fields = {"header": manifest.header}
        async for chunk in snapshots.read(PARTITION, manifest):
            fields |= chunk
        assert (manifest.position, fields) == bench.store.memory.snapshot(PARTITION)

    run(test, a_bench())


@pytest.mark.parametrize(("records_min", "taken"), [(3, 1), (4, 0)])
def test_a_snapshot_is_taken_after_so_many_records(records_min: int, taken: int) -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        assert bench.position == 3
        await compare(a_snapshotter(bench, records_min))

        assert len(bench.snapshot_log.manifest_log.get(PARTITION, [])) == taken

    run(test, a_bench())


def test_none_is_taken_too_soon_after_another_also_where_that_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        now_s = bench.now_s
        monkeypatch.setattr(bench, "_sleep", lambda _: asyncio.sleep(0))
        put_manifest, tried = bench.snapshot_log.put_manifest, []

        async def fail_once(partition: str, manifest: bytes) -> None:
            tried.append(bench.now_s - now_s)
            if len(tried) == 1:
                raise LogFailed("no broker")
            await put_manifest(partition, manifest)

        monkeypatch.setattr(bench.snapshot_log, "put_manifest", fail_once)
        tested = a_snapshotter(bench, records_min=1)
        async with working(tested) as work:
            await eventually(lambda: tested.is_ready, work)
            for second in (1, 59, 60, 61, 119, 120, 121, 179, 180):
                bench.now_s = now_s + second
                bench.ask(AddStock("apple", 1))
                seen = compared()
                await bench.catch_up()
                await eventually(lambda seen=seen: compared() > seen, work)
        assert tried == [60, 120, 180]

    monkeypatch.setattr(snapshotter, "PAUSE_S", 60.0)
    run(test, a_bench())


def test_a_new_one_begins_at_the_newest_snapshot() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        await compare(a_snapshotter(bench, records_min=1))
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        bench.journal.clear()

        await compare(a_snapshotter(bench, records_min=1))

        assert [what for what in bench.journal if what.startswith("poll")] == ["poll 3..3"]
        assert sample("checkout_snapshot_position") == 4

    run(test, a_bench())


def test_a_new_one_passes_over_a_snapshot_that_cannot_be_read() -> None:
    async def test(bench: Bench) -> None:
        await bench.catch_up()
        await compare(a_snapshotter(bench, records_min=1))
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        await compare(a_snapshotter(bench, records_min=1))
        bench.snapshot_log.chunk_log[PARTITION][-1] = Record(1, NOW_MS, b"somebody else's")
        bench.ask(AddStock("apple", 1))
        await bench.catch_up()
        bench.journal.clear()

        await compare(a_snapshotter(bench, records_min=1))

        assert [what for what in bench.journal if what.startswith("poll")] == ["poll 3..4"]
        assert bench.entity() == encode(Item(5, 12))

    run(test, a_bench())


def test_it_is_ready_when_it_follows_every_partition() -> None:
    async def test(bench: Bench) -> None:
        tested = a_snapshotter(bench)
        assert not tested.is_ready
        async with working(tested) as work:
            await eventually(lambda: tested.is_ready, work)
        assert not tested.is_ready

    run(test, a_bench())
