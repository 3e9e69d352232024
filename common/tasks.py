"""Background tasks whose failure is never lost: it reaches the event loop's exception handler."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Coroutine
from typing import Any

import structlog

CRASHED = 70
"""Exit status of a process that found a bug in itself: whoever supervises it starts it again."""

logger = structlog.get_logger()


def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return a task; what it raises goes to the loop's exception handler, at once."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_report)
    return task


def spare_garbage_collection() -> None:
    """Look for cycles rarely, and never among what the start has made: requests and messages make none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def crash_on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle the loop's exceptions by ending the process: memory that a bug went through is not to be trusted."""
    error = context.get("exception")
    if isinstance(error, OSError) and _is_left_over(context):
        logger.warning("nobody waited any more", why=repr(error))
        return
    if isinstance(error, Exception):
        logger.critical("crash", why=context["message"], exc_info=error)
        os._exit(CRASHED)
    loop.default_exception_handler(context)


def _is_left_over(context: dict[str, Any]) -> bool:
    """Tell whether a plain future is meant: uvloop looks a name up to the end, also for who has given up meanwhile.

    Without DNS that is every attempt to connect that ends with a time-out.
    """
    return "future" in context and not isinstance(context["future"], asyncio.Task)


def _report(task: asyncio.Task[None]) -> None:
    error: BaseException | None
    if task.cancelled():
        # A CancelledError that nobody asked for comes out of a library: the task is gone all the same.
        error = None if task.cancelling() else RuntimeError("ended by a CancelledError that is not ours")
    else:
        error = task.exception()
    if isinstance(error, Exception):  # SystemExit has ended the loop, and says itself why
        context = {"message": f"{task.get_name()} failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
