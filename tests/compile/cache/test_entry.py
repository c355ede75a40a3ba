"""Cache entries: whether they are stored, and the responses that were made of them."""

from __future__ import annotations

import attrs

from stapsrv.compile.cache.entry import CacheEntry, ResponseVariant
from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import ResponseFile


def test_entry_counts_the_bytes_of_outputs_and_files():
    files = (ResponseFile("stap000000/a.ko", b"12345"), ResponseFile("stap000000/b.c", b"1"))
    assert CacheEntry(CompileResult(0, b"12", b"123", files)).size == 11


def test_entry_is_not_stored_until_finished():
    entry = CacheEntry(CompileResult(0, b"", b"", ()))
    assert (entry.stored.is_set(), entry.reason) == (False, "unknown yet")
    entry.finish(None)
    assert (entry.stored.is_set(), entry.reason) == (True, None)
    assert CacheEntry.final(entry.result, "option").reason == "option"


def test_responses_are_kept_by_variant_and_signer():
    entry = CacheEntry(CompileResult(0, b"", b"", ()))
    variant = ResponseVariant(deflate=True, signed=True, messages=())
    one, other = object(), object()
    entry.keep_response(one, variant, b"zip")
    assert entry.response_for(one, variant) == b"zip"
    assert entry.response_for(other, variant) is None
    assert entry.response_for(one, attrs.evolve(variant, deflate=False)) is None
    entry.keep_response(one, None, b"zip")
    assert entry.response_for(one, None) is None
    for number in range(10):
        entry.keep_response(one, attrs.evolve(variant, messages=(str(number),)), b"zip")
    assert (
        sum(
            entry.response_for(one, attrs.evolve(variant, messages=(str(number),))) is not None
            for number in range(10)
        )
        <= 4
    )
