"""Re-delivery of a dead letter, by a person, once the code that could not decide it is corrected.

An answer or an undo that raised leaves its checkout open.  The fold skips a dead letter for ever, so it comes back as a
new message, on behalf of the partition that it came from.  Re-delivered twice, it is dropped as a repeat.
"""

from __future__ import annotations

from typing import Any

import msgspec

from common.config import Settings
from common.decision import Machine
from common.fold import Codec, DeadLetter
from common.log import DeadLetterBox, Producer, Publisher
from common.messages import Batch, Letter, encode, encode_batch


class CannotRedeliver(Exception):
    """There is nothing that re-delivering would repair."""


async def redeliver(machine: Machine, settings: Settings, number: int) -> str:
    """Put the dead letter into its partition's log again, and say what was done."""
    producer = Producer(settings)
    try:
        dead = await DeadLetterBox(settings, machine.service, producer).at(number)
        if dead is None:
            raise CannotRedeliver(f"there is no dead letter {number}")
        letter = again(machine, dead)
        offset = await Publisher(producer).publish(dead.partition, [encode(letter)])
    finally:
        await producer.close()
    return f"dead letter {number} is record {offset} of {dead.partition}"


def again(machine: Machine, dead: DeadLetter) -> Letter[Any]:
    """Return the message as it is delivered once more: under its place, so a second time it is a repeat."""
    envelope = _envelope(machine, dead)
    if not isinstance(envelope, Letter):
        raise CannotRedeliver("a client's request: it was answered with 500, the client has to ask with a new key")
    if machine.excuse(envelope.message):
        raise CannotRedeliver("it was answered with a refusal, and its checkout has undone itself")
    source = f"dead-letter-{dead.partition}-{dead.offset}-{dead.index}"
    return Letter(source, 1, envelope.message, envelope.on_behalf_of or envelope.source)


def _envelope(machine: Machine, dead: DeadLetter) -> Any:
    content = Codec(machine).record(encode_batch([msgspec.Raw(dead.envelope)]))
    assert isinstance(content, Batch)
    return content.messages[0]
