"""Which requests are equal, and which only look so."""

from __future__ import annotations

import attrs
import pytest

from stapsrv.compile.cache.key import digest, request_digest
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.request import CompileRequest

REQUEST = CompileRequest(
    version="4.8",
    release="6.1",
    arch="x86_64",
    arguments=(b"-p4", b"script/x.stp"),
    environment=(("LANG", "C"),),
    files=(RequestFile(b"script/x.stp", b"probe begin {}"), RequestFile(b"tapset/t/a.stp", b"")),
    directories=(b"script", b"tapset", b"tapset/t"),
)


@pytest.mark.parametrize(
    "change",
    [
        {"release": "6.2"},
        {"arch": "i386"},
        {"arguments": (b"-p4", b"-g", b"script/x.stp")},
        {"arguments": (b"-p4script/x.stp",)},
        {"arguments": (b"script/x.stp", b"-p4")},
        {"environment": (("LANG", "de_DE"),)},
        {"environment": ()},
        {"files": (RequestFile(b"script/x.stp", b"probe end {}"), REQUEST.files[1])},
        {"files": (RequestFile(b"script/x.st", b"pprobe begin {}"), REQUEST.files[1])},
        {"files": REQUEST.files[:1]},
        {"directories": (b"script", b"tapset", b"tapset/t", b"tapset/u")},
    ],
    ids=str,
)
def test_whatever_stap_is_given_counts(change):
    assert request_digest(attrs.evolve(REQUEST, **change)) != request_digest(REQUEST)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "5.1"},
        {"fingerprints": ("aa:bb",)},
        {"mok_missing": True},
        {"messages": ("Server: x",)},
        {"files": REQUEST.files[::-1]},
    ],
    ids=str,
)
def test_client_version_and_signing_make_no_other_digest(change):
    assert request_digest(attrs.evolve(REQUEST, **change)) == request_digest(REQUEST)


def test_parts_are_not_confused():
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])
    assert digest([b""]) != digest([])
