"""One contract, two worlds: what the simulation's doubles promise is what the real log and the real store promise.

A contract is an `async def` with a world as its only argument.  It becomes two tests: one in virtual time, on the
doubles, and one on the broker and the Redis Cluster of the system under test.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import pytest
from simulation import loop
from simulation.process import Fate, Wire

from local.system import System

World = TypeVar("World")
Body = Callable[[World], Coroutine[Any, Any, None]]

SEED = 1
REAL_TIMEOUT_S = 60.0


def contract(
    simulated: Callable[[], AbstractAsyncContextManager[World]],
    real: Callable[[System], AbstractAsyncContextManager[World]],
) -> Callable[[Body[World]], Callable[..., None]]:
    """Return a decorator that makes the two tests of a contract."""

    def decorate(body: Body[World]) -> Callable[..., None]:
        @pytest.mark.parametrize("world", ["simulated", "real"])
        def test(request: pytest.FixtureRequest, world: str) -> None:
            if world == "simulated":
                _simulate(_within(simulated(), body))
            else:
                system: System = request.getfixturevalue("system")
                asyncio.run(asyncio.wait_for(_within(real(system), body), REAL_TIMEOUT_S))

        test.__name__ = body.__name__
        return test

    return decorate


async def _within(world: AbstractAsyncContextManager[World], body: Body[World]) -> None:
    async with world as opened:
        await body(opened)


def _simulate(work: Coroutine[Any, Any, None]) -> None:
    failures: list[dict[str, Any]] = []
    loop.run(work, lambda _, context: failures.append(context))
    assert not failures


@dataclass
class PlannedWire(Wire):
    """A wire on which every call has the same fate."""

    fate: Fate = Fate.OK

    def _fate(self, kind: str) -> Fate:
        del kind
        return self.fate


def a_wire(fate: Fate = Fate.OK) -> PlannedWire:
    """Return a wire between simulated processes and what they call."""
    return PlannedWire(Random(SEED), Counter(), lambda _: None, fate=fate)
