"""The real client's user reads why there is no module."""

from __future__ import annotations

import random
import re
import string
import subprocess

from kit.real import Stap, without_client_lines

SCRIPT = ("-e", "probe begin { exit() }")


def test_request_that_is_too_large(server, stap):
    large = f"// {'x' * 60_000}\n{SCRIPT[1]}"
    (stap.place / "large.stp").write_text(large)
    ran = without_client_lines(stap.via(server.port, "-p1", "large.stp"))
    assert ran.status == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("Server: Uncompressed request size of 60")
    assert ran.stderr.endswith(
        " bytes is not within the expected range of 1 to 50000 bytes. --max-request-size raises the limit.\n"
    )


def test_request_that_is_too_large_even_when_compressed(server, stap):
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=20_000))
    (stap.place / "noise.stp").write_text(f"// {noise}\n{SCRIPT[1]}")
    ran = without_client_lines(stap.via(server.port, "-p1", "noise.stp"))
    assert ran.status == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith(
        "Server: Error size of (compressed) request file is too large: it announces 1"
    )
    assert ran.stderr.endswith(" bytes, the limit is 5000; --max-compressed-request raises the limit\n")


def test_limits_can_be_raised(serve, stap):
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=60_000))
    (stap.place / "noise.stp").write_text(f"// {noise}\n{SCRIPT[1]}")
    server = serve("--max-request-size=70000", "--max-compressed-request=60000")
    assert stap.via(server.port, "-p1", "noise.stp").status == 0


def test_directories_that_are_nested_too_deep(serve, stap):
    """The server goes on, and what it takes leaves nothing behind."""
    server = serve("--max-request-size=1000000", "--max-compressed-request=1000000")
    deep = stap.place.joinpath("tapset", *"d" * 80)
    deep.mkdir(parents=True)
    (deep / "deep.stp").write_text("function deep() { }")
    arguments = ("-p1", "-I", stap.place / "tapset", *SCRIPT)
    assert stap.via(server.port, *arguments).status == 0
    deep.joinpath(*"d" * 40).mkdir(parents=True)
    ran = without_client_lines(stap.via(server.port, *arguments))
    assert (ran.status, ran.stdout) == (1, "")
    assert re.fullmatch(
        r"Server: The request's zip entry '\S+' has a path of \d+ components, the limit is 100\n", ran.stderr
    )
    assert stap.via(server.port, "-p1", *SCRIPT).status == 0


def test_release_that_is_not_served(server, stap):
    ran = without_client_lines(stap.via(server.port, "-p4", *SCRIPT, release="1.2.3-none"))
    assert ran.status == 1
    assert ran.stdout == ""
    assert ran.stderr == (
        "Server: Target kernel version 1.2.3-none x86_64 is not supported by this server, "
        f"which serves {stap.installation.release} x86_64\n"
    )
    assert server.log.has("^Target kernel version 1.2.3-none is not supported by this server$", 1)


def test_server_is_trusted_only_once_it_was_looked_at(server, stranger):
    """The look is a connection with a request of length 0, which is no error."""
    ended = "^Connection from .* ended: "
    before = server.log.count(ended)
    trusting_nobody(stranger)
    refused = stranger.via(server.port, "-p1", *SCRIPT)
    assert (refused.status, refused.stdout) == (1, "")
    assert "Unable to connect to a server" in refused.stderr
    server.log.wait(f"{ended[1:]}TLS: .*BAD_CERTIFICATE$")
    assert server.log.has(ended, before + 1)

    seen = len(server.log.lines)
    looked = stranger.via(server.port, "--trust-servers=ssl,no-prompt", release=None)
    assert looked.status == 0, looked.stderr
    accepted = [re.match(r"Accepted connection from (\S+)$", line) for line in server.log.lines[seen:]]
    (visit,) = (found[1] for found in accepted if found is not None)
    assert stranger.via(server.port, "-p1", *SCRIPT).status == 0
    assert server.log.has(re.escape(visit), 1)


def trusting_nobody(user: Stap) -> None:
    """Give a user an empty database of trusted servers; without any, the client does not even connect."""
    directory = user.directory / "ssl/client"
    directory.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "-d", f"sql:{directory}", "--empty-password"], check=True)
