"""A server that is not to be heard of does not so much as load what it would take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from kit.daemon import start


def sockets_of(pid: int, *tables: str) -> set[str]:
    """Return the inodes of a process's sockets that are in these tables of the kernel's."""
    process = Path(f"/proc/{pid}")
    held = set()
    for entry in (process / "fd").iterdir():
        # A file that it was just reading.
        with contextlib.suppress(FileNotFoundError):
            held.add(os.readlink(entry))
    rows = [line for table in tables for line in (process / "net" / table).read_text().splitlines()[1:]]
    return {row.split()[9] for row in rows if f"socket:[{row.split()[9]}]" in held}


@pytest.mark.parametrize(
    ("options", "switch"), [(["--no-mdns"], "yes"), ([], "no")], ids=["by option", "by environment"]
)
def test_nothing_of_zeroconf_is_loaded(tmp_path, build_tree, identity, options, switch):
    environ = os.environ | {
        "SYSTEMTAP_DIR": str(tmp_path / "st"),
        "STAP_PR11197_OVERRIDE": "1",
        "STAPSRV_MDNS": switch,
    }
    with start(["-r", build_tree, "--ssl", identity, *options], environ) as server:
        assert "cryptography" in (maps := Path(f"/proc/{server.pid}/maps").read_text())
        assert "zeroconf" not in maps
        assert not sockets_of(server.pid, "udp", "udp6", "netlink")
        assert sockets_of(server.pid, "tcp", "tcp6")


def test_switch_that_is_neither_is_one_line(tmp_path, build_tree, identity):
    environ = os.environ | {
        "SYSTEMTAP_DIR": str(tmp_path / "st"),
        "STAP_PR11197_OVERRIDE": "1",
        "STAPSRV_MDNS": "perhaps",
    }
    with pytest.raises(AssertionError, match=r"stap-serverd: STAPSRV_MDNS='perhaps': expected yes or no\n"):
        with start(["-r", build_tree, "--ssl", identity], environ):
            pass
