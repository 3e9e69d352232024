"""A run as a picture: throughput and every request's wait over time, with the fault and the gap marked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import matplotlib as mpl
from drills.drill import Point, Result
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BIN_S = 0.5
WAIT_LEAST_S = 0.001


def draw(run: Result, path: Path) -> None:
    """Write the picture of a run."""
    mpl.use("Agg")
    figure, (rate, wait) = plt.subplots(2, 1, sharex=True, figsize=(11, 6), layout="constrained")
    figure.suptitle(f"{run.name}: {run.what}")
    draw_rate(rate, run.points)
    draw_waits(wait, run)
    for axes in (rate, wait):
        axes.axvspan(
            run.course.fault_s.began,
            max(run.course.fault_s.ended, run.course.fault_s.began + 0.05),
            color="C1",
            alpha=0.25,
        )
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_rate(axes: Axes, points: list[Point]) -> None:
    """Draw how many requests a second became due, and how many were answered."""
    draw_steps(axes, [point.due_s for point in points], "due", "0.6")
    draw_steps(axes, [point.due_s + point.wait_s for point in points if not point.failure], "answered", "C2")
    failed = [point.due_s + point.wait_s for point in points if point.failure]
    if failed:
        draw_steps(axes, failed, "failed first", "C3")
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")


def draw_steps(axes: Axes, times: list[float], label: str, color: str) -> None:
    """Draw how often something happened a second."""
    counts = Counter(int(time / BIN_S) for time in times)
    bins = range(min(counts, default=0), max(counts, default=0) + 1)
    axes.step([number * BIN_S for number in bins], [counts[number] / BIN_S for number in bins], color, label=label)


def draw_waits(axes: Axes, run: Result) -> None:
    """Draw a point a request, where it was due and as high as it waited; the longest wait is a line."""
    for failed, color, label in ((False, "C0", "a request"), (True, "C3", "failed first")):
        points = [point for point in run.points if bool(point.failure) is failed]
        waits = [max(point.wait_s, WAIT_LEAST_S) for point in points]
        axes.plot([point.due_s for point in points], waits, ".", color=color, markersize=3, label=label)
    after = [point for point in run.points if point.due_s + point.wait_s >= run.course.fault_s.began]
    longest = max(after, key=lambda point: point.wait_s, default=Point(0.0, 0.0))
    axes.hlines(
        longest.wait_s, longest.due_s, longest.due_s + longest.wait_s, "C1", label=f"gap {longest.wait_s:.2f} s"
    )
    axes.set_yscale("log")
    axes.set_ylabel("wait, s")
    axes.set_xlabel("s after the load began")
    axes.legend(loc="upper right")
