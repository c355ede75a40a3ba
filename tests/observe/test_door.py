"""Where metrics are asked for: taken or not, stale or not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from stapsrv.config.addresses import OFF, MetricsAddress
from stapsrv.errors import ConfigError
from stapsrv.observe.metrics_server import open_door

REMEDY = "give another address with --metrics or METRICS=, or off"


def refusal(address: MetricsAddress, directory: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught, open_door(address, directory=directory):
        raise AssertionError("it is open")
    return str(caught.value)


@pytest.mark.parametrize("address", [None, OFF])
def test_nowhere(address):
    with open_door(address) as door:
        assert door is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_one_clear_line(host):
    with open_door(MetricsAddress(host, 0)) as door:
        address = MetricsAddress(host, door.listener.getsockname()[1])
        assert door.name == str(address)
        assert refusal(address) == f"metrics address {address}: is in use by another program; {REMEDY}"
    with open_door(address):
        pass


def test_a_port_below_1024_or_an_address_of_somebody_else():
    assert refusal(MetricsAddress("192.0.2.1", 0)) == (
        f"metrics address 192.0.2.1:0: cannot be used: Cannot assign requested address; {REMEDY}"
    )


def test_a_socket_of_mode_and_place(tmp_path):
    with open_door(MetricsAddress(path=Path("metrics.sock")), directory=tmp_path) as door:
        path = tmp_path / "metrics.sock"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        assert door.name == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        address = MetricsAddress(path=path)
        assert refusal(address) == f"metrics address unix:{path}: is in use by another program; {REMEDY}"
        assert path.exists()
    assert os.listdir(tmp_path) == []


def test_a_socket_whose_listener_reads_nothing_is_taken(tmp_path):
    with open_door(MetricsAddress(path=tmp_path / "s")), socket.socket(socket.AF_UNIX) as other:
        (tmp_path / "s").unlink()
        other.bind(str(tmp_path / "s"))
        other.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "s"))
        assert "is in use by another program" in refusal(MetricsAddress(path=tmp_path / "s"))
        for client in clients:
            client.close()


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_door(MetricsAddress(path=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_something_else_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("precious")
    assert refusal(MetricsAddress(path=tmp_path / "file")).startswith(
        f"metrics address unix:{tmp_path}/file: is no socket; "
    )
    assert (tmp_path / "file").read_text() == "precious"


def test_a_relative_path_needs_a_directory():
    assert refusal(MetricsAddress(path=Path("m.sock"))) == (
        "metrics address unix:m.sock: a single server has no directory of its own; give an absolute path"
    )


def test_a_directory_that_is_missing(tmp_path):
    address = MetricsAddress(path=tmp_path / "missing" / "m.sock")
    assert (
        refusal(address) == f"metrics address {address}: cannot be used: No such file or directory; {REMEDY}"
    )
