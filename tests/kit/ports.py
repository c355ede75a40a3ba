"""A port that is free, and stays so until the test listens on it."""

from __future__ import annotations

import contextlib
import random
import socket


def quiet_port() -> int:
    """Return a free port that the kernel gives to nobody by itself: from below its ephemeral ports.

    Those are from 32768 on (ip(7), ip_local_port_range); another test's client may have one at any moment.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True),
        ):
            return port
    raise AssertionError("none of a hundred ports is free")
