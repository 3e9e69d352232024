"""I7: everything ends, and every record is applied."""

from __future__ import annotations

from collections.abc import Iterator

from audit.findings import Finding, Kind
from audit.replay import Replay
from common.batch_init import BatchInit
from order.checkout import Checkout
from order.domain import Addition

OPEN = (Checkout, Addition, BatchInit)


def still_open(replay: Replay, now_ms: int) -> Iterator[Finding]:
    """Yield what is open at the end of the log; it is named after the message that opened it."""
    for key, entity in replay.memory.items():
        if isinstance(entity, OPEN):
            message_id = key.partition(":")[2]
            age = f"for {_age_s(replay, message_id, now_ms):.1f} s"
            related = (f"Order:{entity.order_id}",) if isinstance(entity, Checkout | Addition) else ()
            detail = f"{age}: {entity}"
            yield Finding(Kind.STILL_OPEN, key, replay.name, detail, (message_id,), related)


def unapplied(replay: Replay, now_ms: int) -> Iterator[Finding]:
    """Say how far the store is behind the end of the log, and for how long."""
    records = replay.evidence.records
    if replay.evidence.position < replay.opening.position:
        detail = f"the store stands at {replay.evidence.position}, the log begins at {replay.opening.position}"
        yield Finding(Kind.UNAPPLIED, replay.name, replay.name, f"{detail}: what is stored cannot be compared")
        return
    behind = [record for record in records if record.offset >= replay.evidence.position]
    if behind:
        age_s = (now_ms - behind[0].timestamp_ms) / 1000
        detail = f"{len(behind)} records from {behind[0].offset} on, for {age_s:.1f} s"
        yield Finding(Kind.UNAPPLIED, replay.name, replay.name, detail)


def _age_s(replay: Replay, message_id: str, now_ms: int) -> float:
    """Return it; of what is older than the log, how long it has been open at least."""
    offset = int(message_id.rsplit("-", 2)[1])
    oldest_ms = replay.opening.now_ms or now_ms
    opened_ms = next((each.timestamp_ms for each in replay.evidence.records if each.offset == offset), oldest_ms)
    return (now_ms - opened_ms) / 1000
