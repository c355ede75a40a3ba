"""``stap-server scripts``: collections in the files, and checks by a supervisor that obeys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.supervisor import FakeSupervisor

from stapsrv.control.cli.commands.scripts import main
from stapsrv.errors import ConfigError
from stapsrv.scripts.history import History
from stapsrv.scripts.matrix import Cell, Result, Verdict

GOOD = Result(cell=Cell("/srv", "a.stp", "6.1"), verdict=Verdict.OK, cached=True)
BAD = Result(cell=Cell("/srv", "b.stp", "6.1"), verdict=Verdict.FAILS, message="error: y", seconds=1.0)


@pytest.fixture
def config(command_line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SYSTEMTAP_DIR", raising=False)
    return command_line.directory / "global.conf"


@pytest.fixture
def checked(supervisor: FakeSupervisor, config: Path) -> Iterator[FakeSupervisor]:
    supervisor.scripts.results = (GOOD, BAD)
    return supervisor


def test_check_prints_differences_and_the_matrix(checked, config, capsys):
    assert main(["check", "-c", str(config), "-r", "6.1", "--changed"]) == 1
    assert checked.scripts.asked == [(["6.1"], True)]
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *("b.stp: fails on 6.1: error: y", ""),
        *("SCRIPT  6.1", "a.stp   ok", "b.stp   fails 1.0s", ""),
        *("b.stp on 6.1: fails: error: y", "", "6.1: 2 scripts: 1 ok, 1 fails"),
    ]
    assert err == ""


def test_check_writes_reports(checked, config, tmp_path, capsys):
    checked.scripts.results = (GOOD,)
    files = tmp_path / "j.xml", tmp_path / "p.html"
    assert (
        main(["check", "-c", str(config), "--json", "--junit", str(files[0]), "--html", str(files[1])]) == 0
    )
    assert json.loads(capsys.readouterr().out)["counts"] == {"6.1": {"ok": 1}}
    assert '<testcase name="a.stp"' in files[0].read_text()
    assert files[1].read_text().startswith("<!DOCTYPE html>")


def test_check_of_nothing_and_failed_check(checked, config, capsys):
    checked.scripts.results = ()
    assert main(["check", "-c", str(config)]) == 2
    assert "there is nothing to check" in capsys.readouterr().err
    checked.scripts.raises = ConfigError("no server with SCRIPTS serves 5.10")
    assert main(["check", "-c", str(config)]) == 1
    assert capsys.readouterr().err == "stap-server scripts: no server with SCRIPTS serves 5.10\n"


def test_check_without_supervisor(config, capsys):
    assert main(["check", "-c", str(config)]) == 1
    assert "no supervisor listens there" in capsys.readouterr().err


def test_history(checked, config, capsys):
    checked.scripts.remembered = History().with_results([BAD])
    assert main(["history", "-c", str(config), "b"]) == 0
    assert "fails since " in capsys.readouterr().out
    assert main(["history", "-c", str(config), "c"]) == 2
    assert main(["history", "-c", str(config), "--json", "b"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["cell"] == ["/srv", "b.stp", "6.1"]


def test_directories_are_added_listed_and_removed(supervisor, config, tmp_path, capsys):
    before = config.read_text()
    collection = tmp_path / "collection"
    collection.mkdir()
    (collection / "x.stp").write_text("")
    (collection / "y.stp").write_bytes(b"\xff")
    common = ["-c", str(config)]
    assert main(["list", *common]) == 2
    assert main(["add", *common, str(collection)]) == 0
    assert main(["add", *common, str(collection)]) == 0
    assert config.read_text() == f"{before}SCRIPTS+={collection}\n"
    assert [method for method, _ in supervisor.told] == ["reload", "reload"]
    capsys.readouterr()
    assert main(["list", *common]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{collection}        2  all",
        f"{collection}/y.stp: byte 0 is not UTF-8",
    ]
    assert main(["remove", *common, str(collection)]) == 0
    assert config.read_text() == before
    assert main(["remove", *common, str(collection)]) == 1
    assert "is not among its SCRIPTS" in capsys.readouterr().err


def test_file_is_no_collection(config, capsys):
    before = config.read_text()
    assert main(["add", "-c", str(config), str(config)]) == 1
    assert "is no directory" in capsys.readouterr().err
    assert config.read_text() == before
