"""Embedded C cannot make the compiler give away files of the host.

It is in a client's own tapset, where stap takes it without ``-g``; for that it would probe the kernel again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from kit.real import Ran, Stap, serving

SECRET = b"the-operator-s-own-words"


@pytest.fixture(params=["bubblewrap", "landlock"])
def contained(request, stap, tmp_path):
    """A server with this sandbox, its own log and certificate database."""
    with serving(stap, f"--sandbox={request.param}", f"--ssl={tmp_path / 'ssl'}") as server:
        assert server.log.has(f"^Requests are contained by {request.param}$", 1)
        yield server


def embedded(stap: Stap, code: str) -> tuple[str, ...]:
    tapset = stap.place / "tapset"
    tapset.mkdir()
    (tapset / "own.stp").write_text(f"%{{\n{code}\n%}}\nfunction own() %{{ /* pure */ %}}")
    return ("-p4", "-I", str(tapset), "-e", "probe begin { own() exit() }")


def targets(stap, server, tmp_path) -> dict[str, object]:
    """Return files that the server's user can read and its requests must not."""
    (other,) = server.temporary.glob("stap-server.*")
    (other / "secret").write_bytes(SECRET)
    config = tmp_path / "stap-server.conf"
    config.write_bytes(SECRET)
    return {
        "the key of the server's certificate": tmp_path / "ssl" / "key4.db",
        "its certificate database": tmp_path / "ssl" / "cert9.db",
        "the local client's": stap.directory / "ssl" / "client" / "cert9.db",
        "another request's file": other / "secret",
        "a configuration file": config,
        "the log": server.log.path,
        "the host's users": "/etc/passwd",
    }


def test_module_cannot_embed_files_of_the_host(contained, stap, tmp_path):
    """In one compile: the assembler names each file that it cannot open."""
    files = targets(stap, contained, tmp_path)
    ran = stap.via(contained.port, *embedded(stap, "\n".join(map(incbin, files.values()))), "-v")
    assert ran.status != 0
    assert not list(stap.place.glob("*.ko"))
    for path in files.values():
        assert f"/{Path(path).name}" in ran.stderr
    assert not told(ran)


def test_messages_cannot_quote_files_of_the_host(serve, stap, tmp_path):
    server = serve(f"--ssl={tmp_path / 'ssl'}")
    files = targets(stap, server, tmp_path)
    ran = stap.via(server.port, *embedded(stap, f'#include "{files["a configuration file"]}"'), "-v")
    assert ran.status != 0
    assert "No such file or directory" in ran.stderr
    assert not told(ran)
    script = f'probe begin {{ println(@cast(0, "x", "kernel<{files["a configuration file"]}>")->y) }}'
    cast = stap.via(server.port, "-g", "-p2", "-vvv", "-e", script)
    assert cast.status != 0
    assert not told(cast)


def test_module_embeds_a_file_without_containment(stap, tmp_path):
    """The control experiment of the tests above."""
    with serving(stap, "--sandbox=off", f"--ssl={tmp_path / 'ssl'}", STAPSRV_RESULT_CACHE="no") as server:
        assert server.log.has("^Requests are not contained: SANDBOX=off$", 1)
        files = targets(stap, server, tmp_path)
        ran = stap.via(server.port, *embedded(stap, incbin(files["another request's file"])))
        assert ran.status == 0, ran.stderr
        assert SECRET in (stap.place / ran.module).read_bytes()


def test_client_of_a_hidden_program_reads_how_to_show_it(serve, stap, tmp_path):
    """The same of one that does not exist; none of it where the program is shown."""
    own = tmp_path / "own"
    own.mkdir()
    program, missing = own / "app", own / "no-such"
    shutil.copy("/bin/true", program)
    server = serve()

    def ask(server, path: Path) -> Ran:
        return stap.via(server.port, "-p2", "-e", f'probe process("{path}").begin {{}}')

    for path in (program, missing):
        ran = ask(server, path)
        assert ran.status != 0
        hint = f"Server: {path} is not shown to compiles; the operator can show it with SANDBOX_READ\n"
        assert ran.stderr.count(hint) == 1
        assert server.log.has(f"^Request from .* names {path}, hidden from compiles", 1)
    assert "SANDBOX_READ" not in ask(server, Path("/opt/no-such")).stderr
    assert "SANDBOX_READ" not in ask(server, Path("/bin/true")).stderr
    assert "SANDBOX_READ" not in ask(serve("--sandbox-read", own), program).stderr


def test_limit_that_was_met_is_named_to_the_client(serve, stap):
    """The module is larger than the limit; a script of its own keeps it out of caches."""
    server = serve("--limit-file=64k")
    ran = stap.via(server.port, "-p4", "-e", f"probe begin {{ println({server.port}, 64) exit() }}")
    assert ran.status == 1
    said = "The compile needed a file of more than 64k (LIMIT_FILE of this server)"
    assert f"Server: {said}\n" in ran.stderr
    assert server.log.has(re.escape(said), 1)


def test_contained_compile_probes_host_programs_and_shares_no_module(contained, stap):
    script = f'probe process("/bin/ls").begin {{ }} probe begin {{ println({contained.port}) exit() }}'
    first = stap.via(contained.port, "-p4", "-e", script)
    assert first.status == 0, first.stderr
    again = stap.via(contained.port, "-v", "-p4", "-e", script)
    assert again.module == first.module
    assert "Pass 4: compiled C into" in again.stderr
    assert "using cached" not in again.stderr


def incbin(path: object) -> str:
    # Not among the code, which the kernel's objtool reads.
    return f'__asm__(".pushsection .rodata; .incbin \\"{path}\\"; .popsection");'


def told(ran: Ran) -> bool:
    """Whether a client received contents of one of the targets."""
    words = (SECRET.decode(), "root:x:0:0", "compile server pid", "SQLite")
    return any(word in ran.stdout + ran.stderr for word in words)
