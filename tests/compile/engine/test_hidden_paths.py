"""Programs that a request names, seen or hidden, whether they exist or not."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import pytest

from stapsrv.compile.engine.hidden_paths import hidden_paths
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.options import parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.sandbox.mount_plan import Access, MountPlan, plan_mounts
from stapsrv.system.symlinks import Link

PLAN = plan_mounts(
    {Path("/usr"): Access.READ, Path("/usr/secret"): Access.EMPTY_DIRECTORY},
    [Link(Path("/lib"), "usr/lib")],
    directory=Path("/tmp"),
    network=False,
)


def named(*arguments: bytes, script: bytes = b"", plan: MountPlan = PLAN) -> tuple[str, ...]:
    files = (RequestFile(b"script/x.stp", script),) if script else ()
    request = CompileRequest(release="6.1", arch="x86_64", arguments=arguments, files=files)
    return hidden_paths(request, parse_options(request.arguments), plan)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"-e", b'probe process("/srv/app").begin {}'),
        (b'-eprobe begin, process ( "/srv/app" ).function("*") {}',),
        (b"-e", b'probe process("/usr/bin/x").library("/srv/app") {}'),
        (b"-e", b'probe process("/usr/../srv/app") {}'),
        (b"-e", b"probe process(@1).begin {}", b"/srv/app"),
        (b"-d/srv/app", b"-e", b"probe begin {}"),
        (b"-c", b"/srv/app --now", b"-e", b"probe process.begin {}"),
    ],
)
def test_path_that_is_not_shown_is_found(arguments):
    assert named(*arguments) == ("/srv/app",)


def test_path_in_a_file_of_the_request_is_found_and_only_the_first_three():
    script = b"".join(
        b'probe process("/srv/%d") {} probe process("/srv/0") {}' % number for number in range(9)
    )
    assert named(b"script/x.stp", script=script) == ("/srv/0", "/srv/1", "/srv/2")


@pytest.mark.parametrize("path", [b"/usr/bin/ls", b"/usr/no/such", b"/lib/x.so", b"/proc/self/exe", b"ls"])
def test_path_that_is_shown_is_not(path):
    """Nor one that is no path of this host."""
    assert named(b"-e", b'probe process("%s") {} probe begin { print("/srv/app") }' % path) == ()


def test_secret_in_a_shown_directory_is_hidden_like_any_other():
    assert named(b"-e", b'probe process("/usr/secret/key") {}') == ("/usr/secret/key",)


def test_nothing_is_hidden_without_containment():
    uncontained = attrs.evolve(PLAN, mounts={}, links=())
    assert named(b"-e", b'probe process("/srv/app") {}', plan=uncontained) == ()


def test_nothing_is_looked_up(monkeypatch):
    """A client must not find out what exists on this host."""
    for name in ("exists", "lexists", "realpath"):
        monkeypatch.setattr(f"os.path.{name}", None)
    for name in ("stat", "lstat", "readlink", "open", "access"):
        monkeypatch.setattr(f"os.{name}", None)
    found = [named(b"-e", b'probe process("%s") {}' % path) for path in (b"/etc/passwd", b"/etc/no-such")]
    monkeypatch.undo()
    assert found == [("/etc/passwd",), ("/etc/no-such",)]


@pytest.mark.parametrize("unit", [b'process("/', b"process (", b'process("/a")', b" "])
def test_search_is_bounded(unit):
    began = time.thread_time()
    named(b"script/x.stp", script=unit * 200_000)
    assert time.thread_time() - began < 5
