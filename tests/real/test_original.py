"""The same requests to SystemTap's own server and to this one.

Differences that are meant: this one hides ``SYSTEMTAP_DIR`` too, sends a module's sources and nothing that
the kernel's build leaves behind, and tells a client whom it refuses why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import anyio
import attrs
import pytest
from kit.client import Answer, connect, frame, pack, read_answer, request
from kit.real import (
    Ran,
    Server,
    serving,
    serving_original,
    without_client_lines,
    without_word_of_jobs,
)

SCRIPT = ("-e", "probe begin { exit() }")
# In neither server's cache at first: for a module from there less is sent than for one that is built.
NEW_SCRIPT = ("-e", "probe begin { print(4711) exit() }")


@attrs.frozen
class Pair:
    """The original and this project's server, with the same options for the same user."""

    original: Server
    ours: Server


@pytest.fixture(scope="module")
def pair(warm_stap, tmp_path_factory) -> Iterator[Pair]:
    stap = warm_stap.at(tmp_path_factory.mktemp("pair"))
    with serving(stap) as ours, serving_original(stap) as original:
        yield Pair(original, ours)


def test_answer_is_that_of_the_original(pair, stap, asked):
    original, ours = (
        without_word_of_jobs(without_client_lines(stap.via(server.port, *asked.arguments, stdin=asked.stdin)))
        for server in (pair.original, pair.ours)
    )
    assert asked.words in ours.stdout + ours.stderr
    assert ours == hiding(str(stap.directory), original)


def test_answer_to_a_release_that_is_not_served(pair, stap):
    """The original leaves the client without a result, and the client's user without a reason."""
    original, ours = (
        without_client_lines(stap.via(server.port, "-p2", *SCRIPT, release="1.2.3"))
        for server in (pair.original, pair.ours)
    )
    assert (original.status, original.stdout) == (ours.status, ours.stdout) == (1, "")
    assert "Unable to open file" in original.stderr
    assert ours.stderr.startswith(
        "Server: Target kernel version 1.2.3 x86_64 is not supported by this server"
    )
    for server in (pair.original, pair.ours):
        assert server.log.has("^Target kernel version 1.2.3 is not supported by this server$", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p2", *NEW_SCRIPT),
        ("-p4", *NEW_SCRIPT),
        ("-p4", "-e", "probe begin {"),
        ("-p4", "-k", *NEW_SCRIPT),
        ("-p4", "-r", "/lib/modules", *NEW_SCRIPT),
        ("-p4", "--tmpdir=/tmp", *NEW_SCRIPT),
        ("-p4", "-R", "/tmp", *NEW_SCRIPT),
        ("-p4", "--no-such-option"),
        ("-p2",),
        ("-p2", "script/none.stp"),
        (),
    ],
    ids=" ".join,
)
def test_zip_holds_what_that_of_the_original_does(pair, stap, arguments):
    """As far as a client looks at it; some of these no client sends."""
    payload = request(*arguments, release=stap.installation.release, locale="LANG=C.UTF-8\n")
    original, ours = (Answer.of(ask(server, payload)) for server in (pair.original, pair.ours))
    assert ours.entries["version"] == original.entries["version"]
    assert said(ours) == hiding(str(stap.directory), said(original))
    assert ours.files == {name: data for name, data in original.files.items() if is_wanted(name)}


def test_answer_is_smaller_than_that_of_the_original(pair, stap):
    """For modules that are compiled: of those in stap's cache nothing but the module is sent anyhow."""
    names, sizes = [], []
    for number, server in enumerate((pair.original, pair.ours)):
        script = f"probe begin {{ println({number}) exit() }}"
        answer = ask(server, request("-p4", "-e", script, release=stap.installation.release))
        # Packed alike: a client on the server's own host is spared the unpacking.
        sizes.append(len(pack(Answer.of(answer).entries.items())))
        names.append({re.sub(r"_[0-9a-f]{32}_\d+", "_HASH", name) for name in Answer.of(answer).files})
    assert {"stap_HASH.ko", "stap_HASH_src.c", "stap_common.h"} <= names[1]
    assert names[1] == {name for name in names[0] if is_wanted(name)}
    assert sizes[1] < sizes[0] / 2


def is_wanted(name: str) -> bool:
    """Whether a file of stap's is a module, its source or a header, and none of the kernel's build."""
    return name.endswith((".ko", ".c", ".h")) and not name.endswith(".mod.c")


def ask(server: Server, payload: bytes) -> bytes:
    """Return what a server sends for a request's zip."""

    async def exchange() -> bytes:
        with anyio.fail_after(60):
            async with await connect(server.port) as tls:
                await tls.send(frame(payload))
                return await read_answer(tls)

    return anyio.run(exchange)


def said(answer: Answer) -> Ran:
    return Ran(answer.rc, answer.stdout, answer.stderr)


def hiding(path: str, ran: Ran) -> Ran:
    return Ran(ran.status, ran.stdout.replace(path, "<server>"), ran.stderr.replace(path, "<server>"))
