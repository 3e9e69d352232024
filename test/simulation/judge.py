"""Judges a run: the audit of the log and the store, and the checker of what the clients saw."""

from __future__ import annotations

from histories.checker import check
from histories.model import Operation
from simulation.log import dead_letters_in
from simulation.snapshots import snapshots_wrong
from simulation.system import System

from audit import Evidence, Finding, Kind, PartitionEvidence, audit
from common.messages import partitions_of


def judge(system: System, history: list[Operation]) -> list[str]:
    """Return what is wrong, a sentence each."""
    findings = audit(evidence(system), machines=system.machines.values()).findings
    if system.lost:
        return [_sentence(finding) for finding in findings if _counts_after_loss(system, finding)]
    violations = [str(violation) for violation in check(history)]
    halts = [f"I6: {halt}, and nothing is wrong with what is stored" for halt in system.halts]
    return [*map(_sentence, findings), *violations, *halts, *snapshots_wrong(system)]


def evidence(system: System) -> Evidence:
    """Return what the audit judges: it asks for everything at the end, when nothing moves."""
    partitions = {
        partition: _partition(system, service, partition)
        for service in system.topology
        for partition in partitions_of(service, system.topology)
    }
    return Evidence(system.topology, partitions)


def _partition(system: System, service: str, partition: str) -> PartitionEvidence:
    primary = system.cluster.current(partition)
    return PartitionEvidence(
        records=system.log.records[partition],
        dead_letters=dead_letters_in(system.log.records[f"{service}-dead-letters"], partition),
        position=primary.positions.get(partition, 0),
        stored=primary.hashes.get(partition, {}),
    )


def _counts_after_loss(system: System, finding: Finding) -> bool:
    """When Kafka has lost acknowledged records one promise is left: who has folded one halts where it stands."""
    if finding.invariant != "I6" or finding.kind is Kind.DEAD_LETTER_WITHOUT_MESSAGE:
        return False
    lost = system.lost.get(finding.partition)
    position, _ = system.cluster.current(finding.partition).read(finding.partition, [])
    return lost is None or position - 1 not in lost


def _sentence(finding: Finding) -> str:
    return f"{finding.invariant}: {finding.kind}: {finding.entity} in {finding.partition}: {finding.detail}"
