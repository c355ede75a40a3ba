"""The table of the servers on the network. What finds them is tested on a network (tests/mdns)."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import attrs
import pytest
import structlog

from stapsrv.control.cli.commands.browse import as_json, main, table
from stapsrv.errors import AdvertiseError
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.trust import authorize
from stapsrv.mdns import browser
from stapsrv.mdns.browser import FoundServer
from stapsrv.mdns.interfaces import Network

BUILD = FoundServer(
    name="Systemtap Compile Server on build",
    host="build.local",
    addresses=("192.0.2.1", "fe80::1%eth0"),
    port=5001,
    release="6.1.0-56-amd64",
    arch="x86_64",
    version="4.8",
    serial="00:cc:1d:4b:d6",
    options="-DA=1",
    moks=("aa:bb",),
)
STRANGE = FoundServer(
    name="\x1b[2Jstrange",
    host="",
    addresses=(),
    port=0,
    release="",
    arch="",
    version="",
    serial="",
    options="",
    moks=(),
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FoundServer]:
    """What the network tells; nothing is listened to."""
    servers: list[FoundServer] = []
    asked: list[float] = []

    def find(network: Network, wait_s: float) -> list[FoundServer]:
        assert network.links
        asked.append(wait_s)
        return servers

    monkeypatch.setattr(browser, "find_servers", find)
    monkeypatch.setenv("SYSTEMTAP_DIR", str(tmp_path))
    return servers


def test_table():
    assert table([BUILD, STRANGE], {BUILD.serial}) == [
        "NAME                               HOST         ADDRESS    PORT  RELEASE         ARCH    VERSION"
        "  SERIAL          TRUSTED",
        "Systemtap Compile Server on build  build.local  192.0.2.1  5001  6.1.0-56-amd64  x86_64  4.8    "
        "  00:cc:1d:4b:d6  yes",
        r"\x1b[2Jstrange                     -            -          0     -               -       -      "
        "  -               no",
    ]


def test_json():
    assert json.loads(as_json([BUILD], set())) == [
        {**attrs.asdict(BUILD), "addresses": list(BUILD.addresses), "moks": ["aa:bb"], "trusted": False}
    ]


def test_trust_is_that_of_the_caller_s_client(found, tmp_path, identity, capsys):
    async def trust() -> str:
        log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
        server = await load_or_create_identity(identity, log=log)
        await authorize(server.certificate, tmp_path / "ssl" / "client", log=log)
        return server.serial

    serial = anyio.run(trust)
    found += [attrs.evolve(BUILD, serial=serial), BUILD]
    assert main([]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in out] == ["TRUSTED", "yes", "no"]


def test_none_found(found, capsys):
    assert main(["--timeout", "0.5"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stap-server browse: no compile server answered within 0.5 s"
    )
    assert main(["--json"]) == 1
    assert capsys.readouterr().out == "[]\n"


def test_database_that_cannot_be_read_is_told(found, tmp_path, capsys):
    client = tmp_path / "ssl" / "client"
    client.mkdir(parents=True)
    for name in ("cert9.db", "key4.db"):
        (client / name).write_bytes(b"nonsense" * 100)
    found.append(BUILD)
    assert main([]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("the servers that your client trusts cannot be read: ")
    assert printed.out.splitlines()[-1].endswith("no")


def test_no_multicast(monkeypatch, capsys):
    def refuse(_network: Network, _wait_s: float) -> list[FoundServer]:
        raise AdvertiseError("multicast DNS is refused: Address already in use")

    monkeypatch.setattr(browser, "find_servers", refuse)
    assert main([]) == 1
    assert capsys.readouterr().err == (
        "stap-server browse: multicast DNS is refused: Address already in use\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--timeout", "0"], "argument --timeout: '0' is not a number of seconds, up to 3600"),
        (["--timeout", "nan"], "argument --timeout: 'nan' is not a number of seconds, up to 3600"),
        (["--timeout", "soon"], "argument --timeout: 'soon' is not a number of seconds, up to 3600"),
        (
            ["--mdns-interfaces", "a/b"],
            "argument --mdns-interfaces: 'a/b': expected names of interfaces or IP addresses, "
            "which 'a/b' is not",
        ),
        (["operand"], "unrecognized arguments: operand"),
    ],
)
def test_faults_are_one_line(arguments, text, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"stap-server browse: {text}; see stap-server browse --help\n"


def test_interface_that_is_not_there(capsys):
    assert main(["--mdns-interfaces", "nosuch0"]) == 1
    assert capsys.readouterr().err == (
        "stap-server browse: no network interface to listen on is up and has an address\n"
    )
