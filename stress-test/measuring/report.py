"""The report: tables on the terminal, reports/bench.json and reports/bench.png."""

import itertools
import json
import statistics
from dataclasses import asdict, dataclass, field

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from measuring import REPORTS
from measuring.replay import Recovery
from measuring.runs import Run, median_run

BUSY = 128
QUIET = 1


@dataclass
class Report:
    """What a bench measured: every run, every Kafka round trip, and memory by system and group when idle after it."""

    runs: list[Run] = field(default_factory=list)
    round_trips_ms: list[float] = field(default_factory=list)
    memory_mb: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    recovery: Recovery | None = None

    @property
    def systems(self) -> list[str]:
        """Return the names of what was measured, in the order of the runs."""
        return list(dict.fromkeys(run.system for run in self.runs))

    @property
    def connections(self) -> list[int]:
        """Return the numbers of connections, ascending."""
        return sorted({run.connections for run in self.runs})

    def median(self, system: str, connections: int) -> Run | None:
        """Return the medians over the rounds, None where nothing was measured."""
        same = [run for run in self.runs if (run.system, run.connections) == (system, connections)]
        return median_run(same) if same else None

    def medians(self, system: str) -> list[Run]:
        """Return the medians of a system, by ascending connections."""
        found = (self.median(system, connections) for connections in self.connections)
        return [run for run in found if run is not None]

    def busiest(self, system: str) -> Run:
        """Return the medians at 128 connections, else at the highest number below or above it that was measured."""
        return min(self.medians(system), key=lambda run: abs(run.connections - BUSY))

    @property
    def faults(self) -> dict[str, int]:
        """Return all that should not have happened, empty for a bench that counts."""
        names = {name for run in self.runs for name in run.faults}
        return {name: sum(run.faults.get(name, 0) for run in self.runs) for name in sorted(names)}


@dataclass(frozen=True)
class Figure:
    """One line of the table that the project promises: the value, what it must be, and what it should be."""

    name: str
    value: float
    must: float
    goal: float
    more_is_better: bool

    @property
    def verdict(self) -> str:
        """Say which of the two limits the value keeps."""
        sign = 1 if self.more_is_better else -1
        if sign * self.value >= sign * self.goal:
            return "[green]goal[/]"
        return "[yellow]must[/]" if sign * self.value >= sign * self.must else "[bold red]missed[/]"


def figures(report: Report) -> list[Figure]:
    """Return the figures that this report has the measurements for."""
    found: list[Figure] = []
    busy, quiet = report.median("ours", BUSY), report.median("ours", QUIET)
    if busy:
        found += [Figure("CPU-ms per checkout", busy.cpu_ms_total, 2.0, 1.2, more_is_better=False)]
        for other, must, goal in (("nothing", 0.30, 0.50), ("naive", 5.0, 10.0)):
            beside = report.median(other, BUSY)
            if beside:
                name = f"checkouts/s over {other}'s, {BUSY} connections"
                found += [Figure(name, busy.rate / beside.rate, must, goal, more_is_better=True)]
    if quiet and report.round_trips_ms:
        ratio = quiet.p50_ms / statistics.median(report.round_trips_ms)
        found += [Figure("p50 of one checkout over one Kafka round trip", ratio, 6, 4, more_is_better=False)]
    if "ours" in report.memory_mb:
        total = total_mb(report, "ours", "pss")
        found += [Figure("memory idle after load, MB (PSS)", total, 900, 600, more_is_better=False)]
    if report.recovery:
        name = "an emptied Redis with 100,000 entities a service is back, s"
        found += [Figure(name, report.recovery.back_s, 15, 5, more_is_better=False)]
        name = "replay without outputs over live, slowest service"
        found += [Figure(name, report.recovery.times_live, 10, 20, more_is_better=True)]
    return found


def total_mb(report: Report, system: str, kind: str) -> float:
    """Return the memory of all processes of a system: kind is `rss` or `pss`."""
    return sum(group[kind] for group in report.memory_mb[system].values())


def publish(report: Report, console: Console) -> None:
    """Print the tables and write the files."""
    for table in (speed_table(report), *process_tables(report), *recovery_tables(report), figure_table(report)):
        console.print(table)
    if report.round_trips_ms:
        median = statistics.median(report.round_trips_ms)
        console.print(f"Kafka round trip: p50 {median:.2f} ms of {len(report.round_trips_ms)}")
    REPORTS.mkdir(exist_ok=True)
    contents = asdict(report) | {"figures": [asdict(figure) for figure in figures(report)], "faults": report.faults}
    (REPORTS / "bench.json").write_text(json.dumps(contents, indent=2) + "\n")
    if report.runs:
        draw(report)
    console.print(f"Written: {REPORTS}/bench.json and bench.png", soft_wrap=True)


def speed_table(report: Report) -> Table:
    """Return requests/s, latency and processor time of each system at each number of connections."""
    table = Table(title="Medians over the rounds")
    for heading in ("system", "conns", "per s", "p50 ms", "p99 ms", "CPU-ms", "requests", "faults"):
        table.add_column(heading, justify="left" if heading in ("system", "faults") else "right")
    for system in report.systems:
        for run in report.medians(system):
            times = (f"{run.rate:.0f}", f"{run.p50_ms:.2f}", f"{run.p99_ms:.2f}", f"{run.cpu_ms_total:.2f}")
            faults = f"[bold red]{run.faults}[/]" if run.faults else "none"
            table.add_row(system, str(run.connections), *times, str(run.answers), faults)
        table.add_section()
    return table


def process_tables(report: Report) -> list[Table]:
    """Return a table of processor time and memory by group of processes for each system."""
    return [process_table(report, system) for system in report.systems]


def process_table(report: Report, system: str) -> Table:
    """Return what each group of processes of `system` uses, and the sums."""
    run, memory = report.busiest(system), report.memory_mb[system]
    table = Table(title=f"{system}, by process", show_footer=True)
    table.add_column("processes", "all")
    columns = {f"CPU-ms a request, {run.connections} conns": (run.cpu_ms_total, 3)}
    columns |= {f"{kind} MB idle": (total_mb(report, system, kind), 0) for kind in ("rss", "pss")}
    for heading, (total, digits) in columns.items():
        table.add_column(heading, f"{total:.{digits}f}", justify="right")
    for group, used in sorted(memory.items()):
        table.add_row(group, f"{run.cpu_ms.get(group, 0):.3f}", f"{used['rss']:.0f}", f"{used['pss']:.0f}")
    return table


def recovery_tables(report: Report) -> list[Table]:
    """Return what was folded again, and how soon an emptied Redis was back."""
    if report.recovery is None:
        return []
    headings = (
        "service",
        "records behind the snapshot",
        "live",
        "folded",
        "times live",
        "by its owner",
        "back after s",
    )
    table = Table(title="Replay, messages per second", show_footer=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "service" else "right")
    for each in report.recovery.services:
        rates = (f"{each.live:,.0f}", f"{each.folded:,.0f}", f"{each.times_live:.1f}", f"{each.owner:,.0f}")
        table.add_row(each.service, f"{each.records:,}", *rates, f"{each.back_s:.1f}")
    table.add_row("a checkout", *[""] * 5, f"{report.recovery.checkout_s:.1f}")
    return [table]


def figure_table(report: Report) -> Table:
    """Return the promised figures."""
    table = Table("figure", "value", "must", "goal", "keeps", title="Figures of ours")
    for figure in figures(report):
        table.add_row(figure.name, f"{figure.value:.2f}", f"{figure.must:g}", f"{figure.goal:g}", figure.verdict)
    return table


def draw(report: Report) -> None:
    """Write bench.png: rate and latency over connections, processor time and memory by process."""
    mpl.use("Agg")
    figure, ((rate, latency), (cpu, memory)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    draw_lines(rate, report, {"requests/s": "rate"})
    rate.set_title("Requests answered, medians over the rounds")
    rate.set_ylim(bottom=0)
    draw_lines(latency, report, {"p50 ms": "p50_ms", "p99 ms": "p99_ms"})
    latency.set_title("How long one took")
    latency.set_yscale("log")
    draw_stacks(cpu, {system: report.busiest(system).cpu_ms for system in report.systems}, "CPU-ms per request")
    pss = {name: {group: used["pss"] for group, used in groups.items()} for name, groups in report.memory_mb.items()}
    draw_stacks(memory, pss, "MB idle after load (PSS)")
    figure.savefig(REPORTS / "bench.png", dpi=120)
    plt.close(figure)


def draw_lines(axes: Axes, report: Report, what: dict[str, str]) -> None:
    """Draw figures of every system over the number of connections."""
    for color, system in enumerate(report.systems):
        runs = report.medians(system)
        for (label, name), style in zip(what.items(), ("o-", "^--"), strict=False):
            values = [getattr(run, name) for run in runs]
            axes.plot([run.connections for run in runs], values, style, color=f"C{color}", label=f"{system}, {label}")
    axes.set_xlabel("connections")
    axes.set_xscale("log", base=2)
    axes.set_xticks(report.connections, [str(connections) for connections in report.connections])
    axes.grid(alpha=0.3)
    axes.legend()


def draw_stacks(axes: Axes, parts: dict[str, dict[str, float]], title: str) -> None:
    """Draw a bar for each system, stacked of its groups of processes."""
    groups = sorted({group for values in parts.values() for group in values})
    bottoms = dict.fromkeys(parts, 0.0)
    for group, color in zip(groups, itertools.cycle(mpl.color_sequences["tab20"]), strict=False):
        heights = [values.get(group, 0.0) for values in parts.values()]
        axes.bar(list(parts), heights, bottom=list(bottoms.values()), label=group, color=color)
        bottoms = {name: bottoms[name] + height for name, height in zip(parts, heights, strict=True)}
    axes.set_title(title)
    axes.legend(fontsize="small")
