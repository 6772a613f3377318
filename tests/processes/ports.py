"""Ports of this machine for servers in tests."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port that is free, and that no system takes for an outgoing connection meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
