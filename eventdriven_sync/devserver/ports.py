"""Loopback ports: which are free, and how to connect to one."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"


def connect(port: int) -> socket.socket:
    """A TCP connection to a loopback port; every read on it ends within a second."""
    return socket.create_connection((LOOPBACK, port), timeout=1.0)


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port."""
    with socket.socket() as probe:
        # As the servers do: a port whose old connections still linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(*, besides: int = 0) -> int:
    """Pick a free port below those the kernel gives to clients.

    In that range a client that reconnects to a stopped server could be connected to itself, and
    would then hold the server's port.
    """
    while True:
        port = random.randint(15_000, 32_000)
        if port != besides and is_free(port):
            return port
