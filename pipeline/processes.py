"""Processes: whether one runs, how to end with it, a free port, how long to wait."""

import re
import socket
from collections.abc import Mapping

from data_prep.cli import UserError
from data_prep.processes import die_with, is_alive

__all__ = ["TIMEOUT", "die_with", "free_port", "is_alive"]

TIMEOUT = 120.0  # seconds without a sign of a rank until a run is given up
LONGEST = 1e6  # the highest value of it: 11 days


def asked_ranks(environment: Mapping[str, str]) -> int | None:
    """The processes on this machine that RANKS asks for; None if it is not set. Raises UserError for what is no number."""
    asked = environment.get("RANKS")
    if not asked:
        return None
    if not re.fullmatch("[1-9][0-9]*", asked):
        raise UserError(f"RANKS={asked}: must be a whole number of at least 1")
    return int(asked)


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
