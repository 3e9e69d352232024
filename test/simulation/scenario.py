"""Deployments: code with a bug that is corrected later, and code that does not know a message yet."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from random import Random
from typing import Any, get_args
from zlib import crc32

import msgspec
from simulation.log import SimulatedSender
from simulation.process import Process
from simulation.system import System

from common import redelivery
from common.decision import Arrival, Decision, Machine, State
from common.fold import Codec, DeadLetter
from common.log import Publisher
from common.messages import (
    AskPrice,
    ChargeUser,
    PriceTold,
    RefundUser,
    ReleaseStock,
    ReserveStock,
    StockReserved,
    UserCharged,
    encode,
)
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
        self._system.rebalance(self._service)

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
        record = self._system.log.records[dead.partition][dead.offset]
        envelope = Codec(self._real).record(record.value).messages[dead.index]  # type: ignore[union-attr]
        try:
            letter = redelivery.again(self._real, envelope, dead)
        except redelivery.CannotRedeliver:
            return
        self._system.injected["redelivery"] += 1
        await publisher.publish(dead.partition, [encode(letter)])


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
