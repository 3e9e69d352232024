"""The runtime that the three services share: one log, one store, one fold."""
