"""Hosts in namespaces of their own, joined by cables that lead nowhere else. Needs root.

A host has its own network, name, process table and ``/run``, and the files of the real one. It goes with
the process that holds it, and everything that runs on it goes with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

WAIT_S = 20.0

_SET_UP = """\
hostname "$1"
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
mount -t tmpfs tmpfs /run
mkdir /run/dbus /run/avahi-daemon
ip link set lo up
echo ready
exec sleep infinity
"""

_BUS = """\
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""

_AVAHI = """\
[server]
use-ipv4=yes
use-ipv6=yes
[publish]
publish-workstation=no
publish-hinfo=no
"""


class Program:
    """A program and the lines that it printed, to either stream."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._rest = b""
        self._ended = False

    def wait_line(self, pattern: str, *, wait_s: float = WAIT_S, after: int = 0) -> str:
        """Return the first line that ``pattern`` is found in, from the ``after``-th line on; bounded."""
        found = self.wait(lambda: next((line for line in self.lines[after:] if re.search(pattern, line)), None), wait_s)
        return found

    def wait[T](self, look: Callable[[], T | None], wait_s: float = WAIT_S) -> T:
        raise NotImplementedError
