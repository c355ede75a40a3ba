"""Unprivileged users: stap is held to what they may do, and the server vouches for that and nothing else."""

from __future__ import annotations

import functools
import subprocess

import anyio
import pytest
from kit import openssl
from kit.client import Answer, exchange, request
from kit.real import Server, Stap, vermagic

SCRIPT = "probe begin { exit() }"
EMBEDDED = "function f() %{ /* pure */ %} probe begin { f() exit() }"


@pytest.fixture
def ask(server, stap):
    """Send a request that the real client would not."""

    def send(*arguments: str) -> Answer:
        payload = request(*arguments, release=stap.installation.release)
        return anyio.run(functools.partial(exchange, server.port, payload))

    return send


def certificate(stap: Stap) -> bytes:
    """What the servers of this user show."""
    return (stap.directory / "ssl" / "server" / "stap.cert").read_bytes()


@pytest.mark.parametrize(
    "options",
    [("--privilege=stapusr",), ("--privilege", "stapsys"), ("--unprivileged",)],
    ids=["stapusr", "stapsys", "unprivileged"],
)
def test_client_gets_a_signature_that_openssl_verifies(server: Server, stap: Stap, options):
    ran = stap.via(server.port, "-p4", *options, "-e", SCRIPT)
    assert ran.status == 0, ran.stderr
    assert vermagic(stap.place / ran.module) == stap.installation.release
    module = (stap.place / ran.module).read_bytes()
    signature = (stap.place / f"{ran.module}.sgn").read_bytes()
    assert openssl.verifies(certificate=certificate(stap), data=module, signature=signature)
    assert not openssl.verifies(certificate=certificate(stap), data=module + b"\0", signature=signature)


def test_options_of_later_versions_come_with_a_signature(server, stap):
    """As from the original server of that version."""
    printed = subprocess.run(["stap", "--help"], check=False, capture_output=True, text=True)
    later = {"--semantic-keep-going"} & set((printed.stdout + printed.stderr).split())
    if not later:
        pytest.skip("this stap has none of them")
    for option in sorted(later):
        ran = stap.via(server.port, "-p4", option, "--privilege=stapusr", "-e", SCRIPT)
        assert ran.status == 0, ran.stderr
        module = stap.place / ran.module
        signature = module.with_name(f"{ran.module}.sgn").read_bytes()
        assert openssl.verifies(certificate=certificate(stap), data=module.read_bytes(), signature=signature)


def test_privileged_user_gets_none(server, stap):
    ran = stap.via(server.port, "-p4", "-e", SCRIPT)
    assert ran.status == 0, ran.stderr
    assert sorted(path.name for path in stap.place.iterdir()) == [ran.module, "tmp"]


def test_what_is_beyond_the_privilege_is_refused(server, stap):
    """A probe that the client lets pass: only the server's stap looks at it."""
    ran = stap.via(server.port, "-p4", "--unprivileged", "-e", "probe timer.profile { }")
    assert ran.status == 1
    assert "not allowed" in ran.stderr
    assert not list(stap.place.glob("*.ko*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("-g", "--privilege=stapusr", "-e", EMBEDDED),
        ("--unpriv", "-ge", EMBEDDED),
        ("-e", EMBEDDED, "--privilege=stapsys", "-g"),
        ("--privilege=stapusr", "-e", EMBEDDED),
        ("--privilege=stapusr", "--privilege=stapdev", "-g", "-e", EMBEDDED),
        ("-g", "-e", EMBEDDED, "--privilege", "stapdev", "--unprivileged"),
        ("--privilege=stapusr", "-m", "mine", "-e", SCRIPT),
        ("--privilege=stapusr", "-I", "tapset", "-e", SCRIPT),
        ("--privilege=stapusr", "-D", "X=1", "-e", SCRIPT),
    ],
)
def test_real_stap_refuses_what_no_client_would_send(ask, arguments):
    answer = ask("-p4", *arguments)
    assert answer.rc == 1
    assert not [name for name in answer.files if ".ko" in name]


def test_what_only_looks_restricted_is_not_signed(ask):
    """Its values and operands spell privileges; what it is held to is none."""
    answer = ask("-p4", "--privilege=stapdev", "-e", SCRIPT, "-o", "--unprivileged")
    assert answer.rc == 0, answer.stderr
    assert [name.rpartition(".")[2] for name in answer.files if ".ko" in name] == ["ko"]
