"""The real client's world: what it compiles for, its caches and certificates, and servers for it.

All tests here share one ``SYSTEMTAP_DIR`` whose compile cache is warm: the first compile for a kernel
release probes its features for more than ten seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs
import pytest
from kit.lan import Lan, open_lan
from kit.real import Asked, Installation, Server, Stap, Unavailable, serving
from kit.warm import warm_up_servers

HERE = Path(__file__).parent
# Several waits of the kit (PATIENCE_S) on a busy machine; pytest-timeout would break off the first.
TIMEOUT_S = 900

SCRIPTS = {
    "hello.stp": 'probe begin { println("by file") exit() }\n',
    "told.stp": 'probe begin { printf("%d %s", $1, @2) exit() }\n',
    "asking.stp": "probe begin { println(answer()) exit() }\n",
    "broken.stp": "probe begin { exit( }\n",
    "tapset/answer.stp": "function answer() { return 42 }\n",
    "bad/answer.stp": "function answer:long() %{ STAP_RETVALUE = no_such_thing; %}\n",
}

# SCRIPTS stands for the directory with the files above.
REQUESTS = {
    "script by -e": Asked(("-p2", "-e", 'probe begin { println("by -e") exit() }'), "# probes"),
    "script by file": Asked(("-p2", "SCRIPTS/hello.stp"), "# probes"),
    "script by standard input": Asked(
        ("-p2", "-"), "by_stdin:long", "global by_stdin probe begin { by_stdin++ }"
    ),
    "script's arguments": Asked(("-p1", "SCRIPTS/told.stp", "7", "a  b'\"$x*"), """7, "a  b'\\"$x*")"""),
    "directory with tapsets": Asked(("-p2", "-I", "SCRIPTS/tapset", "SCRIPTS/asking.stp"), "answer:long ()"),
    "pass 1": Asked(("-p1", "-e", "probe begin { exit() }"), "# parse tree dump"),
    "pass 3": Asked(("-p3", "-e", "probe begin { exit() }"), "static void enter_be_probe"),
    "pass 4": Asked(("-p4", "-e", "probe begin { exit() }"), ".ko"),
    "probe points": Asked(("-L", 'process("/bin/true").*'), 'process("/usr/bin/true").end $syscall:long'),
    "parse error": Asked(
        ("-p4", "-e", "probe begin { exit( }"), "saw: operator '}' at <input>:1:21", status=1
    ),
    "parse error in a file": Asked(("-p4", "SCRIPTS/broken.stp"), "saw: operator '}' at", status=1),
    "semantic error": Asked(("-p4", "-e", "probe begin { exit(1) }"), "arity mismatch found", status=1),
    "unknown probe point": Asked(("-p4", "-e", "probe nowhere { }"), "probe point mismatch", status=1),
    "C that does not compile": Asked(
        ("-p4", "-I", "SCRIPTS/bad", "SCRIPTS/asking.stp"), "no_such_thing", status=1
    ),
    "unknown option": Asked(("-p4", "--no-such-option"), "unrecognized option '--no-such-option'", status=1),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that is here: ``-m 'not real'`` leaves it out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    items[:] = spread_long(items, processes=int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def spread_long(items: list[pytest.Item], *, processes: int) -> list[pytest.Item]:
    """Order tests so that each process begins with its part of the long ones.

    pytest-xdist gives each process a run of equal length at first. One that begins a long test as the last is
    alone for a minute and more.
    """
    longest = [item for item in items if item.get_closest_marker("long") is not None]
    others = [item for item in items if item.get_closest_marker("long") is None]
    ordered: list[pytest.Item] = []
    for process in range(processes):
        size = (len(items) - len(ordered)) // (processes - process)
        own = longest[process::processes]
        count = max(0, size - len(own))
        ordered += own + others[:count]
        del others[:count]
    return ordered + others


@pytest.fixture(scope="session")
def installation() -> Installation:
    """What this host has; CI has to have it all, elsewhere the tests are skipped."""
    if os.geteuid() == 0:
        pytest.skip("a compile server does not run as root; run the tests as stap-server")
    try:
        return Installation.find(os.environ)
    except Unavailable as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def warm_stap(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Stap:
    """A user whose stap has compiled for the two newest releases before."""
    place = tmp_path_factory.mktemp("systemtap")
    stap = Stap(installation=installation, directory=place / "systemtap", place=place)
    warm_up_servers(stap, installation.releases[:2])
    return stap


@pytest.fixture
def stap(warm_stap: Stap, tmp_path: Path) -> Iterator[Stap]:
    """That user, in a directory of the test's own."""
    stap = warm_stap.at(tmp_path)
    yield stap
    stap.end()


@pytest.fixture
def stranger(stap: Stap, tmp_path: Path) -> Stap:
    """Another user, who trusts nobody and has compiled nothing."""
    place = tmp_path / "stranger"
    place.mkdir()
    return Stap(installation=stap.installation, directory=place / "systemtap", place=place)


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def server(
    request: pytest.FixtureRequest, warm_stap: Stap, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with all its defaults, for the tests that need no other; on each backend."""
    place = tmp_path_factory.mktemp(f"server-{request.param}")
    with serving(warm_stap.at(place), backend=request.param) as server:
        yield server


@pytest.fixture
def serve(stap: Stap) -> Iterator[Callable[..., Server]]:
    """Start a server with options of the test's own; ``using`` says whose (see :func:`kit.real.serving`).

    It caches no results unless told to: it would scan the whole toolchain, two seconds' work.
    """
    with contextlib.ExitStack() as servers:

        def start(
            *options: object,
            using: Callable[..., AbstractContextManager[Server]] = serving,
            caching: bool = False,
            **more,
        ):
            if using is serving and not caching:
                more["STAPSRV_RESULT_CACHE"] = "no"
            return servers.enter_context(using(stap, *options, **more))

        yield start


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the files that requests name."""
    directory = tmp_path_factory.mktemp("scripts")
    for name, text in SCRIPTS.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(params=REQUESTS.values(), ids=REQUESTS)
def asked(request: pytest.FixtureRequest, scripts: Path) -> Asked:
    """Each of the requests above in turn."""
    arguments = tuple(argument.replace("SCRIPTS", str(scripts)) for argument in request.param.arguments)
    return attrs.evolve(request.param, arguments=arguments)


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    """Two hosts with a cable between them, and caches that have heard nothing of another module's servers."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))
    with open_lan(installation) as opened:
        yield opened
