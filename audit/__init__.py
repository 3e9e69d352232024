"""The audit: joins orders, charges and deductions one by one, from the log and from the store.

    report = audit(evidence)
    assert report.is_clean, report.text()

Pure, except for audit.source and the commands, which read a running system.  Nothing but tests imports it.
"""

from audit.evidence import Evidence, PartitionEvidence
from audit.findings import Event, Finding, Kind
from audit.judge import MACHINES, audit
from audit.report import Counts, Report

__all__ = ["MACHINES", "Counts", "Event", "Evidence", "Finding", "Kind", "PartitionEvidence", "Report", "audit"]
