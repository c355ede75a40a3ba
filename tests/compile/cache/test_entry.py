"""Cache entries: whether they are stored, their signatures, and their memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.memory import MemoryBudget
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import RequestRejected


def test_entry_counts_the_bytes_of_outputs_and_files():
    files = (ResponseFile("stap000000/a.ko", b"12345"), ResponseFile("stap000000/b.c", b"1"))
    assert CacheEntry(CompileResult(0, b"12", b"123", files)).size == 11


def test_entry_is_not_stored_until_finished():
    entry = CacheEntry(CompileResult(0, b"", b"", ()))
    assert (entry.stored.is_set(), entry.reason) == (False, "unknown yet")
    entry.finish(None)
    assert (entry.stored.is_set(), entry.reason) == (True, None)
    assert CacheEntry.final(entry.result, "option").reason == "option"


@pytest.mark.anyio
async def test_memory_is_held_once_for_all_and_until_the_last_lets_go():
    entry = CacheEntry(CompileResult(0, bytes(10), bytes(10), ()))
    memory = MemoryBudget(50)
    for client in ("a", "b"):
        await entry.hold(memory, a_job(client))
        assert memory.held_bytes == 40
    with pytest.raises(RequestRejected, match="no memory was free"):
        await CacheEntry(entry.result).hold(memory, a_job("c"))
    for held in (40, 0):
        entry.release()
        assert memory.held_bytes == held
    await entry.hold(memory, a_job("a"))
    assert memory.held_bytes == 40


def a_job(client: str) -> CompileJob:
    return CompileJob(
        log=structlog.get_logger(),
        request=CompileRequest(release="6.1", arch="x86_64", arguments=()),
        release=ServedRelease("6.1", "x86_64", "6.1", Path("/nowhere")),
        settings=ServerSettings(tuning={"queue_s": 0.1}),
        client=client,
    )
