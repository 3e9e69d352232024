"""Web processes and the gateway: the real RequestReply behind a simulated HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from histories.model import Invocation, Ok, Outcome, Refused, Unknown
from simulation.log import SimulatedEnds, SimulatedLog, SimulatedSender
from simulation.process import Process, Wire
from simulation.store import Cluster, SimulatedReplies, SimulatedStore

from common import messages
from common.decision import Entity, Machine, key
from common.fold import Codec
from common.http import STATUS
from common.log import Publisher
from common.messages import Asker, Done, Message, Topology, partition_of, partitions_of
from common.request_reply import Network, RequestReply
from common.tasks import spawn
from order.domain import AddItem, CheckOut, CreateOrder, InitOrders, Order
from payment.domain import Account, AddFunds, CreateUser, InitUsers, Pay
from stock.domain import AddStock, CreateItem, InitItems, Item, SubtractStock

PATIENCE_S = 2.0
ATTEMPTS = 4
BACK_S = 0.3
CUT_RATE = 0.02
REPLAY_RATE = 0.05

SERVICES = {"orders": "order", "stock": "stock", "payment": "payment"}
KINDS: dict[str, type[Entity]] = {"order": Order, "stock": Item, "payment": Account}


class Cut(Exception):
    """The web process died, or its answer was lost."""


class WebProcess(Process):
    """One web process."""

    def __init__(self, name: str, machine: Machine, topology: Topology, wire: Wire, clock_error_s: float) -> None:
        super().__init__(name, clock_error_s)
        self.service = machine.service
        self._machine = machine
        self._topology = topology
        self._wire = wire

    def connect(self, log: SimulatedLog, cluster: Cluster) -> None:
        """Begin to take requests."""
        network = Network(
            publisher=Publisher(SimulatedSender(log, self._wire, self)),
            ends=SimulatedEnds(log, self._wire, self),
            store=SimulatedStore(cluster, self._wire, self),
            replies=SimulatedReplies(cluster, self._wire, self, self.name),
            now_s=self.now_s,
            sleep=self.sleep,
        )
        self.requests = RequestReply(self.name, Codec(self._machine), network)
        for partition in partitions_of(self.service, self._topology):
            self.start(self.requests.take_replies(partition))
            self.start(self.requests.watch(partition))
        self.start(self.requests.sweep())

    async def ask(self, entity_id: str, asker: Asker, command: Message) -> messages.Outcome | None:
        """Return the outcome, None when patience is over; raise Cut when this process dies meanwhile."""
        partition = partition_of(self.service, entity_id, self._topology)
        box: asyncio.Future[messages.Outcome] = asyncio.get_running_loop().create_future()
        tell = _once(box)
        asker = Asker(asker.request_id, asker.fingerprint, self.name, asker.is_client_key)
        outcome = await self._wait(box, lambda: self.requests.ask(partition, asker, command, tell))
        if outcome is None:
            self.requests.forget(asker, tell)
        return outcome

    async def find(self, entity_id: str) -> tuple[bool, Entity | None]:
        """Return whether there is an answer in time, and the entity."""
        partition = partition_of(self.service, entity_id, self._topology)
        box: asyncio.Future[tuple[bool, Entity | None]] = asyncio.get_running_loop().create_future()
        give = _once(box)
        field = key(KINDS[self.service], entity_id)
        found = await self._wait(box, lambda: self.requests.read(partition, field, lambda entity: give((True, entity))))
        return found or (False, None)

    async def _wait(self, box: asyncio.Future[Any], call: Callable[[], None]) -> Any:
        await self.gate()
        if self.is_dead:
            raise Cut
        self.do(call)
        died = asyncio.ensure_future(self.died.wait())
        await asyncio.wait({box, died}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if self.is_dead:
            raise Cut
        return box.result() if box.done() else None


def _once(box: asyncio.Future[Any]) -> Callable[[Any], None]:
    def tell(outcome: Any) -> None:
        if not box.done():
            box.set_result(outcome)

    return tell


class Gateway:
    """Sends each request to a live web process, and to another one, with the same attempt id, when that one dies."""

    def __init__(self, random: Random, wire: Wire) -> None:
        self._random = random
        self._wire = wire
        self._attempts = 0
        self.webs: list[WebProcess] = []

    async def forward(self, invocation: Invocation) -> Outcome:
        """Return what the client gets."""
        self._attempts += 1
        request_key = f"key/{invocation.key}" if invocation.key else f"attempt/{self._attempts}"
        for _ in range(ATTEMPTS):
            web = await self._pick(SERVICES[invocation.path.split("/")[1]])
            if web is None:
                return Unknown()
            self._replay_meanwhile(invocation, request_key, web.service)
            try:
                return await self._answer(web, invocation, request_key)
            except Cut:
                self._wire.note(f"gateway replays {invocation.path} as {request_key}")
        return Unknown()

    async def _pick(self, service: str) -> WebProcess | None:
        for _ in range(10):
            webs = [web for web in self.webs if web.service == service and not web.is_dead]
            if webs:
                return self._random.choice(webs)
            await asyncio.sleep(BACK_S)
        return None

    def _replay_meanwhile(self, invocation: Invocation, request_key: str, service: str) -> None:
        """Now and then a request reaches two web processes, when the gateway took the first one for dead."""
        webs = [web for web in self.webs if web.service == service and not web.is_dead]
        if webs and self._wire.rates and self._random.random() < REPLAY_RATE:
            self._wire.injected["gateway retry"] += 1
            replay = self._answer(self._random.choice(webs), invocation, request_key)
            spawn(_ignore(replay))

    async def _answer(self, web: WebProcess, invocation: Invocation, request_key: str) -> Outcome:
        await asyncio.sleep(self._wire.latency_s())
        if invocation.method == "GET":
            outcome = await _find(web, invocation.path)
        else:
            outcome = await _post(web, invocation, request_key)
        if self._wire.rates and self._random.random() < CUT_RATE:
            self._wire.injected["answer cut"] += 1
            raise Cut
        await asyncio.sleep(self._wire.latency_s())
        return outcome


async def _ignore(replay: Any) -> None:
    with contextlib.suppress(Cut):
        await replay


# --- HTTP: paths, commands, bodies, as the routes of the services have them -------------------------------------------


async def _find(web: WebProcess, path: str) -> Outcome:
    entity_id = path.rpartition("/")[2]
    answered, entity = await web.find(entity_id)
    match entity:
        case Item():
            return Ok({"stock": entity.available, "price": entity.price})
        case Account():
            return Ok({"user_id": entity_id, "credit": entity.credit})
        case Order():
            return Ok(_order_body(entity_id, entity))
        case _:
            return Refused(404, "there is no such entity") if answered else Unknown()


def _order_body(order_id: str, order: Order) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "paid": order.paid,
        "items": [list(line) for line in order.lines],
        "user_id": order.user_id,
        "total_cost": order.total_cost,
    }


async def _post(web: WebProcess, invocation: Invocation, request_key: str) -> Outcome:
    new_id = hashlib.blake2b(request_key.encode(), digest_size=16).hexdigest()
    entity_id, command = command_of(invocation.path, new_id)
    fingerprint = zlib.crc32(invocation.path.encode())
    asker = Asker(f"{entity_id}/{request_key}", fingerprint, "", is_client_key=invocation.key is not None)
    outcome = await web.ask(entity_id, asker, command)
    if outcome is None:
        return Unknown()
    if isinstance(outcome, Done):
        return Ok(_body(invocation.path, entity_id, outcome.value))
    status = STATUS[outcome.reason]
    return Unknown() if status >= 500 else Refused(status, outcome.detail)


def command_of(path: str, new_id: str) -> tuple[str, Message]:
    """Return the entity whose partition takes the command, and the command."""
    service, *words = path.strip("/").split("/")
    return COMMANDS[service](words, new_id)


def _stock_command(words: list[str], new_id: str) -> tuple[str, Message]:
    match words:
        case ["item", "create", price]:
            return new_id, CreateItem(new_id, int(price))
        case ["add", item_id, amount]:
            return item_id, AddStock(item_id, int(amount))
        case ["subtract", item_id, amount]:
            return item_id, SubtractStock(item_id, int(amount))
        case ["batch_init", *numbers]:
            return new_id, InitItems(*map(int, numbers))
        case _:
            raise ValueError(words)


def _payment_command(words: list[str], new_id: str) -> tuple[str, Message]:
    match words:
        case ["create_user"]:
            return new_id, CreateUser(new_id)
        case ["add_funds", user_id, amount]:
            return user_id, AddFunds(user_id, int(amount))
        case ["pay", user_id, amount]:
            return user_id, Pay(user_id, int(amount))
        case ["batch_init", *numbers]:
            return new_id, InitUsers(*map(int, numbers))
        case _:
            raise ValueError(words)


def _order_command(words: list[str], new_id: str) -> tuple[str, Message]:
    match words:
        case ["create", user_id]:
            return new_id, CreateOrder(new_id, user_id)
        case ["addItem", order_id, item_id, quantity]:
            return order_id, AddItem(order_id, item_id, int(quantity))
        case ["checkout", order_id]:
            return order_id, CheckOut(order_id)
        case ["batch_init", *numbers]:
            return new_id, InitOrders(*map(int, numbers))
        case _:
            raise ValueError(words)


COMMANDS = {"stock": _stock_command, "payment": _payment_command, "orders": _order_command}


def _body(path: str, entity_id: str, value: str) -> Any:
    match path.strip("/").split("/"):
        case ["stock", "item", "create", _]:
            return {"item_id": entity_id}
        case ["payment", "create_user"]:
            return {"user_id": entity_id}
        case ["orders", "create", _]:
            return {"order_id": entity_id}
        case ["stock", "add" | "subtract", item_id, _]:
            return f"Item: {item_id} stock updated to: {value}"
        case ["payment", "add_funds" | "pay", user_id, _]:
            return f"User: {user_id} credit updated to: {value}"
        case ["orders", "addItem", order_id, item_id, _]:
            return f"Item: {item_id} added to: {order_id}"
        case [_, "batch_init", count, *_]:
            return {"msg": f"{count} initialised"}
        case _:
            return "Checkout successful"
