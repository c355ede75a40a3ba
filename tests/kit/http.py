"""Asking a process for a page, over an Internet or a Unix socket, and reading the metrics' one."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stapsrv.system.unix_socket import address_of


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with address_of(self._path) as address:  # the path may be longer than an address
            self.sock.connect(address)


def get_page(place: int | Path, path: str) -> tuple[int, str]:
    """Return status and text of a page; ``place`` is a port of 127.0.0.1, or a socket's path."""
    if isinstance(place, int):
        connection = http.client.HTTPConnection("127.0.0.1", place, timeout=60)
    else:
        connection = _UnixConnection(place)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def read_samples(text: str) -> dict[tuple[str, ...], float]:
    """Return metrics as Prometheus reads them, by name and the labels' values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
