"""What the commands of an audit have in common: to read, to judge, to tell, and the status to exit with."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping

import click
import structlog

from audit import source
from audit.evidence import Evidence
from audit.judge import audit
from audit.source import NOBODYS, CannotAudit
from common.config import ConfigError, Settings
from common.log import LogFailed
from common.store import StoreFailed
from common.tasks import spare_garbage_collection

CLEAN, NOT_CLEAN, CANNOT_TELL = 0, 1, 2


def run(settings: Settings, settle_s: float, redis: Mapping[str, str] = NOBODYS, *, as_json: bool) -> int:
    """Audit, print what is found, and return the status to exit with: 0 when clean, 1 when not, 2 for cannot tell.

    `redis` has the addresses of services whose Redis Cluster is not the one that the settings name.
    """
    _only_say_what_was_asked()
    try:
        evidence = asyncio.run(source.read(settings, settle_s, redis))
    except (CannotAudit, LogFailed, StoreFailed, ConfigError) as why:
        return cannot_tell(why)
    return tell(evidence, as_json=as_json)


def tell(evidence: Evidence, *, as_json: bool) -> int:
    """Print the judgement, and return the status to exit with."""
    report = audit(evidence)
    click.echo(report.json() if as_json else report.text())
    return CLEAN if report.is_clean else NOT_CLEAN


def cannot_tell(why: BaseException) -> int:
    """Print why there is no judgement, and return the status to exit with."""
    click.echo(f"Cannot audit: {why}.", err=True)
    return CANNOT_TELL


def _only_say_what_was_asked() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    spare_garbage_collection()
