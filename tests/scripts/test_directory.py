"""Collections on the disk."""

from __future__ import annotations

from stapsrv.scripts.directory import read_collection


def test_scripts_below_a_link_are_named_by_their_own_path(tmp_path):
    real = tmp_path / "real"
    (real / "games" / "tapset").mkdir(parents=True)
    (real / "games" / "x.stp").write_text("probe begin {}")
    (real / "games" / "x.toml").write_text('options = ["-Itapset"]')
    (real / "games" / "tapset" / "t.stp").write_text("function t() { return 1 }")
    (real / "link.stp").symlink_to("/etc/passwd")
    (tmp_path / "link").symlink_to(real)
    found = read_collection(str(tmp_path / "link"))
    assert found.fault is None
    (script,) = found.scripts
    assert (script.collection, script.name) == (str(tmp_path / "link"), "games/x.stp")
    assert script.path == str(real / "games" / "x.stp")
    (included,) = script.included
    assert included.path == str(real / "games" / "tapset")
    assert [file.path.decode() for file in included.files] == [f"tapset{included.path}/t.stp"]


def test_missing_directories_are_told(tmp_path):
    assert read_collection(str(tmp_path / "no")).fault == "the directory does not exist"
    (tmp_path / "x.stp").write_text("")
    (tmp_path / "x.toml").write_text('options = ["-Imissing"]')
    (script,) = read_collection(str(tmp_path)).scripts
    assert script.fault == f"x.stp: -I {tmp_path}/missing: No such file or directory"
    assert "cannot be read" in str(read_collection(str(tmp_path / "x.stp")).fault)
