"""The commands of a service: `web`, `processor` and `setup`, of one program, so each can be killed and scaled alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import msgspec
import structlog
import uvloop

from common import config, new_rules, redelivery, telemetry
from common.decision import Machine
from common.log import (
    DeadLetterBox,
    Ends,
    LogFailed,
    Membership,
    Producer,
    Publisher,
    SnapshotTopics,
    Tail,
    inbox,
    set_up,
    wait_for_log,
)
from common.processor import Processor, World
from common.snapshot import Snapshots
from common.snapshotter import Snapshotter
from common.stand_aside import own_within_reach
from common.store import Store, StoreFailed
from common.tasks import crash_on_error, spare_garbage_collection, spawn
from common.watchdog import LoopWatch, Work

NICE = 10
"""A snapshotter takes only the time of processors that nobody else wants."""

logger = structlog.get_logger()


class _Service(msgspec.Struct, frozen=True):
    """What every command is told."""

    machine: Machine
    settings: config.Settings

    def configure_logging(self, process: str) -> None:
        """Have every line say whose it is."""
        telemetry.configure_logging(self.settings.log_level, service=self.machine.service, process=process)


def run(machine: Machine) -> None:
    """Run the command that the command line names."""
    commands = [_web, _processor, _snapshotter, _setup, _redeliver, _new_rules]
    program = click.Group(commands=commands, help=f"The {machine.service} service.")
    program(obj=_Service(machine, config.load()))


@click.command("web")
@click.pass_obj
def _web(service: _Service) -> None:
    """Serve HTTP."""
    application = f"{service.machine.service}.app:create_app()"
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", "python:common.gunicorn_conf", application])


@click.command("processor")
@click.pass_obj
def _processor(service: _Service) -> None:
    """Own partitions of the inbox: fold, publish, apply."""
    service.configure_logging("processor")
    uvloop.run(_process(service.machine, service.settings))


@click.command("snapshotter")
@click.pass_obj
def _snapshotter(service: _Service) -> None:
    """Compare what is stored with what the log makes, take snapshots, trim the log."""
    service.configure_logging("snapshotter")
    uvloop.run(_take_snapshots(service.machine, service.settings))


@click.command("setup")
@click.pass_obj
def _setup(service: _Service) -> None:
    """Create the topics; run again, it changes nothing."""
    service.configure_logging("setup")
    asyncio.run(_set_up(service.machine, service.settings))


@click.command("redeliver")
@click.argument("number", type=click.IntRange(min=0))
@click.pass_obj
def _redeliver(service: _Service, number: int) -> None:
    """Deliver a dead letter again, once the code that could not decide it is corrected."""
    try:
        click.echo(asyncio.run(redelivery.redeliver(service.machine, service.settings, number)))
    except (redelivery.CannotRedeliver, LogFailed) as why:
        raise click.ClickException(str(why)) from why


@click.command("new-rules")
@click.pass_obj
def _new_rules(service: _Service) -> None:
    """Begin the rules that this code knows, once all processors run it."""
    try:
        click.echo("\n".join(asyncio.run(new_rules.announce(service.machine, service.settings))))
    except (LogFailed, StoreFailed) as why:
        raise click.ClickException(f"{why}: run it again") from why


async def _process(machine: Machine, settings: config.Settings) -> None:
    loop_watch, told_to_stop = _begin()
    world = _world(machine, settings)
    processor = Processor(machine, settings.topology, world)
    membership = Membership(settings, machine.service, processor.assign)
    telemetry.serve(settings.bind, lambda: loop_watch.is_answering and membership.is_member and processor.is_ready)
    taking_part = spawn(_after_log(settings, lambda: own_within_reach(membership, processor, world.store)))
    spare_garbage_collection()
    await told_to_stop.wait()
    logger.info("stopping")
    await processor.stop()
    taking_part.cancel()
    await asyncio.gather(taking_part, return_exceptions=True)


async def _take_snapshots(machine: Machine, settings: config.Settings) -> None:
    os.nice(NICE)
    loop_watch, told_to_stop = _begin()
    snapshotter = Snapshotter(machine, settings.topology, _world(machine, settings), settings.snapshot_records)
    telemetry.serve(settings.bind, lambda: loop_watch.is_answering and snapshotter.is_ready)
    # Garbage is collected as Python does: clients that read a snapshot back end as cycles, with megabytes in them.
    working = spawn(_after_log(settings, snapshotter.run))
    await told_to_stop.wait()
    logger.info("stopping")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def _after_log(settings: config.Settings, work: Work) -> None:
    """Do the work as soon as the log can be reached.  Whoever waits for it can be told to stop."""
    await wait_for_log(settings)
    await work()


def _begin() -> tuple[LoopWatch, asyncio.Event]:
    """Return what watches the event loop, and what is set when the process is told to stop."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(crash_on_error)
    loop_watch = LoopWatch(loop)
    loop_watch.start()
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    return loop_watch, told_to_stop


async def _set_up(machine: Machine, settings: config.Settings) -> None:
    await wait_for_log(settings)
    await set_up(settings, machine.service)


def _world(machine: Machine, settings: config.Settings) -> World:
    producer = Producer(settings)
    ends = Ends(settings)
    return World(
        tail=lambda partition: Tail(settings, inbox(partition), ends),
        publisher=Publisher(producer),
        store=Store(settings),
        dead_letters=DeadLetterBox(settings, machine.service, producer),
        snapshots=Snapshots(SnapshotTopics(settings, producer)),
    )
