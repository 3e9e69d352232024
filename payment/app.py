"""The payment service: `python -m payment.app web`, `processor` or `setup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.service import run
from payment.domain import MACHINE

if TYPE_CHECKING:
    from flask import Flask


def create_app() -> Flask:
    """Return the WSGI application, its background thread running: called in gunicorn's worker."""
    from common.http import start_app
    from payment.routes import routes

    return start_app(MACHINE, routes)


if __name__ == "__main__":
    run(MACHINE)
