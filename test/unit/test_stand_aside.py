"""Who cannot reach the store leaves the group, and takes part again when it can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from common import stand_aside
from common.stand_aside import own_within_reach
from common.store import StoreFailed

PARTITION = "stock-0"


class Group:
    """The group, the processor and the store of one process, and what happened in order."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.lost: list[str] = []
        self.failures = 0
        self.leaves_slowly = False

    async def run(self) -> None:
        """Be a member until cancelled."""
        self.journal.append("join")
        try:
            await asyncio.Event().wait()
        finally:
            if self.leaves_slowly:
                await asyncio.sleep(0.01)
            self.journal.append("leave")

    def out_of_reach(self) -> list[str]:
        return self.lost

    def assign(self, names: set[str]) -> None:
        self.journal.append(f"own {sorted(names)}")
        self.lost = []

    async def read(self, partition: str, fields: list[str]) -> tuple[int, list[bytes | None]]:
        assert (partition, fields) == (PARTITION, [])
        if self.failures:
            self.failures -= 1
            self.journal.append("no answer")
            raise StoreFailed("nobody answers")
        self.journal.append("answer")
        return 7, []


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - what happens is a list that grows
            await asyncio.sleep(0.001)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(stand_aside, "LOOK_S", 0.001)
    return Group()


def taking_part(group: Group) -> asyncio.Task[None]:
    return asyncio.ensure_future(own_within_reach(group, group, group))  # type: ignore[arg-type]  # stands for all three


def test_who_is_out_of_reach_leaves_before_anything_else_and_comes_back_when_the_store_answers(group: Group) -> None:
    async def test() -> None:
        task = taking_part(group)
        await until(lambda: group.journal == ["join"])
        group.failures, group.lost = 2, [PARTITION]
        await until(lambda: group.journal.count("join") == 2)
        assert group.journal == ["join", "leave", "own []", "no answer", "no answer", "answer", "join"]
        task.cancel()
        await asyncio.wait({task})
        assert group.journal[-1] == "leave"

    asyncio.run(test())


def test_who_is_told_to_stop_has_left_when_it_ends(group: Group) -> None:
    async def test() -> None:
        group.leaves_slowly = True
        task = taking_part(group)
        await until(lambda: group.journal == ["join"])
        task.cancel()
        await asyncio.wait({task})
        assert group.journal == ["join", "leave"]

    asyncio.run(test())


def test_while_the_store_answers_nobody_leaves(group: Group) -> None:
    async def test() -> None:
        task = taking_part(group)
        await asyncio.sleep(0.02)
        assert group.journal == ["join"]
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(test())
