"""`python -m audit [PROFILE] [--json] [--settle SECONDS]`: exit 0 when clean, 1 when not, 2 when it cannot be told."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import click
import structlog

from audit import source
from audit.evidence import Evidence
from audit.judge import audit
from audit.source import CannotAudit
from common.config import PREFIX, ConfigError, Settings, load
from common.log import LogFailed
from common.store import StoreFailed
from common.tasks import spare_garbage_collection
from local.profiles import PROFILES
from local.system import System

CLEAN, NOT_CLEAN, CANNOT_TELL = 0, 1, 2


@click.command()
@click.argument("profile", type=click.Choice(list(PROFILES)), required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--settle", default=30.0, show_default=True, help="Wait so many seconds for what is under way to end.")
def main(profile: str | None, *, as_json: bool, settle: float) -> None:
    """Join orders, charges and deductions one by one, and print every offender with its history.

    Without PROFILE the system is where CHECKOUT_* says, as for its services, else the profile small.
    """
    _only_say_what_was_asked()
    try:
        evidence = asyncio.run(source.read(_settings(profile), settle))
    except (CannotAudit, LogFailed, StoreFailed, ConfigError) as why:
        click.echo(f"Cannot audit: {why}.", err=True)
        sys.exit(CANNOT_TELL)
    sys.exit(tell(evidence, as_json=as_json))


def tell(evidence: Evidence, *, as_json: bool) -> int:
    """Print the judgement, and return the status to exit with."""
    report = audit(evidence)
    click.echo(report.json() if as_json else report.text())
    return CLEAN if report.is_clean else NOT_CLEAN


def _settings(profile: str | None) -> Settings:
    is_set = any(name.startswith(PREFIX) for name in os.environ)
    return load() if profile is None and is_set else load(System(profile or "small").environment())


def _only_say_what_was_asked() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    spare_garbage_collection()


if __name__ == "__main__":
    main()
