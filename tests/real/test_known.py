"""Known results with the real stap: repeats need no stap, and after a change the answer is the new one."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from kit.client import Answer, frame, request, trusting
from kit.real import PATIENCE_S, Ran, Server, Stap

WATCHING = ": Results are kept: "
MISSING = "missing unwind/symbol data"
SUMMARY = re.compile(r"^Request from .*: answered rc=(\d+), (\w+), .*, not kept: (.*)$")


@attrs.frozen
class Asker:
    """Asks one question again and again."""

    stap: Stap
    server: Server
    arguments: tuple[str, ...]

    def ask(self) -> tuple[Ran, str, str]:
        """Return what the client said, where the answer came from, and why it is not kept."""
        before = self.server.log.count(SUMMARY.pattern)
        ran = self.stap.via(self.server.port, "-p4", *self.arguments)
        found = [match for line in self.server.log.lines if (match := SUMMARY.match(line))]
        assert len(found) == before + 1
        return ran, found[-1][2], found[-1][3]

    def module(self) -> tuple[bytes, str]:
        """Return the module, and where the answer came from."""
        ran, source, _reason = self.ask()
        assert ran.status == 0, ran.stderr
        return (self.stap.place / ran.module).read_bytes(), source


@pytest.fixture
def asking(serve: Callable[..., Server], stap: Stap) -> Callable[..., Asker]:
    """Start a server, and ask it when it knows what it watches."""

    def start(*arguments: str, options: tuple[str, ...] = (), **more: object) -> Asker:
        server = serve(*options, **more)
        server.log.wait(WATCHING)
        return Asker(stap, server, arguments)

    return start


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_repeat_is_the_same_until_a_tapset_changes(asking, tmp_path, backend):
    tapset = tmp_path / "tapset" / "answer.stp"
    tapset.parent.mkdir()
    number = {"asyncio": 4201, "trio": 4202}[backend]
    tapset.write_text(f"function answer() {{ return {number} }}")
    asker = asking(
        "-e", "probe begin { println(answer()) exit() }", options=(f"-I{tapset.parent}",), backend=backend
    )
    first, source = asker.module()
    assert source == "compiled"
    assert asker.module() == (first, "hit")
    tapset.write_text(f"function answer() {{ return {number + 100} }}")
    second, source = asker.module()
    assert source == "compiled"
    assert second != first


def test_options_of_stap_s_own_file_count(asking, stap):
    asker = asking("-e", "probe begin { println(4300) exit() }")
    warned, *_ = asker.ask()
    assert asker.ask()[1] == "hit"
    rc = stap.directory / "rc"
    rc.write_text("-w\n")
    try:
        quiet, source, _reason = asker.ask()
    finally:
        rc.unlink()
    assert source == "compiled"
    assert "symbol table missing" in warned.stderr
    assert "symbol table missing" not in quiet.stderr


def test_a_probed_program_is_looked_at_each_time(asking, tmp_path):
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    asker = asking(
        "-e", f'probe process("{program}").begin {{ exit() }}', options=(f"--sandbox-read={program}",)
    )
    for _ in range(2):
        ran, source, reason = asker.ask()
        assert (ran.status, source, reason) == (0, "compiled", "program")
        assert MISSING not in ran.stderr
    program.unlink()
    assert MISSING in asker.ask()[0].stderr


def copy_tree(original: Path, tree: Path) -> None:
    """Copy a build tree as far as its generated headers; the rest are links."""
    for place, spared in ((Path(), "include"), (Path("include"), "generated")):
        (tree / place).mkdir()
        for entry in (original / place).iterdir():
            if entry.name != spared:
                (tree / place / entry.name).symlink_to(entry.resolve())
    shutil.copytree(original / "include" / "generated", tree / "include" / "generated")


@pytest.mark.timeout(300)
def test_a_changed_header_and_a_changed_runtime_are_compiled_in(serve, stap, tmp_path):
    """stap's own cache takes no notice of either.

    The client is one that names no kernel on stap's command line: that would go before the server's tree.
    """
    release = stap.installation.release
    tree, runtime = tmp_path / "tree", tmp_path / "runtime"
    copy_tree(Path("/lib/modules", release, "build"), tree)
    shutil.copytree(stap.installation.runtime, runtime)
    server = serve("-r", tree, f"-R{runtime}", release=False)
    server.log.wait(WATCHING)
    payload = request("-p4", "-e", "probe begin { println(4400) exit() }", release=release)

    def module() -> tuple[bytes, str]:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection,
            trusting().wrap_socket(connection) as tls,
        ):
            tls.sendall(frame(payload))
            answer = Answer.of(b"".join(iter(lambda: tls.recv(65536), b"")))
        assert answer.rc == 0, answer.stderr
        (made,) = (data for name, data in answer.files.items() if name.endswith(".ko"))
        return made, [match[2] for line in server.log.lines if (match := SUMMARY.match(line))][-1]

    first, source = module()
    assert source == "compiled"
    assert module() == (first, "hit")
    header = tree / "include" / "generated" / "utsrelease.h"
    header.write_text(header.read_text().replace(release, f"{release}-changed"))
    with (runtime / "runtime.h").open("a") as text:
        text.write('\nMODULE_INFO(changed, "runtime");\n')
    second, source = module()
    assert source == "compiled"
    assert f"vermagic={release}-changed ".encode() in second
    assert b"changed=runtime" in second
