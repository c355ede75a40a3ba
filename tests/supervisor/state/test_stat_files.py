"""The .stat files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stapsrv.config.files import server_settings_from
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.supervisor.state.stat_files import FIRST_ID, Record, StatFiles

SETTINGS = ServerSettings(
    arch="x86_64", releases=("6.1",), user="u", log=Path("/l"), build=("A=1", "B=2"), port=5001
)


@pytest.fixture
def registry(tmp_path: Path) -> StatFiles:
    return StatFiles(tmp_path)


def test_file_is_in_the_configuration_format_with_the_port_that_is_served(registry, tmp_path):
    evolved = Record(id=7, settings=ServerSettings(releases=("6.1",)), origin="/etc/x.conf", port=4321)
    registry.write(evolved)
    text = (tmp_path / "7.stat").read_text()
    read = server_settings_from(text, where="7.stat")
    assert (read.releases, read.port, read.nickname) == (("6.1",), 4321, "7")
    assert (tmp_path / "7.stat").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["7.stat"]


@pytest.mark.parametrize("nickname", [None, "nick"])
@pytest.mark.parametrize("asked", [0, 4321])
@pytest.mark.parametrize("origin", [None, "/etc/x y.conf"])
def test_records_are_read_as_they_were_written(registry, nickname, asked, origin):
    written = Record(
        id=FIRST_ID,
        settings=ServerSettings(releases=("6.1", "6.2"), nickname=nickname, port=asked),
        origin=origin,
        port=4321,
    )
    registry.write(written)
    assert registry.read() == ([written], [])


def test_ids_are_unique_between_supervisors(tmp_path):
    one, two = StatFiles(tmp_path), StatFiles(tmp_path)
    ids = [one.allocate_id(), two.allocate_id(), two.allocate_id(), one.allocate_id()]
    assert ids == list(range(FIRST_ID, FIRST_ID + 4))
    one.forget(ids[-1])
    assert one.allocate_id() == ids[-1] + 1


def test_other_files_are_left_alone(registry, tmp_path):
    (tmp_path / "1234.stat").write_text("ARCH=x86_64\nNICKNAME=1234\n")
    (tmp_path / "notes.stat").write_text("x")
    (tmp_path / "stap-server").mkdir()
    assert registry.read() == ([], [])
    assert len(list(tmp_path.iterdir())) == 3


def test_unused_allocations_of_the_killed_are_swept(registry, tmp_path):
    registry.allocate_id()
    assert registry.read() == ([], [])
    assert list(tmp_path.iterdir()) == []


@given(cut=st.integers(min_value=1, max_value=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_file_cut_short_anywhere_is_whole_or_put_aside(tmp_path, cut):
    registry = StatFiles(tmp_path)
    record = Record(id=9, settings=SETTINGS, origin="/o", port=5001)
    registry.write(record)
    path = tmp_path / "9.stat"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    records, faults = registry.read()
    assert len(records) + len(faults) <= 1
    if records and cut >= len(whole):
        assert records == [record]
    path.unlink(missing_ok=True)


def test_unwritable_directory(tmp_path):
    registry = StatFiles(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        registry.allocate_id()
    with pytest.raises(ConfigError, match="cannot be written"):
        registry.write(Record(id=1, settings=SETTINGS, origin=None, port=None))
    registry.forget(1)
    assert registry.read() == ([], [])


def test_file_named_with_a_huge_id_does_not_change_the_next_ids(registry, tmp_path):
    (tmp_path / f"{10**17}.stat").touch()
    assert registry.allocate_id() == FIRST_ID


def test_ids_that_somebody_took_in_advance_are_passed_over(registry, tmp_path):
    for number in range(300):
        (tmp_path / f"{FIRST_ID + number}.stat").touch()
    given = registry.allocate_id()
    assert FIRST_ID + 300 <= given < FIRST_ID + 200 * 2**30


def test_id_on_record_is_not_given_out_again(registry):
    registry.write(Record(id=FIRST_ID + 3, settings=SETTINGS, origin=None, port=1))
    registry.read()
    registry.forget(FIRST_ID + 3)
    assert registry.allocate_id() == FIRST_ID + 4


def test_pipe_or_link_in_place_of_a_record_is_not_read(registry, tmp_path):
    registry.write(Record(id=FIRST_ID, settings=SETTINGS, origin=None, port=1))
    (tmp_path / f"{FIRST_ID}.stat").rename(tmp_path / "real")
    (tmp_path / f"{FIRST_ID}.stat").symlink_to("real")
    os.mkfifo(tmp_path / f"{FIRST_ID + 1}.stat")
    assert registry.read() == ([], [])


def test_record_of_another_user_is_not_resumed(registry, monkeypatch):
    registry.write(Record(id=FIRST_ID, settings=SETTINGS, origin=None, port=1))
    uid = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert registry.read() == ([], [])
