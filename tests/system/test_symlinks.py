"""Symbolic links, one after the other."""

from __future__ import annotations

from stapsrv.system.symlinks import Link, follow


def test_links_are_followed_to_the_end(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to(f"{tmp_path}/./b/../b")
    (tmp_path / "b").symlink_to("real")
    real, links = follow(tmp_path / "a")
    assert real == tmp_path / "real"
    assert links == (Link(tmp_path / "a", f"{tmp_path}/./b/../b"), Link(tmp_path / "b", "real"))


def test_broken_links_have_no_target(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("missing")
    for name in ("loop", "gone", "missing/x"):
        assert follow(tmp_path / name) == (None, ()) or follow(tmp_path / name)[0] is None
