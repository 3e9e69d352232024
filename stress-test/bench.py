"""`make bench`: how fast and how small, beside a naive version and a POST that does nothing, in one run."""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import REPORTS
from measuring.processes import memory_mb
from measuring.replay import Recovery, recover
from measuring.report import Report, publish
from measuring.round_trip import round_trips_ms
from measuring.runs import RATE_MAX, Run, measure, warm_up
from measuring.systems import System, naive, nothing, ours

from local.profiles import PROFILES, Profile, addresses

NAMES = ("nothing", "naive", "ours", "kafka", "replay")
USUAL = {"connections": (1, 16, 64, 128, 256), "rounds": 3, "seconds": 4}
QUICK = {"names": NAMES[:-1], "connections": (1, 128), "rounds": 1, "seconds": 3}
ORDERS_LEAST = 60_000
COOL_DOWN_S = 4
TRIPS_PER_ROUND = 170
AROUND_RUNS_S = 150
AROUND_RUN_S = 4
REPLAY_S = 300

console = Console()


@dataclass(frozen=True)
class Plan:
    """What is measured, how often and how long."""

    names: Sequence[str]
    connections: Sequence[int]
    rounds: int
    seconds: int
    profile: Profile

    @property
    def order_count(self) -> int:
        """Return how many orders a batch_init makes: enough for several runs."""
        return max(ORDERS_LEAST, self.seconds * RATE_MAX)

    @property
    def longest_s(self) -> int:
        """Return after how long something must have gone wrong."""
        runs = self.rounds * len(self.connections) * len(self.names)
        return AROUND_RUNS_S + REPLAY_S + runs * (self.seconds + AROUND_RUN_S)


def bench(plan: Plan) -> Report:
    """Run every system in turn, round after round, so that a slow minute of the machine hits all of them."""
    with ExitStack() as stack:
        systems = started(plan, stack)
        for system in systems:
            warm_up(system)
        report = Report()
        for number in range(plan.rounds):
            console.rule(f"round {number + 1} of {plan.rounds}")
            for connections in plan.connections:
                report.runs += [shown(measure(system, connections, plan.seconds)) for system in systems]
                report.round_trips_ms += kafka_round_trips(plan) if connections == min(plan.connections) else []
        time.sleep(COOL_DOWN_S)
        report.memory_mb = {system.name: memory_mb(system.groups()) for system in systems}
        report.recovery = recovered(plan, stack)
        return report


def started(plan: Plan, stack: ExitStack) -> list[System]:
    """Start what the plan names; Kafka is a part of ours."""
    found = {}
    if {"ours", "kafka"} & set(plan.names):
        found["ours"] = stack.enter_context(ours(plan.profile, plan.order_count))
    if "naive" in plan.names:
        found["naive"] = stack.enter_context(naive(plan.profile, plan.order_count))
    if "nothing" in plan.names:
        found["nothing"] = stack.enter_context(nothing(plan.profile))
    return [found[name] for name in plan.names if name in found]


def recovered(plan: Plan, stack: ExitStack) -> Recovery | None:
    """Empty Redis and wait, if the plan says so.  Last of all: the system has other orders then."""
    if "replay" not in plan.names:
        return None
    console.rule("an emptied Redis")
    return recover(stack.enter_context(ours(plan.profile, plan.order_count)), plan.profile)


def shown(run: Run) -> Run:
    """Print a line about `run` and return it."""
    faults = f"  [bold red]{run.faults}[/]" if run.faults else ""
    times = f"p50 {run.p50_ms:8.2f} ms  p99 {run.p99_ms:8.2f} ms  {run.cpu_ms_total:5.2f} CPU-ms"
    console.print(f"{run.system:8} {run.connections:4} connections {run.rate:7.0f}/s  {times}{faults}", soft_wrap=True)
    return run


def kafka_round_trips(plan: Plan) -> list[float]:
    """Return a round's share of the Kafka round trips, in ms; none if the plan does not name Kafka.

    Beside the run with the fewest connections, which they are compared with: minutes later the machine is another one.
    """
    if "kafka" not in plan.names:
        return []
    return round_trips_ms(addresses(plan.profile.kafka_ports), min(plan.profile.brokers, 3), TRIPS_PER_ROUND)


def stop_in_order(signal_number: int, _: FrameType | None) -> NoReturn:
    """Leave by an exception, so that everything that was started is stopped."""
    raise SystemExit(f"stopped by {signal.Signals(signal_number).name}: nothing was measured")


@click.command()
@click.option("--only", "names", multiple=True, type=click.Choice(NAMES), help="Measure this (repeatable).")
@click.option("--connections", multiple=True, type=click.IntRange(1, 1000), help="At this many (repeatable).")
@click.option("--seconds", type=click.IntRange(1, 600), help="Of each run.")
@click.option("--rounds", type=click.IntRange(1, 100), help="The table has the medians over them.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="small", help="Of ours.")
@click.option("--quick", is_flag=True, help="One short round at 1 and 128 connections, under a minute.")
def main(**options: Any) -> None:
    """Measure, print the tables, write reports/bench.json and reports/bench.png; exit 1 if any request went wrong."""
    plan = plan_of(**options)
    for signal_number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(signal_number, stop_in_order)
    signal.alarm(plan.longest_s)
    report = bench(plan)
    publish(report, console)
    if report.faults:
        console.print(
            f"[bold red]Not a valid bench: {report.faults}. See {REPORTS} and .local/*/logs.[/]", soft_wrap=True
        )
        raise SystemExit(1)


def plan_of(*, quick: bool, profile: str, **options: Any) -> Plan:
    """Return the plan that the options ask for; what they leave open is the whole bench or the quick one."""
    usual = QUICK if quick else USUAL
    given = {name: value for name, value in options.items() if value}
    return Plan(**{"names": NAMES, **usual, **given}, profile=PROFILES[profile])


if __name__ == "__main__":
    main()
