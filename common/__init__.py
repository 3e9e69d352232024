"""The runtime that the three services share: one log, one store, one fold."""

__version__ = "0.1.0"
