"""A soak's report: tables on the terminal, results.json, PNGs of waits, memory and descriptors, and one page."""

from __future__ import annotations

from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import msgspec
from drills.pictures import WAIT_LEAST_S
from drills.report import template
from drills.resources import Growth, Sample
from drills.soak import Incident, Result
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.table import Table

FAULT_HEADINGS = ("fault", "times", "failed", "of these allowed", "worst gap s", "well s")
GROWTH_HEADINGS = ("process", "seen for min", "PSS MB at most", "MB/h", "descriptors at most", "descriptors/h")
MINUTE_S = 60.0


def write(result: Result, commit: str, folder: Path) -> None:
    """Write results.json, the PNGs and index.html, which has all of it in itself."""
    (folder / "results.json").write_bytes(msgspec.json.encode({"commit": commit, "soak": result}))
    draw(result, folder)
    pictures = {path.stem: b64encode(path.read_bytes()).decode() for path in sorted(folder.glob("*.png"))}
    tables = {
        "Faults": (FAULT_HEADINGS, fault_rows(result.incidents)),
        "Processes": (GROWTH_HEADINGS, [growth_row(each) for each in result.growths]),
    }
    page = template("soak.html.j2").render(result=result, commit=commit, tables=tables, pictures=pictures)
    (folder / "index.html").write_text(page)


def tables(result: Result) -> list[Table]:
    """Return what the terminal shows."""
    return [
        _table("Faults", FAULT_HEADINGS, fault_rows(result.incidents)),
        _table("Processes", GROWTH_HEADINGS, [growth_row(each) for each in result.growths]),
    ]


def fault_rows(incidents: Sequence[Incident]) -> list[tuple[str, ...]]:
    """Return a row a fault: how often, calls that failed, the worst gap, the longest time until all was well."""
    same: defaultdict[str, list[Incident]] = defaultdict(list)
    for incident in incidents:
        same[incident.fault].append(incident)
    return [_fault_row(fault, same[fault]) for fault in sorted(same)]


def _fault_row(fault: str, incidents: list[Incident]) -> tuple[str, ...]:
    failed = sum(sum(incident.failures.values()) for incident in incidents)
    forbidden = sum(sum(incident.forbidden.values()) for incident in incidents)
    wells = [incident.well_s for incident in incidents if incident.well_s is not None]
    well = f"{max(wells):.1f}" if len(wells) == len(incidents) else "never"
    gap = f"{max(incident.gap_s for incident in incidents):.2f}"
    return (fault, str(len(incidents)), str(failed), str(failed - forbidden), gap, well)


def growth_row(growth: Growth) -> tuple[str, ...]:
    """Return the row of a kind of process."""
    slopes = ["" if each is None else f"{each:+.1f}" for each in (growth.mb_per_hour, growth.descriptors_per_hour)]
    minutes, memory = f"{growth.observed_s / MINUTE_S:.0f}", f"{growth.pss_mb:.0f}"
    return (growth.kind, minutes, memory, slopes[0], str(growth.descriptors), slopes[1])


def draw(result: Result, folder: Path) -> None:
    """Write a PNG of every request's wait, and of what every process uses, with the faults marked."""
    mpl.use("Agg")
    _draw(result, folder / "waits.png", _draw_waits)
    _draw(result, folder / "memory.png", partial(_draw_use, of=_memory, label="PSS, MB"))
    _draw(result, folder / "descriptors.png", partial(_draw_use, of=_descriptors, label="file descriptors"))


def _draw(result: Result, path: Path, draw: Callable[[Axes, Result], None]) -> None:
    figure, axes = plt.subplots(figsize=(14, 5), layout="constrained")
    draw(axes, result)
    for incident in result.incidents:
        axes.axvline(incident.fault_s.began / MINUTE_S, color="C1", alpha=0.5, linewidth=0.8)
    axes.set_xlabel("minutes after the load began; a line is a fault")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_waits(axes: Axes, result: Result) -> None:
    for failed, color in ((False, "C0"), (True, "C3")):
        points = [point for point in result.points if bool(point.failure) is failed]
        waits = [max(point.wait_s, WAIT_LEAST_S) for point in points]
        axes.plot([point.due_s / MINUTE_S for point in points], waits, ".", color=color, markersize=2)
    axes.set_yscale("log")
    axes.set_ylabel("wait, s")


def _draw_use(axes: Axes, result: Result, of: Callable[[Sample], float], label: str) -> None:
    lives: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in result.samples:
        lives[sample.kind, sample.pid].append(sample)
    colors = {kind: f"C{number}" for number, kind in enumerate(dict.fromkeys(kind for kind, _ in lives))}
    for (kind, _), samples in lives.items():
        times = [sample.at / MINUTE_S for sample in samples]
        axes.plot(times, [of(sample) for sample in samples], color=colors[kind], linewidth=0.9)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.legend([Line2D([], [], color=color) for color in colors.values()], colors, loc="upper left", fontsize=8)


def _memory(sample: Sample) -> float:
    return sample.pss_mb


def _descriptors(sample: Sample) -> float:
    return sample.descriptors


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    found = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        found.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        found.add_row(*row)
    return found
