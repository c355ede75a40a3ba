"""The cache directories of stap: their names, and when they go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kit.service import LogLines

from stapsrv.compile.cache.key import CacheKey
from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY, StapCaches

pytestmark = pytest.mark.anyio


@pytest.fixture
def caches(tmp_path: Path) -> StapCaches:
    return StapCaches(tmp_path, log=LogLines().log)


def key(toolchain: int, generation: int = 0) -> CacheKey:
    return CacheKey(b"", b"known", bytes([toolchain]) * 32, (0, generation))


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / CACHES_DIRECTORY).iterdir()}


async def test_each_toolchain_has_its_own_and_finds_it_again(caches, tmp_path):
    async with caches.use(key(1)) as one, caches.use(key(2)) as two:
        assert one.path != two.path
    async with StapCaches(tmp_path, log=LogLines().log).use(key(1, generation=7)) as again:
        assert again.path == one.path
    assert (one.path / "cache_mb_limit").read_text() == "128\n"


async def test_first_one_begins_with_what_stap_knew_of_kernels(tmp_path):
    (tmp_path / "cache" / "ab").mkdir(parents=True)
    for name in ("stapconf_1.h", "stap_1.ko"):
        (tmp_path / "cache" / "ab" / name).touch()
    caches = StapCaches(tmp_path, log=LogLines().log)
    async with caches.use(key(1)) as first, caches.use(key(2)) as second:
        assert [path.name for path in first.path.rglob("stap*_*")] == ["stapconf_1.h"]
        assert [path.name for path in second.path.rglob("stap*_*")] == []


async def test_toolchain_that_has_come_back_gets_a_new_one(caches):
    async with caches.use(key(1)) as before, caches.use(key(1, generation=2)) as after:
        assert after.path != before.path


async def test_stale_one_goes_with_its_last_user_and_is_used_no_more(caches, tmp_path):
    async with caches.use(key(1)) as outer:
        async with caches.use(key(1)) as inner:
            assert inner is outer
            inner.is_stale = True
        assert not await caches.is_intact(outer)
        assert outer.path.is_dir()
        async with caches.use(key(1)) as other:
            assert other.path != outer.path
    assert kept(tmp_path) == {other.path.name}


async def test_directory_that_another_process_removed_is_not_intact(caches):
    async with caches.use(key(1)) as cache:
        assert await caches.is_intact(cache)
        for file in cache.path.iterdir():
            file.unlink()
        cache.path.rmdir()
        assert not await caches.is_intact(cache)


async def test_their_number_is_bounded_but_for_those_in_use(caches, tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.cache.stap_cache._MAX_DIRECTORIES", 3)
    names = []
    for number in range(6):
        async with caches.use(key(number)) as cache:
            names.append(cache.path.name)
    assert kept(tmp_path) == set(names)
    for number, name in enumerate(names[:4]):
        os.utime(tmp_path / CACHES_DIRECTORY / name, (1000 + number, 1000 + number))
    async with caches.use(key(9)) as cache:
        assert kept(tmp_path) == {*names[4:], cache.path.name}
