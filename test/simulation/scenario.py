"""Deployments: code with a bug that is corrected later, code that does not know a message yet, rules that change."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable
from random import Random
from typing import Any, get_args
from zlib import crc32

import msgspec
from simulation.log import SimulatedSender
from simulation.process import Process
from simulation.store import SimulatedStore
from simulation.system import ProcessorProcess, System

from common import new_rules, redelivery
from common.decision import Arrival, Decision, Machine, Reply, State
from common.fold import DeadLetter
from common.log import LogFailed, Publisher
from common.messages import (
    AskPrice,
    ChargeRefused,
    ChargeUser,
    PriceTold,
    RefundUser,
    Refused,
    ReleaseStock,
    ReserveStock,
    StockRefused,
    StockReserved,
    UserCharged,
    encode,
)
from common.store import StoreFailed
from order.domain import AddItem, CheckOut
from payment.domain import AddFunds, Pay
from stock.domain import AddStock, SubtractStock

FAULTY: dict[str, tuple[type, ...]] = {
    "order": (AddItem, CheckOut, StockReserved, UserCharged, PriceTold),
    "stock": (AddStock, ReserveStock, AskPrice, ReleaseStock),
    "payment": (Pay, ChargeUser, RefundUser),
}
UNKNOWN: dict[str, tuple[type, ...]] = {
    "order": (AddItem, CheckOut),
    "stock": (SubtractStock, ReserveStock),
    "payment": (AddFunds, ChargeUser),
}
NEW_RULES = 2
ROLL_OUT_S = 3.0
EARLY_SHARE = 0.5
AGAIN_S = 0.2


class Upgrade:
    """A service whose processors run other code at first; `deploy` brings the real one."""

    def __init__(self, system: System, random: Random) -> None:
        self._system = system
        self._service = random.choice(list(system.topology))
        self._real = system.machines[self._service]

    def begin(self, change: Callable[[Machine], Machine]) -> None:
        """Start with the changed machine."""
        self._system.processor_machines[self._service] = change(self._real)

    def deploy(self) -> None:
        """Stop every old processor, wait until nothing of theirs is on its way, start new ones (decision 12)."""
        self._system.note(f"deploy: {self._service}")
        self._system.processor_machines[self._service] = self._real
        for process in [process for process in self._system.processors if process.service == self._service]:
            self._system.kill(process, loses_buffers=True)
            self._system.start_processor(self._service)
        self._replace_snapshotters()
        self._system.rebalance(self._service)

    def _replace_snapshotters(self) -> None:
        """Have the new code compare: the old one may not know what is to come."""
        for snapshotter in [each for each in self._system.snapshotters if each.service == self._service]:
            self._system.kill(snapshotter)
        self._system.start_snapshotter(self._service)

    async def finish(self) -> None:
        """Do what is left for a person to do, once the real code runs."""
        await self.redeliver()

    async def redeliver(self) -> None:
        """Do what a person does: put the dead letters that keep a saga open into the log again."""
        if self._system.lost:
            return
        operator_ = Process("operator")
        publisher = Publisher(SimulatedSender(self._system.log, self._system.wire, operator_))
        first: set[tuple[str, int, int]] = set()
        for record in self._system.log.records[f"{self._service}-dead-letters"]:
            dead = msgspec.msgpack.decode(record.value, type=DeadLetter)
            place = (dead.partition, dead.offset, dead.index)
            if place not in first:
                first.add(place)
                await self._redeliver(publisher, dead)

    async def _redeliver(self, publisher: Publisher, dead: DeadLetter) -> None:
        try:
            letter = redelivery.again(self._real, dead)
        except redelivery.CannotRedeliver:
            return
        self._system.injected["redelivery"] += 1
        await publisher.publish(dead.partition, [encode(letter)])


class RulesUpgrade(Upgrade):
    """A service whose rules change.  Processors are replaced one after the other, then a person begins the new rules.

    Now and then too early: then the old processors have to wait.
    """

    def __init__(self, system: System, random: Random) -> None:
        super().__init__(system, random)
        self._random = random
        self._next = reworded(self._real)
        system.machines[self._service] = self._next
        self._operator = Process("operator")

    def deploy(self) -> None:
        """Replace every processor in its own time, none waits for the others."""
        self._system.processor_machines[self._service] = self._next
        self._replace_snapshotters()
        loop = asyncio.get_running_loop()
        for process in [process for process in self._system.processors if process.service == self._service]:
            loop.call_later(self._random.uniform(0.0, ROLL_OUT_S), self._replace, process)
        begin_s = 0.0 if self._random.random() < EARLY_SHARE else ROLL_OUT_S
        loop.call_later(begin_s, lambda: self._operator.start(self.finish()))

    async def finish(self) -> None:
        """Run the command until it works; then it has nothing to do any more."""
        sender = SimulatedSender(self._system.log, self._system.wire, self._operator)
        store = SimulatedStore(self._system.cluster, self._system.wire, self._operator)
        while True:
            try:
                self._system.note(str(await new_rules.begin(self._next, self._system.topology, store, sender)))
            except (LogFailed, StoreFailed):
                await asyncio.sleep(AGAIN_S)
            else:
                return

    def _replace(self, process: ProcessorProcess) -> None:
        self._system.note(f"replace: {process.name}")
        if not process.is_dead:
            self._system.kill(process)
            self._system.start_processor(self._service)
            self._system.rebalance(self._service)


def reworded(machine: Machine) -> Machine:
    """Return the next code, whose rules word every refusal otherwise."""

    def decide(state: State, message: Any, arrival: Arrival) -> Decision:
        decision = machine.decide(state, message, arrival)
        if arrival.rules < NEW_RULES:
            return decision
        return msgspec.structs.replace(decision, messages=tuple(map(_otherwise, decision.messages)))

    return msgspec.structs.replace(machine, decide=decide, rules=2)


def _otherwise(message: Any) -> Any:
    match message:
        case Refused():
            return Refused(message.reason, f"{message.detail}, sorry")
        case Reply(outcome=Refused() as refusal):
            return Reply(message.asker, _otherwise(refusal))
        case StockRefused() | ChargeRefused():
            return type(message)(message.checkout_id, _otherwise(message.refusal))
        case _:
            return message


def faulty(random: Random) -> Callable[[Machine], Machine]:
    """Return code with a bug: it raises on half of the messages of one kind."""

    def change(machine: Machine) -> Machine:
        kind = random.choice(FAULTY[machine.service])

        def decide(state: State, message: Any, arrival: Arrival) -> Decision:
            if isinstance(message, kind) and crc32(encode(message)) % 2:
                raise ZeroDivisionError(f"planted: {kind.__name__}")
            return machine.decide(state, message, arrival)

        return msgspec.structs.replace(machine, decide=decide)

    return change


def ignorant(random: Random) -> Callable[[Machine], Machine]:
    """Return code of before one kind of message was invented."""

    def change(machine: Machine) -> Machine:
        unknown = random.choice(UNKNOWN[machine.service])
        known = [kind for kind in get_args(machine.message_type) if kind is not unknown]
        return msgspec.structs.replace(machine, message_type=functools.reduce(operator.or_, known))

    return change
