"""A port for a server that a test is about to start."""

import contextlib
import random
import socket

PORTS = range(20_000, 32_000)  # below those that a system, and with it Ray, gives away by itself


def free_port() -> int:
    """One that nobody has, and that no process is given by chance before a server takes it."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
