"""What an audit says: every offender with its history, and how much was looked at."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from io import StringIO

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from audit.findings import Finding

WIDTH = 160


class Counts(msgspec.Struct, frozen=True):
    """How much was audited.  `orders` are those that there are now; paid, failed and open count checkouts."""

    partitions: int
    records: int
    messages: int
    dead_letters: int
    orders: int
    paid: int
    failed: int
    open: int
    charges: int
    deductions: int


class Trimmed(msgspec.Struct, frozen=True):
    """What an audit cannot join because records were deleted.

    `begins` has the first record that there is, by partition.  `orders_paid_before` were paid before that: the charges
    and deductions of theirs are in the snapshots' amounts.  `checkouts_in_part` began before that in one partition or
    another: what of each is there is joined, and what is not is taken as the snapshots have it.
    """

    begins: dict[str, int]
    orders_paid_before: int
    checkouts_in_part: int


class Report(msgspec.Struct, frozen=True):
    """An audit's result."""

    findings: tuple[Finding, ...]
    counts: Counts
    trimmed: Trimmed | None = None

    @property
    def is_clean(self) -> bool:
        """Say whether there is no offender."""
        return not self.findings

    def json(self) -> str:
        """Return all of it as JSON: {"is_clean", "counts", "trimmed", "findings": [{"invariant", "kind", ...}]}."""
        findings = [{"invariant": finding.invariant, **msgspec.to_builtins(finding)} for finding in self.findings]
        content = {"is_clean": self.is_clean, "counts": self.counts, "trimmed": self.trimmed, "findings": findings}
        return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()

    def text(self) -> str:
        """Return what a person reads."""
        output = StringIO()
        console = Console(file=output, width=WIDTH, highlight=False)
        for finding in self.findings:
            console.print(_tree(finding))
        console.print(self._table())
        if self.trimmed is not None:
            console.print(escape(_limits(self.trimmed)))
        console.print(self._verdict())
        return output.getvalue()

    def _table(self) -> Table:
        table = Table("looked at", title="Audit", title_justify="left")
        table.add_column("", justify="right")
        for name, count in msgspec.structs.asdict(self.counts).items():
            table.add_row(name.replace("_", " "), f"{count:,}")
        return table

    def _verdict(self) -> str:
        if self.is_clean:
            return "Clean."
        kinds = Counter(f"{finding.invariant} {finding.kind}" for finding in self.findings)
        lines = [f"  {count} x {kind}" for kind, count in sorted(kinds.items())]
        return escape("\n".join([f"Not clean: {len(self.findings)} found.", *lines]))


def _limits(trimmed: Trimmed) -> str:
    begins = ", ".join(f"{name} at {position:,}" for name, position in trimmed.begins.items())
    return (
        f"Trimmed logs begin with a snapshot, which is believed: {begins}.\n"
        f"Not joined: {trimmed.orders_paid_before:,} orders that were paid before; "
        f"in part: {trimmed.checkouts_in_part:,} checkouts that began before."
    )


def _tree(finding: Finding) -> Tree:
    tree = Tree(escape(f"{finding.invariant}: {finding.kind}: {finding.entity}, in {finding.partition}"))
    tree.add(escape(finding.detail))
    if finding.left_out:
        tree.add(f"... {finding.left_out} older messages left out")
    for event in finding.history:
        mark = "*" if event.message_id in finding.messages else " "
        branch = tree.add(escape(f"{mark} {event.message_id} {_time(event.time_ms)} {event.said}"))
        for change in event.changed:
            branch.add(escape(change))
    return tree


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
