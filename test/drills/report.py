"""The report: a table on the terminal, results.json, a PNG for each run that is shown, and one page with all of it."""

from __future__ import annotations

import statistics
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from drills.drill import Plan, Result
from drills.pictures import draw
from drills.series import Series
from jinja2 import Environment, FileSystemLoader, Template, select_autoescape
from rich.table import Table

NUMBERS = ("runs", "failed", "gap s", "worst", "before", "well s", "wrong")
HEADINGS = ("fault", "required", *NUMBERS, "audit", "missed")
MISSED_SHOWN = 3
"""Of each fault; the worst run is always shown."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one fault.  What does not fit together is counted by series, the rest by run."""

    fault: str
    what: str
    required: str
    series: list[Series]

    @property
    def runs(self) -> list[Result]:
        """Those of all series."""
        return [run for series in self.series for run in series.runs]

    @property
    def failed(self) -> int:
        """How many calls failed, whether that is allowed or not."""
        return sum(sum(run.outcome.measured.failures.values()) for run in self.runs)

    @property
    def gap_s(self) -> float:
        """The median."""
        return statistics.median(run.outcome.measured.gap_s for run in self.runs)

    @property
    def worst(self) -> Result:
        """The run with the longest gap."""
        return max(self.runs, key=lambda run: run.outcome.measured.gap_s)

    @property
    def before_s(self) -> float:
        """The longest wait before any fault: what the machine alone costs."""
        return max(run.outcome.measured.before.longest_s for run in self.runs)

    @property
    def well_s(self) -> float | None:
        """The longest time until the system was well; None if it once never was."""
        times = [run.outcome.well_s for run in self.runs]
        return None if None in times else max(time for time in times if time is not None)

    @property
    def wrong(self) -> str:
        """How many answers cannot be explained, and how many took too long to tell, if any did."""
        undecided = sum(len(series.explained.undecided) for series in self.series)
        violations = sum(len(series.explained.violations) for series in self.series)
        return f"{violations}, {undecided} undecided" if undecided else str(violations)

    @property
    def unclean(self) -> int:
        """How many audits found something, or could not tell."""
        return sum(not series.audit.is_clean for series in self.series)

    @property
    def missed(self) -> list[Result]:
        """The runs that were not as required."""
        return [run for run in self.runs if run.missed]

    @property
    def is_as_required(self) -> bool:
        """Tell whether nothing is missed by any run or series."""
        return all(series.is_as_required for series in self.series)

    @property
    def answers(self) -> dict[str, int]:
        """What was answered how often, over all runs."""
        return dict(sorted(sum((Counter(run.outcome.measured.answers) for run in self.runs), Counter()).items()))

    @property
    def shown(self) -> list[Result]:
        """The runs that people look at."""
        return [self.worst, *(run for run in self.missed if run is not self.worst)][: MISSED_SHOWN + 1]

    def cells(self) -> tuple[str, ...]:
        """Return what stands below HEADINGS: what is required second, what was missed last."""
        audits = "clean" if not self.unclean else f"{self.unclean} of {len(self.series)} not clean"
        numbers = (len(self.runs), self.failed, f"{self.gap_s:.2f}", f"{self.worst.outcome.measured.gap_s:.2f}")
        times = (f"{self.before_s:.2f}", "never" if self.well_s is None else f"{self.well_s:.1f}")
        return (self.fault, self.required, *map(str, numbers), *times, self.wrong, audits, self.verdict)

    @property
    def verdict(self) -> str:
        """Say how many runs missed what, and in how many series what does not fit together; nothing if all is well."""
        runs = counted([run.missed for run in self.runs], "runs")
        series = counted([series.inconsistencies for series in self.series], "series")
        return "; ".join(filter(None, (runs, series)))


def counted(missed: Sequence[list[str]], noun: str) -> str:
    """Return how many of all missed something, and what; nothing if none did."""
    bad = [phrases for phrases in missed if phrases]
    phrases = sorted({phrase for each in bad for phrase in each})
    return f"{len(bad)} of {len(missed)} {noun}: {'; '.join(phrases[:MISSED_SHOWN])}" if bad else ""


@dataclass(frozen=True)
class Report:
    """Everything that was drilled."""

    series: list[Series]
    plan: Plan
    profile: str
    commit: str
    broken_off: int = 0
    """Drills without a result: what they ended with stands on the terminal."""

    @property
    def rows(self) -> list[Row]:
        """A row a fault, in the order in which they were drilled."""
        same: defaultdict[str, list[Series]] = defaultdict(list)
        for series in self.series:
            same[series.runs[0].fault].append(series)
        return [_row(series) for series in same.values()]

    def write(self, folder: Path) -> None:
        """Write results.json, the PNGs and index.html, which has all of it in itself."""
        content = {"profile": self.profile, "commit": self.commit, "plan": self.plan, "series": self.series}
        (folder / "results.json").write_bytes(msgspec.json.encode(content))
        shown = [run for row in self.rows for run in row.shown]
        for run in shown:
            draw(run, folder / f"{run.name}.png")
        pictures = {run.name: b64encode((folder / f"{run.name}.png").read_bytes()).decode() for run in shown}
        (folder / "index.html").write_text(self.page(pictures))

    def page(self, pictures: dict[str, str]) -> str:
        """Return the page; `pictures` are PNGs in base64, by the name of their run."""
        return template("page.html.j2").render(report=self, headings=HEADINGS, pictures=pictures)


def _row(series: list[Series]) -> Row:
    first = series[0].runs[0]
    return Row(fault=first.fault, what=first.what, required=first.required, series=series)


def template(name: str) -> Template:
    """Return a page to be filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def table(report: Report) -> Table:
    """Return what the terminal shows: what is required, and what was missed how, stands in the page."""
    found = Table(title=f"Drills, profile {report.profile}, seed {report.plan.seed}", title_justify="left")
    for heading in ("fault", *NUMBERS, "audit", "missed"):
        found.add_column(heading, justify="right" if heading in NUMBERS else "left", no_wrap=True)
    for row in report.rows:
        name, _, *cells, _ = row.cells()
        found.add_row(name, *cells, str(len(row.missed)), style=None if row.is_as_required else "red")
    return found
