"""What a client would ask for a script."""

from __future__ import annotations

from kit.client import pack

from stapsrv.compile.cache.key import request_digest
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.request import parse_request
from stapsrv.scripts.script import Included, Script, client_request

SCRIPT = Script(
    collection="/srv",
    name="a/x.stp",
    path="/srv/a/x.stp",
    source=b"probe begin {}",
    options=("-g", "-D", "A=1", "--compatible", "4.0", "-I", "tapset", "--all-modules", "-G", "x=1"),
    arguments=("7", "-v"),
    privilege="stapusr",
    included=(
        Included(
            "/srv/a/tapset", (RequestFile(b"tapset/srv/a/tapset/t.stp", b"t"),), (b"tapset/srv/a/tapset/d",)
        ),
    ),
)


def test_request_has_the_key_of_the_real_clients():
    """Its zip has a directory before what is in it, and the words in the order that was seen."""
    words = [
        *("script/srv/a/x.stp", "-I", "tapset/srv/a/tapset", "-g", "-DA=1", "--compatible=4.0"),
        *("--privilege=stapusr", "--", "7", "-v"),
    ]
    entries = [
        ("version", "4.8"),
        ("sysinfo", "sysinfo: 6.1 x86_64"),
        ("locale", ""),
        *((f"argv{number}", word) for number, word in enumerate(words, start=1)),
        *((f"{name}/", "") for name in ("script", "script/srv", "script/srv/a", "tapset/srv/a/tapset/d")),
        ("script/srv/a/x.stp", SCRIPT.source),
        ("tapset/srv/a/tapset/t.stp", "t"),
    ]
    theirs = parse_request(pack(entries), max_request_bytes=10_000)
    ours = client_request(SCRIPT, release="6.1", arch="x86_64")
    assert ours.arguments == theirs.arguments
    assert ours.directories == theirs.directories
    assert request_digest(ours) == request_digest(theirs)


def test_releases_are_meant_by_patterns():
    script = Script(collection="/srv", name="x.stp", leave_out=("5.*",), fails_for=("*-cloud-*",))
    assert script.is_left_out("5.10.0-9-amd64")
    assert not script.is_left_out("6.1.0-9-amd64")
    assert script.is_to_fail("6.1.0-9-cloud-amd64")
