"""What the clients write down: every call, when it was due, and what came of it.  All times are of time.monotonic."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from histories.model import Operation

CUT = 0
"""The status of a call that was not answered."""


class Record(msgspec.Struct, frozen=True):
    """One call.  What a client asks again has the number of the request that was due once; set-up has none."""

    operation: Operation
    status: int
    expected: tuple[int, ...]
    number: int | None = None
    due: float = 0.0
    problem: str = ""
    """Why nothing came, or what an error said."""
    retry_after_s: float | None = None
    """What the answer said of when to ask again."""

    @property
    def began(self) -> float:
        """When the call was sent."""
        return self.operation.began

    @property
    def ended(self) -> float:
        """When it was known what came of it, or that nothing will."""
        assert self.operation.ended is not None
        return self.operation.ended

    @property
    def is_definite(self) -> bool:
        """Tell whether this is a yes or a no."""
        return self.status not in (CUT, 429) and self.status < 500

    @property
    def is_wrong(self) -> bool:
        """Tell whether this yes or no is not the one that there had to be, or an error is not as api.md has it."""
        is_untold = self.status == 503 and self.retry_after_s is None
        return (self.is_definite and self.status not in self.expected) or is_untold

    @property
    def answer(self) -> str:
        """What came, in a word."""
        return "cut" if self.status == CUT else str(self.status)


def dump(records: Iterable[Record], path: Path) -> None:
    """Write a record a line, as JSON."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(records))


def load(path: Path) -> list[Record]:
    """Read what `dump` wrote."""
    return msgspec.json.Decoder(Record).decode_lines(path.read_bytes())
