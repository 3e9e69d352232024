"""`python -m local up | down | status | restart | env`."""

import dataclasses
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console

from local import status as status_now
from local.preflight import CannotStartError
from local.profiles import PROFILES
from local.system import EXCLUSIVE, System

console = Console(highlight=False)
profile_choice = click.Choice(list(PROFILES))


@click.group()
def main() -> None:
    """Run the whole system on this machine."""
    # What is not there yet is shown as a step, not as a client's complaint.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@main.command()
@click.argument("profile", type=profile_choice, default="small")
@click.option("--data-only", is_flag=True, help="Kafka and Redis, without the services.")
def up(profile: str, *, data_only: bool) -> None:
    """Start everything, and wait until a checkout has succeeded."""
    system = System(profile)
    if system.is_up():
        console.print(f"Profile {profile} is up already, at {system.gateway_url}: nothing changed.")
        return
    started = time.monotonic()
    system.up(services=not data_only, step=show_step)
    console.print(f"Profile {profile} is up after {time.monotonic() - started:.1f} s.")
    if not data_only:
        print_invitation(system)


@main.command()
@click.argument("profile", type=profile_choice, required=False)
@click.option("--wipe", is_flag=True, help="Delete the profile's data too.")
def down(profile: str | None, *, wipe: bool) -> None:
    """Stop what `up` started: the profile that is up, unless one is named."""
    names = [profile] if profile else running() or (["small"] if wipe else [])
    for name in names:
        with show_step(f"down: {name}{', data deleted' if wipe else ''}"):
            System(name).down(wipe=wipe)
    if not names:
        console.print("Nothing is up.")


@main.command()
@click.argument("profile", type=profile_choice, required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def status(profile: str | None, *, as_json: bool) -> None:
    """Show every process and every partition."""
    now = status_now.read(named_or_running(profile).profile)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(now), indent=2))
    else:
        console.print(*status_now.tables(now))


@main.command()
@click.argument("name")
@click.option("--profile", type=profile_choice)
def restart(name: str, profile: str | None) -> None:
    """Stop one process as `down` does, and start it again."""
    system = named_or_running(profile)
    if name not in system.names():
        raise click.ClickException(f"There is no {name}; there are {', '.join(system.names())}.")
    with show_step(name):
        system.restart(name)


@main.command()
@click.argument("profile", type=profile_choice, default="small")
def env(profile: str) -> None:
    """Print what a service process of the profile finds in its environment."""
    for key, value in System(profile).environment().items():
        click.echo(f"export {key}={shlex.quote(value)}")


def running() -> list[str]:
    """Return the profiles that `make down` means: never `test`."""
    return [name for name in EXCLUSIVE if System(name).supervision.is_there()]


def named_or_running(profile: str | None) -> System:
    """Return the system that is named, else the one that is up."""
    name = profile or next(iter(running()), None)
    if name is None or not System(name).supervision.is_up():
        raise click.ClickException(f"{f'Profile {name} is not' if name else 'Nothing is'} up: make up")
    return System(name)


@contextmanager
def show_step(title: str) -> Iterator[None]:
    """Show what is being done, and then how long it took."""
    started = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - started:.1f} s[/]")


def print_invitation(system: System) -> None:
    """Say where everything is, and what to try."""
    url = system.gateway_url
    click.echo(f"""
  Gateway     {url}
  Its numbers {system.stats_url}   (/metrics, /health/ready)
  The API     {url}/orders/docs   (and /stock/..., /payment/...)
  Logs, data  {system.profile.home}

  Try:
    curl -X POST {url}/stock/batch_init/100/50/5 -X POST {url}/payment/batch_init/100/1000
    curl -X POST {url}/orders/batch_init/10/100/100/5
    curl -X POST {url}/orders/checkout/0
""")


if __name__ == "__main__":
    try:
        main()
    except CannotStartError as error:
        console.print(f"[red]✗[/] {error}.", soft_wrap=True)
        sys.exit(1)
