"""The clients: a process of its own, so that what it measures is not what the drill does meanwhile.

    python -m drills.clients URL SEED LOAD FILE

It makes a town and says `ready`; told `go`, it says what time it is, and asks what is due when it is due, and whenever
it is told `wait?`, it says how long clients wait; told `enough`, it asks nothing more, and says `done` when nobody
waits; told `look`, it reads all that it has touched, writes FILE and says `written`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import uvloop
from drills import schedule
from drills.records import CUT, Record, dump
from drills.schedule import PLENTY, PRICE, Load, Planned, Town
from drills.wire import Answer, Cut, Wire
from histories.model import Invocation, Ok, Operation, Unknown
from histories.recording import outcome_of
from msgspec.structs import replace

ASK_AGAIN_S = 0.2
"""After what did not say how long to wait.  Who does not heed Retry-After is one more fault: a storm."""
OUTAGE_MAX_S = 240.0
"""Who has a key gives up after that."""
LATELY_S = 2.0

Input = TypeVar("Input")
Output = TypeVar("Output")


class SetUpFailed(Exception):
    """The town could not be made: the system was not well before anything was done to it."""


class Clients:
    """Ask, and write down."""

    def __init__(self, wire: Wire, random: Random, load: Load) -> None:
        self.records: list[Record] = []
        self._wire = wire
        self._random = random
        self._load = load
        self._orders: dict[int, asyncio.Task[str]] = {}
        self._under_way: dict[int, float] = {}

    def longest_wait_s(self) -> float:
        """Return how long anybody waits, or has waited whose request ended lately."""
        now = time.monotonic()
        lately = takewhile(lambda record: record.ended > now - LATELY_S, reversed(self.records))
        waited = [record.ended - record.due for record in lately if record.number is not None]
        return max([*waited, *(now - due for due in self._under_way.values())], default=0.0)

    async def ask(self, plan: Sequence[Planned], town: Town, start: float, enough: asyncio.Future[None]) -> None:
        """Ask what is due when it is due, until it is `enough`; return when everything that can be known is known."""
        async with asyncio.TaskGroup() as tasks:
            for number, planned in enumerate(plan):
                due = start + planned.due_s
                await asyncio.wait([enough], timeout=max(due - time.monotonic(), 0))
                if enough.done():
                    break
                tasks.create_task(self._ask_for(planned, town, number, due))
        await asyncio.gather(*self._orders.values())

    async def surely(self, planned: Planned) -> Record:
        """Ask until there is a yes or a no."""
        return await self._request(planned, None, time.monotonic())

    async def _ask_for(self, planned: Planned, town: Town, number: int, due: float) -> None:
        """Ask; what is to be checked out is made before, and another order for later."""
        if planned.order is not None:
            self._order(town, planned.order + len(town.orders))
            order_id = await self._order(town, planned.order)
            # It may have had to wait for its order, which nobody counts.
            planned, due = replace(planned, path=planned.path.format(order_id)), max(due, time.monotonic())
        self._under_way[number] = due
        await self._request(planned, number, due)
        del self._under_way[number]

    async def _request(self, planned: Planned, number: int | None, due: float) -> Record:
        while True:
            record = await self._call(planned, number, due)
            is_over = record.is_definite or time.monotonic() > due + OUTAGE_MAX_S
            if is_over or (planned.key is None and number is not None):
                return record
            await asyncio.sleep(record.retry_after_s or ASK_AGAIN_S)

    async def _call(self, planned: Planned, number: int | None, due: float) -> Record:
        name = "town" if number is None else f"request {number}"
        invocation = Invocation(name, planned.method, planned.path, planned.key)
        began = time.monotonic()
        try:
            answer = await self._wire.ask(planned.method, planned.path, planned.key)
        except Cut as why:
            operation = Operation(invocation, Unknown(), began, time.monotonic())
            record = Record(operation, CUT, planned.expected, number, due, str(why))
        else:
            operation = Operation(invocation, outcome_of(answer.status, answer.body), began, time.monotonic())
            problem = answer.body.decode(errors="replace") if answer.status >= 400 else ""
            record = Record(operation, answer.status, planned.expected, number, due, problem, _retry_after_s(answer))
        self.records.append(record)
        return record

    # What there is

    async def make_town(self, orders: int) -> Town:
        """Make users, items, and so many orders."""
        users, items = await (self._numbered() if self._load.is_alone else self._unnumbered())
        poor = await self._made(schedule.POOR, "/payment/create_user")
        scarce = await self._made(schedule.SCARCE, f"/stock/item/create/{PRICE}")
        town = Town(users, poor, items, scarce, (), ())
        baskets = await self._in_parallel(lambda _: self._make_order(town, 200), range(schedule.BASKETS))
        made = await self._in_parallel(lambda number: self._order(town, number), range(orders))
        return replace(town, orders=tuple(made), baskets=tuple(baskets))

    async def look(self, town: Town) -> None:
        """Read everything once more."""
        orders = (*town.baskets, *(order.result() for order in self._orders.values()))
        paths = schedule.looks((*town.users, *town.poor), (*town.items, *town.scarce), orders)
        await self._in_parallel(lambda path: self.surely(Planned(0, "GET", path)), paths)

    def _order(self, town: Town, number: int) -> asyncio.Task[str]:
        """Begin to make the order with this number, unless that was begun before; its id will come."""
        if number not in self._orders:
            self._orders[number] = asyncio.create_task(self._make_order(town, schedule.status_of(number)))
        return self._orders[number]

    async def _make_order(self, town: Town, status: int) -> str:
        """Make an order whose checkout has this status."""
        order_id = await self._id(f"/orders/create/{self._random.choice(town.poor if status == 402 else town.users)}")
        items = self._random.sample(town.items, self._random.randint(1, 2))
        items += [self._random.choice(town.scarce)] if status == 409 else []
        for item_id in items:
            await self._yes(f"/orders/addItem/{order_id}/{item_id}/{self._random.randint(1, 2)}")
        return order_id

    async def _numbered(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        await self._yes(f"/payment/batch_init/{self._load.entities}/{PLENTY}")
        await self._yes(f"/stock/batch_init/{self._load.entities}/{PLENTY}/{PRICE}")
        return tuple(map(str, range(self._load.entities))), tuple(map(str, range(self._load.entities)))

    async def _unnumbered(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        users = await self._made(self._load.entities, "/payment/create_user", f"/payment/add_funds/{{}}/{PLENTY}")
        items = await self._made(self._load.entities, f"/stock/item/create/{PRICE}", f"/stock/add/{{}}/{PLENTY}")
        return users, items

    async def _made(self, count: int, create: str, then: str = "") -> tuple[str, ...]:
        ids = await self._in_parallel(lambda _: self._id(create), range(count))
        await self._in_parallel(lambda new_id: self._yes(then.format(new_id)), ids if then else ())
        return tuple(ids)

    async def _id(self, path: str) -> str:
        body = await self._yes(path)
        assert isinstance(body, dict)
        return str(next(iter(body.values())))

    async def _yes(self, path: str) -> str | dict[str, object]:
        key = UUID(int=self._random.getrandbits(128)).hex
        record = await self.surely(Planned(0, "POST", path, key))
        if not isinstance(record.operation.outcome, Ok):
            raise SetUpFailed(f"{path}: {record.answer} {record.problem}")
        return record.operation.outcome.body

    async def _in_parallel(self, work: Callable[[Input], Awaitable[Output]], inputs: Sequence[Input]) -> list[Output]:
        """Return the results of `work` on each input, in their order."""
        places = asyncio.Semaphore(self._load.at_once)

        async def one(each: Input) -> Output:
            async with places:
                return await work(each)

        return await asyncio.gather(*map(one, inputs))


def _retry_after_s(answer: Answer) -> float | None:
    told = answer.headers.get("retry-after")
    return None if told is None else float(told)


async def _told(*words: str) -> str:
    """Wait for a line on the standard input; end when there is nobody any more who could write one."""
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        sys.exit()
    assert line.strip() in words, f"told {line!r}, not {words!r}"
    return line.strip()


async def _answer_until_enough(clients: Clients) -> None:
    while await _told("wait?", "enough") == "wait?":
        _say(f"{clients.longest_wait_s()}")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def _main(url: str, seed: str, load: Load, path: Path) -> None:
    place, random, now = urlsplit(url), Random(seed), time.time_ns()
    wire = Wire(place.hostname or "", place.port or 80)
    # Keys are new in every run, also of the same seed: their results are kept for a day.
    clients = Clients(wire, Random(f"{seed} {now}"), load)
    town = await clients.make_town(schedule.orders_ahead(load.rate))
    plan = [replace(call, key=call.key and f"{call.key}-{now:x}") for call in schedule.plan(town, random, load)]
    _say("ready")
    await _told("go")
    start, enough = time.monotonic(), asyncio.create_task(_answer_until_enough(clients))
    _say(f"{start}")
    await clients.ask(plan, town, start, enough)
    await enough
    _say("done")
    await _told("look")
    await clients.look(town)
    dump(clients.records, path)
    wire.close()
    _say("written")


if __name__ == "__main__":
    URL, SEED, LOAD, FILE = sys.argv[1:]
    uvloop.run(_main(URL, SEED, msgspec.json.decode(LOAD, type=Load), Path(FILE)))
