"""`make simulate` and `make planted`: seeds by the thousand, one seed with its trace, and every planted bug."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simulation.many import CHUNK, found, verdicts
from simulation.plants import PLANTS, Plant
from simulation.run import Verdict, simulate

console = Console()


# --- commands --------------------------------------------------------------------------------------------------------


@click.group()
def main() -> None:
    """The whole system in one thread, from one seed."""


@main.command()
@click.option("--seeds", default=2_000, show_default=True, help="How many.")
@click.option("--first", default=0, show_default=True, help="The first one.")
@click.option("--seed", type=int, help="This one alone, with its trace.")
def run(seeds: int, first: int, seed: int | None) -> None:
    """Simulate; exit 1 when anything is wrong."""
    bad = _trace(seed) if seed is not None else _simulate_all(range(first, first + seeds))
    sys.exit(bool(bad))


@main.command()
@click.option("--write", type=click.Path(path_type=Path), help="Put the table into this page, between its marks.")
def planted(write: Path | None) -> None:
    """Plant every bug, one after the other, and count the seeds until it is found; exit 1 when one is not."""
    results = []
    for plant, result in found(list(PLANTS.values())):
        console.print(f"{plant.name}: {_in_words(result)}", highlight=False, soft_wrap=True)
        results.append((plant, result))
    if write:
        _write(write, results)
    sys.exit(any(result is None for _, result in results))


def _trace(seed: int) -> list[str]:
    verdict = simulate(seed, traces=True)
    for line in (*verdict.trace, "", *map(str, verdict.history)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    _print_violations(verdict)
    console.print(f"seed {seed}: {len(verdict.violations)} violations")
    return verdict.violations


def _simulate_all(seeds: range) -> int:
    injected: Counter[str] = Counter()
    bad = 0
    chunks = -(-len(seeds) // CHUNK)
    for chunk in track(verdicts(seeds), total=chunks, console=console, description="seeds"):
        for verdict in chunk:
            injected += verdict.injected
            bad += bool(verdict.violations)
            _print_violations(verdict)
    table = Table("injected", "times", title=f"{len(seeds)} seeds, {bad} with violations", title_justify="left")
    for name, times in sorted(injected.items()):
        table.add_row(name, f"{times:,}")
    console.print(table)
    return bad


def _print_violations(verdict: Verdict) -> None:
    for violation in verdict.violations:
        console.print(f"seed {verdict.seed}: {violation}", markup=False, highlight=False, soft_wrap=True)


def _in_words(result: tuple[int, str] | None) -> str:
    return "NOT FOUND" if result is None else f"found after {result[0]} seeds: {result[1].splitlines()[0][:160]}"


def _write(page: Path, results: list[tuple[Plant, tuple[int, str] | None]]) -> None:
    rows = [f"| {plant.name} | {plant.origin} | {result[0] if result else 'not found'} |" for plant, result in results]
    table = "\n".join(["| bug | thought of by | seeds until found |", "|---|---|---|", *rows])
    before, mark, rest = page.read_text().partition("<!-- planted: `make planted` writes this -->\n")
    _, end, after = rest.partition("<!-- end of planted -->")
    if not mark or not end:
        raise click.ClickException(f"{page} has no place for the table")
    page.write_text(f"{before}{mark}{table}\n{end}{after}")


if __name__ == "__main__":
    main()
