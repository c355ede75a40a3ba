"""``stap-server cache``: counting, checking and clearing results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stapsrv.compile.cache.disk import RESULTS_DIRECTORY, DiskStore
from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY
from stapsrv.compile.engine.prepared.start import COMPILED
from stapsrv.compile.engine.prepared.store import PLANS_DIRECTORY
from stapsrv.control.cli.commands.cache import main


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskStore:
    monkeypatch.setenv("SYSTEMTAP_DIR", str(tmp_path))
    store = DiskStore(tmp_path / RESULTS_DIRECTORY, max_bytes=1 << 20, max_age_s=1000.0)
    for name in ("a", "b"):
        store.write(name, name.encode())
    return store


NONE = "0 prepared starts, 0 prepared bytes"


@pytest.fixture
def start(store) -> Path:
    """One prepared start of a plan."""
    path = store.directory.parent / CACHES_DIRECTORY / "ab" / PLANS_DIRECTORY / "plans" / "plan" / "start"
    path.mkdir(parents=True)
    (path / COMPILED).write_bytes(b"x" * 1000)
    return path


def test_stats_count_prepared_starts(start, capsys):
    assert main(["stats", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["prepared_starts"], printed["prepared_bytes"]) == (1, 1000)


def test_clear_removes_plans_and_leaves_what_stap_found_out(start, capsys):
    found_out = start.parents[3] / "cd" / "stapconf.h"
    found_out.parent.mkdir()
    found_out.write_text("")
    assert main(["clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prepared_starts"] == 1
    assert not start.parent.parent.exists()
    assert found_out.exists()


def test_stats(store, capsys):
    assert main(["stats"]) == 0
    assert capsys.readouterr().out == f"{store.directory}: 2 results, 100 bytes, {NONE}\n"
    assert main(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "directory": str(store.directory),
        "results": 2,
        "bytes": 100,
        "prepared_starts": 0,
        "prepared_bytes": 0,
    }


def test_verify_removes_what_is_damaged_and_fails(store, capsys):
    assert main(["verify"]) == 0
    (store.directory / "a.result").write_bytes(b"x")
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"{store.directory}: 1 sound, 1 damaged"
    assert main(["verify"]) == 0
    assert store.read("b") == b"b"


def test_clear(store, capsys):
    assert main(["clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 2
    assert not store.use("a")


def test_nothing_there_is_nothing_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYSTEMTAP_DIR", str(tmp_path / "none"))
    for verb in ("stats", "verify", "clear"):
        assert main([verb]) == 0
    assert not (tmp_path / "none").exists()
    assert capsys.readouterr().err == ""


def test_what_cannot_be_used_is_one_line(store, capsys):
    store.directory.chmod(0o755)
    assert main(["stats"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"stap-server cache: {store.directory}: is not a directory of this user alone; ")
    assert err.count("\n") == 1
    assert main(["shred"]) == 2
