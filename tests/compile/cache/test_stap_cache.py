"""What is known of toolchains: lent to each compile, and changed by nothing but the server's own scripts."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from stapsrv.compile.cache.stap_cache import (
    CACHES_DIRECTORY,
    Finding,
    StapCache,
    restrict_users_cache,
)

FEATURES = f"ab/stapconf_{'ab' * 16}_714.h"
TRACEPOINTS = f"cd/tracequery_{'cd' * 16}_1.o"
MODULE = f"ef/stap_{'ef' * 16}_926.ko"


def write(cache: Path, *names: str, text: str = "found") -> Path:
    for name in names:
        (cache / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (cache / name).write_text(text)
        (cache / name).chmod(0o644)
    return cache


def names(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if not path.is_dir()}


@pytest.fixture
def known(tmp_path: Path) -> StapCache:
    return StapCache.of(tmp_path / "st", bytes([1]) * 32)


def test_compile_begins_with_what_is_known_and_cannot_change_it(known, tmp_path):
    known.keep(write(tmp_path / "own", FEATURES, TRACEPOINTS))
    known.lend(tmp_path / "lent")
    assert names(tmp_path / "lent") == set()
    known.keep(tmp_path / "own")
    known.lend(tmp_path / "again")
    assert names(tmp_path / "again") == {FEATURES, TRACEPOINTS}
    with pytest.raises(PermissionError):
        (tmp_path / "again" / FEATURES).write_text("planted")
    # As stap does it: under the same name anew.
    write(tmp_path / "again", "x", text="planted").joinpath("x").rename(tmp_path / "again" / FEATURES)
    assert (known.path / FEATURES).read_text() == "found"


def test_compile_that_had_to_find_out_something_shows_it(known, tmp_path):
    known.lend(tmp_path / "lent")
    known.keep(write(tmp_path / "own", FEATURES))
    known.lend(tmp_path / "later")
    write(tmp_path / "later", "x", MODULE).joinpath("x").rename(tmp_path / "later" / FEATURES)
    assert known.missed_by(tmp_path / "later") == frozenset()
    assert known.missed_by(write(tmp_path / "later", TRACEPOINTS)) == {Finding.TRACEPOINTS}


def test_nothing_but_findings_is_kept(known, tmp_path):
    own = write(
        tmp_path / "own", FEATURES, MODULE, "ab/stapconf_1.h", "abc/x", f"zz/stapconf_{'ab' * 16}_1.h"
    )
    write(tmp_path / "elsewhere", "secret", FEATURES)
    (own / "12").mkdir()
    (own / "12" / Path(FEATURES).name).symlink_to(tmp_path / "elsewhere" / "secret")
    os.mkfifo(own / "12" / Path(TRACEPOINTS).name)
    (own / "34").symlink_to(tmp_path / "elsewhere" / "ab")
    known.lend(tmp_path / "lent")
    known.keep(own)
    assert names(known.path) == {FEATURES}


def test_large_files_and_many_are_not_kept(known, tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.stap_cache._MAX_FILE_BYTES", 5)
    known.lend(tmp_path / "lent")
    known.keep(write(write(tmp_path / "own", FEATURES), TRACEPOINTS, text="larger"))
    assert names(known.path) == {FEATURES}
    monkeypatch.setattr("stapsrv.compile.cache.stap_cache._MAX_FILES", 1)
    other = StapCache.of(tmp_path / "st", bytes([2]) * 32)
    other.lend(tmp_path / "second")
    other.keep(write(tmp_path / "more", FEATURES, TRACEPOINTS, text="f"))
    assert len(names(other.path)) == 1


def test_what_is_known_is_not_replaced(known, tmp_path):
    known.lend(tmp_path / "lent")
    known.keep(write(tmp_path / "own", FEATURES))
    known.keep(write(tmp_path / "later", FEATURES, text="other"))
    assert (known.path / FEATURES).read_text() == "found"


def test_each_toolchain_has_its_own_for_its_user_alone(known, tmp_path):
    other = StapCache.of(tmp_path / "st", bytes([2]) * 32)
    assert len({known.path, other.path, StapCache.of(tmp_path / "st").path}) == 3
    known.lend(tmp_path / "lent")
    known.keep(write(tmp_path / "own", FEATURES))
    for path in (known.path.parent, known.path, (known.path / FEATURES).parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_compile_does_without_where_none_can_be_made(tmp_path):
    (tmp_path / "st").write_text("no directory")
    StapCache.of(tmp_path / "st").lend(tmp_path / "lent")
    assert names(tmp_path / "lent") == set()


def test_first_one_begins_with_what_stap_s_user_knows(known, tmp_path):
    write(tmp_path / "st" / "cache", FEATURES, MODULE)
    known.lend(tmp_path / "lent")
    assert names(tmp_path / "lent") == {FEATURES}
    StapCache.of(tmp_path / "st", bytes([2]) * 32).lend(tmp_path / "second")
    assert names(tmp_path / "second") == set()
    StapCache.of(tmp_path / "st").lend(tmp_path / "unwatched")
    assert names(tmp_path / "unwatched") == {FEATURES}


def test_request_before_the_first_look_at_the_toolchain_makes_it_no_second(known, tmp_path):
    write(tmp_path / "st" / "cache", FEATURES)
    StapCache.of(tmp_path / "st").lend(tmp_path / "unwatched")
    known.lend(tmp_path / "lent")
    assert names(tmp_path / "lent") == {FEATURES}


@pytest.mark.parametrize("open_to_others", ["ab", FEATURES])
def test_what_others_can_have_written_is_not_taken(known, tmp_path, open_to_others):
    users = write(tmp_path / "st" / "cache", FEATURES)
    (users / open_to_others).chmod(0o777)
    known.lend(tmp_path / "lent")
    assert names(tmp_path / "lent") == set()


def test_what_others_can_have_written_is_not_lent(known, tmp_path):
    known.lend(tmp_path / "lent")
    known.keep(write(tmp_path / "own", FEATURES))
    (known.path / "ab").chmod(0o770)
    known.lend(tmp_path / "later")
    assert names(tmp_path / "later") == set()


def test_stap_of_an_open_umask_is_believed_in_its_own_compile(known, tmp_path):
    own = write(tmp_path / "own", FEATURES)
    (own / "ab").chmod(0o777)
    (own / FEATURES).chmod(0o666)
    known.lend(tmp_path / "lent")
    known.keep(own)
    assert names(known.path) == {FEATURES}


def test_their_number_is_bounded_but_for_those_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.stap_cache._MAX_DIRECTORIES", 3)
    caches = [StapCache.of(tmp_path, bytes([number]) * 32) for number in range(7)]
    for number, cache in enumerate(caches[:6]):
        cache.lend(tmp_path / f"lent{number}")
    assert all(cache.path.is_dir() for cache in caches[:6])
    for number, cache in enumerate(caches[:4]):
        os.utime(cache.path, (1000 + number, 1000 + number))
    caches[6].lend(tmp_path / "lent6")
    kept = {path.name for path in (tmp_path / CACHES_DIRECTORY).iterdir()}
    assert kept == {cache.path.name for cache in caches[4:]}


def test_one_that_another_process_removes_meanwhile_is_passed_over(known, tmp_path, monkeypatch):
    StapCache.of(tmp_path / "st", bytes([2]) * 32).lend(tmp_path / "lent")
    (gone,) = known.path.parent.iterdir()
    listed, stated = Path.iterdir, Path.stat

    def removing(path: Path, **keywords: bool) -> os.stat_result:
        if path == gone and keywords == {}:
            raise FileNotFoundError(errno.ENOENT, "removed")
        return stated(path, **keywords)

    def listing(path: Path) -> list[Path]:
        found = list(listed(path))
        shutil.rmtree(gone, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "iterdir", listing)
    monkeypatch.setattr(Path, "stat", removing)
    known.keep(write(tmp_path / "own", FEATURES))
    known.lend(tmp_path / "later")
    known.keep(tmp_path / "own")
    monkeypatch.undo()
    assert names(known.path) == {FEATURES}


def test_cache_of_stap_s_user_is_closed_to_others(tmp_path):
    restrict_users_cache(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    restrict_users_cache(tmp_path)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    (tmp_path / "link").mkdir(mode=0o755)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").symlink_to("link")
    restrict_users_cache(tmp_path)
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o755
