"""Known results with the real stap: repeats need no stap, and after a change the answer is the new one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import attrs
import pytest
from kit.real import Ran, Server, Stap

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
