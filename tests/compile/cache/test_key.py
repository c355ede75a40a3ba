"""Which requests are equal, and which only look so."""

from __future__ import annotations

import attrs
import pytest

from stapsrv.compile.cache.key import CacheKey, digest, request_digest
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


def test_usual_locales_share_a_name_and_others_have_none():
    def common_name(*environment: tuple[str, str]) -> str | None:
        return CacheKey.of(attrs.evolve(REQUEST, environment=environment)).common_name

    usual = {
        common_name(),
        common_name(("LANG", "en_GB.UTF-8"), ("LC_ALL", "C")),
        common_name(("LANG", "C.utf8")),
    }
    assert len(usual) == 1
    assert None not in usual
    for locale in ("tr_TR.UTF-8", "de_DE", "en_US@odd", "C x"):
        assert common_name(("LANG", "C"), ("LC_NUMERIC", locale)) is None
    # What is known by other inputs is another result.
    key = CacheKey.of(REQUEST)
    assert key.common_name not in {key.name, attrs.evolve(key, environment_digest=b"other").common_name}
