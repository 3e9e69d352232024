"""`python -m audit.cluster --redis order=HOST:PORT,... --redis stock=... --redis payment=...`: where each has its own.

The command of the audit's image.  Everything else is set as for the services, by CHECKOUT_*; exits as
`python -m audit` does.
"""

from __future__ import annotations

import os
import sys

import click

from audit.command import cannot_tell, run
from common.config import ConfigError, load


@click.command()
@click.option("--redis", "addresses", multiple=True, required=True, help="SERVICE=HOST:PORT,HOST:PORT,...")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--settle", default=30.0, show_default=True, help="Wait so many seconds for what is under way to end.")
def main(addresses: tuple[str, ...], *, as_json: bool, settle: float) -> None:
    """Join orders, charges and deductions one by one, and print every offender with its history."""
    redis = dict(each.split("=", 1) for each in addresses)
    try:
        settings = load({"CHECKOUT_REDIS": next(iter(redis.values())), **os.environ})
    except ConfigError as why:
        sys.exit(cannot_tell(why))
    sys.exit(run(settings, settle, redis, as_json=as_json))


if __name__ == "__main__":
    main()
