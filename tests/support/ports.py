"""Ports for the servers of tests."""

from __future__ import annotations

import random
import socket
from typing import Final

PORTS: Final = range(10_000, 30_000)
"""Below those that the kernel gives to connections, and that Kubernetes gives to Services."""
_LEFT: Final = iter(random.sample(PORTS, len(PORTS)))


def unused_port() -> int:
    """Find a port of the loopback interface that nobody listens on, and that was not given before."""
    for port in _LEFT:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("all ports were given")
