"""What an audit judges: the logs, the dead letters and the store of all partitions.  Plain data."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from common.fold import DeadLetters, Record
from common.messages import Topology, partitions_of


class PartitionEvidence(msgspec.Struct):
    """One partition: its log, its dead letters, and what the store has of it.

    `stored` is the whole hash but the field `position`, and was read at the same moment as `position`.  The log is
    whole, or trimmed: then `records` begin at `begins`, and `opening` is the hash that a snapshot has of this position.
    """

    records: list[Record] = []
    dead_letters: DeadLetters = {}
    position: int = 0
    stored: dict[str, bytes] = {}
    begins: int = 0
    opening: dict[str, bytes] = {}


class Evidence(msgspec.Struct):
    """All partitions by name.  The stores were read first, then the dead letters, then the logs.

    `read_ms` is the clock's time when it was read (milliseconds since 1970), from which ages are counted; 0: the time
    of the newest record.
    """

    topology: Topology
    partitions: dict[str, PartitionEvidence]
    read_ms: int = 0

    def names(self) -> list[str]:
        """Return the partitions that there are by the topology: order's first."""
        return [name for service in self.topology for name in partitions_of(service, self.topology)]

    def now_ms(self) -> int:
        """Return the time from which ages are counted."""
        return self.read_ms or max(self._times(), default=0)

    def _times(self) -> Iterable[int]:
        return (record.timestamp_ms for partition in self.partitions.values() for record in partition.records)
