"""The record from which on a partition is folded by new rules: written by a person, once all processors know them.

Until then code with changed rules decides as before: it can be rolled out, and back, like any other.  Behind the record
there is no way back: who does not know the rules stops in front of it.
"""

from __future__ import annotations

from common.config import Settings
from common.decision import Machine
from common.fold import Codec
from common.log import Producer, Sender, inbox
from common.messages import NewRules, Topology, encode, partitions_of
from common.processor import Store
from common.store import Store as RedisStore


async def announce(machine: Machine, settings: Settings) -> list[str]:
    """Begin the rules that this code knows in each partition of the service; return a sentence for each.

    Raise LogFailed, StoreFailed: then some partitions may have begun; run again, it does the rest.
    """
    producer, store = Producer(settings), RedisStore(settings)
    try:
        return await begin(machine, settings.topology, store, producer)
    finally:
        await store.close()
        await producer.close()


async def begin(machine: Machine, topology: Topology, store: Store, sender: Sender) -> list[str]:
    """Append the record to each partition that is folded by older rules; one that stands there already is ignored."""
    return [await _begin(name, machine, store, sender) for name in partitions_of(machine.service, topology)]


async def _begin(name: str, machine: Machine, store: Store, sender: Sender) -> str:
    _, (header,) = await store.read(name, ["header"])
    in_force = Codec(machine).header(header).rules
    if in_force >= machine.rules:
        return f"{name}: rules {in_force} are in force, nothing to do"
    offset = await sender.send(inbox(name), encode(NewRules(machine.rules)))
    return f"{name}: rules {machine.rules} hold from record {offset} on"
