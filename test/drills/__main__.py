"""`make drills`, `make soak`: faults under load; exit 1 when anything is not as required."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from drills import soak, soak_report
from drills.cluster import Cluster
from drills.drill import Plan, Result
from drills.faults import FAULTS, chosen
from drills.ground import Ground, ground
from drills.kubernetes import on_kubernetes
from drills.overload import judged, lines, missed, overload
from drills.records import Record
from drills.relays import RelayedSystem
from drills.report import Report, table
from drills.series import Batch, BrokenOff, Series, batches, series
from drills.well import time_until_well
from histories.model import dump
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.profiles import PROFILES, REPOSITORY
from local.system import System

VIOLATIONS_SHOWN = 5
RELAYED = "net"
"""The profile in which relays are between everybody and Kafka and Redis."""
KUBERNETES = "k8s"
"""Instead of a profile: the cluster of the current kubectl context."""

console = Console(highlight=False)


@click.group()
def main() -> None:
    """Lose processes, nodes and brokers under load, and see what clients are told."""
    # What is dead is not a client's complaint.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@main.command()
@click.option("--fault", "name", default="", help="This one, or all whose names begin so; all of them without it.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Of each fault.")
@click.option("--together", type=click.IntRange(1), default=10, show_default=True, help="Runs of a fault a load.")
@click.option("--seconds", default=10.0, show_default=True, help="Of a load, at least; until all is well.")
@click.option("--rate", default=80.0, show_default=True, help="Requests a second.")
@click.option("--seed", default=1, show_default=True, help="Who is hit, and who asks for what.")
@click.option(
    "--profile", type=click.Choice([*PROFILES, KUBERNETES]), default="ha", show_default=True, help="Without relays."
)
def run(name: str, profile: str, runs: int, together: int, **plan: float) -> None:
    """Drill, and write reports/drills/<date>-<seed>/index.html."""
    faults = on_kubernetes(name) if profile == KUBERNETES else chosen(name)
    if not faults:
        raise click.ClickException(f"No fault is named {name}: python -m drills list")
    how = Plan(rate=plan["rate"], seconds=plan["seconds"], seed=int(plan["seed"]))
    folder = new_folder("drills", how.seed)
    todo = batches(faults, runs, together)
    parts = {
        profile: [batch for batch in todo if not batch.fault.needs_relays],
        RELAYED: [batch for batch in todo if batch.fault.needs_relays],
    }
    found = [each for name, part in parts.items() if part for each in on(name, part, how, folder)]
    broken_off = len(faults) * runs - sum(len(each.runs) for each in found)
    names = ", ".join(name for name, part in parts.items() if part)
    report = Report(found, how, names, commit(), broken_off)
    report.write(folder)
    console.print(table(report))
    console.print(f"Written: {folder}/index.html", soft_wrap=True)
    sys.exit(bool(broken_off) or not all(each.is_as_required for each in found))


@main.command(name="overload")
@click.option("--factor", default=5.0, show_default=True, help="Times the capacity, which is measured first.")
@click.option("--seconds", default=60.0, show_default=True, help="Of overload.")
@click.option("--seed", default=1, show_default=True, help="Who asks for what.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ha", show_default=True)
def overload_(profile: str, factor: float, seconds: float, seed: int) -> None:
    """Ask for many times more than the system can do."""
    with ground(System(profile)) as where:
        load = overload(where.system, factor, seconds, seed)
    verdict = judged(load)
    if verdict.violations:
        dump(load.operations, new_folder("overload", seed) / "history.jsonl")
    phrases = missed(verdict)
    for text in (*lines(verdict), *verdict.violations[:VIOLATIONS_SHOWN]):
        console.print(text, soft_wrap=True)
    console.print(f"[bold red]{escape('; '.join(phrases))}[/]" if phrases else "[green]as required[/]", soft_wrap=True)
    sys.exit(bool(phrases))


@main.command(name="soak")
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--rate", default=80.0, show_default=True, help="Requests a second.")
@click.option("--seed", default=1, show_default=True, help="Which faults, who is hit, and who asks for what.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ha", show_default=True)
def soak_(profile: str, **plan: float) -> None:
    """Load for long, a single fault every now and then; write reports/soak/<date>-<seed>/index.html."""
    how = soak.Plan(minutes=plan["minutes"], rate=plan["rate"], seed=int(plan["seed"]))
    folder = new_folder("soak", how.seed)
    with ground(System(profile)) as where:
        result = soak.soak(where.system, how, folder, console.print)
        if result.missed:
            shutil.copytree(where.system.profile.logs, folder / "logs")
        if not result.audit.is_clean:
            where.after_offence(folder / "system")
    soak_report.write(result, commit(), folder)
    console.print(*soak_report.tables(result))
    console.print("Not as required: " + escape("; ".join(result.missed)) if result.missed else "As required.")
    console.print(f"{result.requests} requests.  Written: {folder}/index.html", soft_wrap=True)
    sys.exit(bool(result.missed))


@main.command(name="list")
def list_() -> None:
    """Show the faults, and what is required of each."""
    rows = Table("fault", "what", "required")
    for fault in (*FAULTS, *on_kubernetes("")):
        rows.add_row(fault.name, fault.what, str(fault.requirement))
    console.print(rows)


def on(profile: str, todo: list[Batch], how: Plan, folder: Path) -> list[Series]:
    """Drill on a profile's system; what is done to its network needs relays."""
    if profile == KUBERNETES:
        return list(drills(Ground(Cluster(), is_ours=False), todo, how, folder))
    with ExitStack() as stack:
        system = stack.enter_context(relayed()) if profile == RELAYED else System(profile)
        return list(drills(stack.enter_context(ground(system)), todo, how, folder))


@contextmanager
def relayed() -> Iterator[System]:
    """Yield the system whose network can be cut."""
    system = RelayedSystem(RELAYED)
    with system.relayed():
        yield system


def drills(where: Ground, todo: list[Batch], how: Plan, folder: Path) -> Iterator[Series]:
    """Drill one series after the other, each when the system is well again."""
    if not where.is_ours:
        console.print(
            "There are data of before: every audit reads them too.  make down PROFILE=... WIPE=1 deletes them."
        )
    pending, done = deque(todo), 0
    with progress() as bar:
        task = bar.add_task("", total=sum(len(batch.numbers) for batch in todo), step="")
        while pending:
            batch = pending.popleft()
            say = partial(show, bar, batch, done)
            say(batch.numbers[0], "well?")
            time_until_well(where.system)
            try:
                found, records = series(where.system, batch, how, say)
            except BrokenOff as why:
                # One of hundreds, and the others are still to be seen.
                bar.console.print_exception()
                begun = max(why.begun, 1)
            else:
                begun = found.begun
                for text in lines_of(found):
                    bar.console.print(text, soft_wrap=True)
                keep(found, records, folder, where)
                yield found
            done += begun
            if len(batch.numbers) > begun:
                pending.appendleft(batch.after(begun))
            bar.update(task, completed=done, step="")


def show(bar: Progress, batch: Batch, done: int, number: int, step: str) -> None:
    """Show which run it is, and what is done; so many runs were done with before this batch."""
    (task,) = bar.task_ids
    completed = done + batch.numbers.index(number)
    bar.update(task, description=f"{batch.fault.name} {number}", completed=completed, step=step)


def keep(found: Series, records: list[Record], folder: Path, where: Ground) -> None:
    """Keep what is to be looked into: the calls of a series that was not as required, all data if the audit objects."""
    if not found.is_as_required:
        dump((record.operation for record in records), folder / f"{found.name}.history.jsonl")
    if found.audit.is_clean:
        where.after_audit(found.audit.counts["messages"])
    else:
        where.after_offence(folder / f"{found.name}.system")


def lines_of(found: Series) -> list[str]:
    """Return a line a run, and one for all of them together."""
    verdict = in_color(found.inconsistencies, "consistent")
    together = f"{found.name:28} {len(found.runs)} runs in {found.seconds:.0f} s: {verdict}"
    return [*map(line, found.runs), together, *([escape(found.broke_off)] if found.broke_off else [])]


def line(result: Result) -> str:
    """Return a run in a line."""
    measured = result.outcome.measured
    numbers = f"gap {measured.gap_s:5.2f} s, longest before {measured.before.longest_s:.2f} s"
    return (
        f"{result.name:28} {numbers}, load {result.course.load_average:4.1f}: {in_color(result.missed, 'as required')}"
    )


def in_color(missed: list[str], good: str) -> str:
    """Return what is not as required in red, or that all is well."""
    return f"[bold red]{escape('; '.join(missed))}[/]" if missed else f"[green]{good}[/]"


def new_folder(kind: str, seed: int) -> Path:
    """Return where a report goes."""
    folder = REPOSITORY / "reports" / kind / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-{seed}"
    folder.mkdir(parents=True)
    return folder


def commit() -> str:
    """Return what is drilled, as git names it."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()


def progress() -> Progress:
    """Return a bar."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[step]}"), console=console)


if __name__ == "__main__":
    main()
