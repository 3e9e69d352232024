"""Background tasks: what ends the process, and what does not."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import suppress

import pytest
import uvloop

from common import tasks
from common.config import ConfigError


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How the process would have ended."""
    statuses: list[int] = []
    monkeypatch.setattr(tasks.os, "_exit", statuses.append)
    return statuses


def test_a_name_that_is_not_found_after_whoever_asked_has_given_up_ends_nothing(ends: list[int]) -> None:
    """Without DNS every attempt to connect ends so: it ended all processes for as long as the names were away."""
    seen: list[BaseException] = []

    async def give_up() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda loop, context: (seen.append(context["exception"]), tasks.crash_on_error(loop, context))
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await loop.create_connection(asyncio.Protocol, "nobody.invalid", 1)
        async with asyncio.timeout(20):
            while not seen:
                await asyncio.sleep(0.05)
                gc.collect()

    uvloop.run(give_up())

    assert isinstance(seen[0], socket.gaierror)
    assert ends == []


async def test_what_a_task_raises_ends_the_process(ends: list[int]) -> None:
    async def fail() -> None:
        raise ConnectionResetError

    asyncio.get_running_loop().set_exception_handler(tasks.crash_on_error)
    tasks.spawn(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert ends == [tasks.CRASHED]


def test_a_wrong_configuration_that_a_task_finds_ends_the_loop_and_is_told_to_nobody_else() -> None:
    told: list[object] = []

    async def find_out() -> None:
        raise ConfigError("CHECKOUT_ORDER_PARTITIONS is 3")

    async def wait() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        await tasks.spawn(find_out())

    with pytest.raises(ConfigError):
        uvloop.run(wait())
    assert told == []
