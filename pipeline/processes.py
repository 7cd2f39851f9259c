"""Processes: whether one runs, how to end with it, a free port, how long to wait."""

import socket

from data_prep.processes import die_with, is_alive

__all__ = ["TIMEOUT", "die_with", "free_port", "is_alive"]

TIMEOUT = 120.0  # seconds without a sign of a rank until a run is given up
LONGEST = 1e6  # the highest value of it: 11 days


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
