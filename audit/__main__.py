"""`python -m audit [PROFILE] [--json] [--settle SECONDS]`: exit 0 when clean, 1 when not, 2 when it cannot be told."""

from __future__ import annotations

import os
import sys

import click

from audit.command import cannot_tell, run
from common.config import PREFIX, ConfigError, Settings, load
from local.profiles import PROFILES
from local.system import System


@click.command()
@click.argument("profile", type=click.Choice(list(PROFILES)), required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--settle", default=30.0, show_default=True, help="Wait so many seconds for what is under way to end.")
def main(profile: str | None, *, as_json: bool, settle: float) -> None:
    """Join orders, charges and deductions one by one, and print every offender with its history.

    Without PROFILE the system is where CHECKOUT_* says, as for its services, else the profile small.
    """
    try:
        settings = _settings(profile)
    except ConfigError as why:
        sys.exit(cannot_tell(why))
    sys.exit(run(settings, settle, as_json=as_json))


def _settings(profile: str | None) -> Settings:
    is_set = any(name.startswith(PREFIX) for name in os.environ)
    return load() if profile is None and is_set else load(System(profile or "small").environment())


if __name__ == "__main__":
    main()
