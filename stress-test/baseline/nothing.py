"""A POST that does nothing: what Flask, gunicorn and the gateway cost before any work is done."""

from flask import Flask

app = Flask(__name__)


@app.get("/health/ready")
def ready() -> str:
    """Serve the gateway's check."""
    return "ready"


@app.post("/checkout/<order_id>")
def checkout(order_id: str) -> str:
    """Answer at once."""
    return order_id
