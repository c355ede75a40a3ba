"""Results in memory and on disk: whole, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from kit.service import LogLines

from stapsrv.compile.cache import storage
from stapsrv.compile.cache.disk import DiskStore
from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.cache.storage import ResultStorage, _decode_result, _encode_result
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import ResponseFile

RESULT = CompileResult(
    0,
    b"out",
    b"",
    (ResponseFile("stap000000/x.ko", bytes(range(256))), ResponseFile("stap000000/x_src.c", b"int x;\n")),
)


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "results", max_bytes=1 << 20, max_age_s=1000.0)


def test_encoded_result_is_decoded():
    assert _decode_result(_encode_result(RESULT)) == RESULT


@pytest.mark.parametrize("body", [b"", b"x", b"2\n{}", b"4\nnull", b'22\n{"head":0,"sizes":[]}', b"-1\n"])
def test_other_body_is_no_result(body):
    assert _decode_result(body) is None


def test_body_of_another_length_is_no_result():
    body = _encode_result(RESULT)
    assert _decode_result(body[:-1]) is None
    assert _decode_result(body + b"x") is None


@pytest.mark.anyio
async def test_stored_result_is_found_by_another_process(store):
    log = LogLines().log
    assert await ResultStorage(store, log=log).put("name", CacheEntry(RESULT))
    found = await ResultStorage(store, log=log).get("name")
    assert found is not None
    assert (found.result, found.reason) == (RESULT, None)


@pytest.mark.anyio
async def test_large_results_are_copied_in_threads(store, monkeypatch):
    threads = []
    for name in ("_encode_result", "_decode_result"):
        call = getattr(storage, name)

        def noted(argument, call=call):
            threads.append(threading.current_thread())
            return call(argument)

        monkeypatch.setattr(storage, name, noted)
    log = LogLines().log
    assert await ResultStorage(store, log=log).put("name", CacheEntry(RESULT))
    assert await ResultStorage(store, log=log).get("name") is not None
    assert len(threads) == 2
    assert threading.current_thread() not in threads
