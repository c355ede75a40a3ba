"""``stap-server report``: what the archive holds, and what it must not."""

from __future__ import annotations

import errno
import json
import os
import stat
import tarfile

import pytest

from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.report import contents, main


@pytest.fixture
def at_home(site, monkeypatch, tmp_path):
    """The site, in force for this process, with a log and a key."""
    for name, value in site.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SECRET", "STAPSRV_PASSPHRASE"):
        monkeypatch.setenv(name, "do-not-tell")
    monkeypatch.setenv("DEBUGINFOD_URLS", "https://me:do-not-tell@debug.example.org/")
    monkeypatch.chdir(tmp_path)
    (site.directory / "log").write_text(
        "Mon Nov 23 08:21:15 2026: Options passed from the client: -e probe begin { secret }\n"
        "Mon Nov 23 08:21:16 2026: Certificate is valid\n"
    )
    key = site.directory / "systemtap" / "ssl" / "server" / "key4.db"
    key.parent.mkdir(parents=True)
    key.write_text("private-key")
    key.chmod(0o600)
    return site


def read(path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read().decode() for entry in archive}


def test_contents_are_complete_without_keys_and_scripts(at_home, capsys, tmp_path):
    target = tmp_path / "report.tar.gz"
    assert main(["-c", str(at_home.config), "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    files = {name.removeprefix("stapsrv-report/"): text for name, text in read(target).items()}
    assert json.loads(files["versions.json"])["libraries"]["anyio"]
    assert json.loads(files["doctor.json"])["findings"]
    assert json.loads(files["status.json"])
    assert "NICKNAME=lab" in files["configuration/servers/lab.conf"]
    assert "Certificate is valid" in files["logs/0-log"]
    everything = "".join(files.values())
    for secret in ("secret", "private-key", "do-not-tell"):
        assert secret not in everything
    assert json.loads(files["environment.json"])["DEBUGINFOD_URLS"].endswith("@debug.example.org/")
    assert json.loads(files["environment.json"])["STAPSRV_MDNS"] == "no"


def test_default_name_is_new_each_time(at_home, capsys):
    assert main(["-c", str(at_home.config)]) == 0
    path = capsys.readouterr().out.strip()
    assert os.path.basename(path).startswith("stapsrv-report-")
    assert main(["-c", str(at_home.config), "-o", path]) == 1
    assert "cannot be made (File exists)" in capsys.readouterr().err


def test_failure_leaves_no_file(at_home, tmp_path, capsys):
    assert main(["-c", "/missing.conf", "-o", str(tmp_path / "report")]) == 1
    assert "/missing.conf: no such file" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_full_disk_is_one_line(at_home, tmp_path, capsys, monkeypatch):
    def fill(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("stapsrv.doctor.report.write_archive", fill)
    assert main(["-c", str(at_home.config), "-o", str(tmp_path / "report")]) == 1
    assert "report: cannot be written (No space left on device)" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_hanging_log_is_reported(at_home, monkeypatch):
    monkeypatch.setattr("stapsrv.doctor.report._TIMEOUT_S", 0.2)
    (at_home.directory / "log").unlink()
    os.mkfifo(at_home.directory / "log")
    files = dict(contents(DoctorContext(at_home.config, at_home.environ), 0.0))
    os.close(os.open(at_home.directory / "log", os.O_RDWR))  # who hangs there goes on
    assert "no answer within 0.2 seconds" in files["logs/0-log"]


def test_long_log_is_cut_at_a_whole_line(at_home):
    line = "Mon Nov 23 08:21:15 2026: Options passed from the client: secret\n"
    (at_home.directory / "log").write_text(line * 50_000)
    files = dict(contents(DoctorContext(at_home.config, at_home.environ), 0.0))
    assert len(files["logs/0-log"]) < 1_200_000
    assert "secret" not in files["logs/0-log"]
