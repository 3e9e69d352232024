"""The whole system as processes on one machine: `python -m local up`."""
