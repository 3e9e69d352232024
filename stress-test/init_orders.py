"""Fill the system with items, users and orders for a load test; what has the same number is replaced."""

import json
import time
from pathlib import Path

import click
import requests

URLS = Path(__file__).resolve().parents[1] / "test" / "urls.json"
TIMEOUT_S = 150


def init_orders(stock_call: str, payment_call: str, order_call: str) -> None:
    """Post the three calls in the order in which one needs the other."""
    for noun, call in (("items", stock_call), ("users", payment_call), ("orders", order_call)):
        start = time.monotonic()
        requests.post(call, timeout=TIMEOUT_S).raise_for_status()
        click.echo(f"{noun}: {time.monotonic() - start:.1f} s")


@click.command(context_settings={"show_default": True})
@click.option("--host", help="The gateway.  [default: what test/urls.json says]")
@click.option("--items", default=100_000)
@click.option("--stock", default=1_000_000, help="Of each item.")
@click.option("--price", default=1, help="Of each item.")
@click.option("--users", default=100_000)
@click.option("--credit", default=1_000_000, help="Of each user.")
@click.option("--orders", default=100_000, help="Each of two random items, for a random user.")
def main(**given: str | int) -> None:
    """Create items, users and orders that are numbered from 0."""
    urls = json.loads(URLS.read_text())
    stock, payment, order = (given["host"] or urls[key] for key in ("STOCK_URL", "PAYMENT_URL", "ORDER_URL"))
    init_orders(
        f"{stock}/stock/batch_init/{given['items']}/{given['stock']}/{given['price']}",
        f"{payment}/payment/batch_init/{given['users']}/{given['credit']}",
        f"{order}/orders/batch_init/{given['orders']}/{given['items']}/{given['users']}/{given['price']}",
    )


if __name__ == "__main__":
    main()
