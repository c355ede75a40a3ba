"""Tapset files: wherever they lie, and read again only when they have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.script_scan import TapsetScanner, scan_tapsets
from stapsrv.system.blocking import BlockingCalls

pytestmark = pytest.mark.anyio

PROBES_PROGRAM = 'probe %s.begin = process("/bin/ls").begin {}'


@pytest.fixture
def place(tmp_path: Path) -> WatchedPath:
    (tmp_path / "tapset").mkdir()
    (tmp_path / "tapset" / "a.stp").write_text(PROBES_PROGRAM % "user")
    return WatchedPath(str(tmp_path / "tapset"))


def test_links_are_followed_and_circles_come_to_an_end(tmp_path, place):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "b.stp").write_text(PROBES_PROGRAM % "linked")
    (tmp_path / "far" / "c.stpm").write_text('@define macro %( @var("errno", "/lib/libc.so") %)')
    (tmp_path / "far" / "d.txt").write_text(PROBES_PROGRAM % "text")
    (tmp_path / "tapset" / "linux").symlink_to("../far")
    (tmp_path / "far" / "up").symlink_to("..")
    assert scan_tapsets([place, WatchedPath(str(tmp_path / "missing"))]) == {"user", "linked", "macro"}


async def test_they_are_read_again_only_after_a_change(tmp_path, place):
    tapsets, files = TapsetScanner(), BlockingCalls()
    other = WatchedPath(str(tmp_path / "other"))
    assert await tapsets.names_reading_host_files((place,), 0, files) == {"user"}
    assert await tapsets.names_reading_host_files((other,), 0, files) == frozenset()
    (tmp_path / "tapset" / "a.stp").write_text(PROBES_PROGRAM % "person")
    assert await tapsets.names_reading_host_files((place,), 0, files) == {"user"}
    assert await tapsets.names_reading_host_files((place,), 1, files) == {"person"}
