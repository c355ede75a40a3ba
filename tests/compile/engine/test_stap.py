"""stap's command line, environment and files, and the answer that is read from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from kit.stap import make_stap
from kit.trees import make_deep

from stapsrv.compile.engine import stap as stap_module
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.stap import (
    StapProgram,
    find_stap,
    read_answer,
    redact,
    stap_command,
    stap_environment,
    write_request,
)
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.options import Privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.rejection import RejectReason
from stapsrv.system import trees

STAP = StapProgram(Path("/usr/bin/stap"), "4.8")
RELEASE = ServedRelease("6.1", "x86_64", "6.1", Path("/lib/modules/6.1/build"))
ANSWER = Path("/tmp/a/stap000000")


def a_job(
    *arguments: bytes, settings: ServerSettings | None = None, release: ServedRelease = RELEASE
) -> CompileJob:
    request = CompileRequest(release="6.1", arch="x86_64", arguments=arguments)
    return CompileJob(
        log=structlog.get_logger(), request=request, release=release, settings=settings or ServerSettings()
    )


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (ServerSettings(), []),
        (ServerSettings(arch="aarch64"), [b"-a", b"arm64"]),
        (
            ServerSettings(
                build=("V=1", "-j4"), define=("A", "B=2"), include=("/t",), runtime="/r", port=1, nickname="n"
            ),
            [b"-BV=1", b"-B-j4", b"-DA", b"-DB=2", b"-I/t", b"-R", b"/r"],
        ),
    ],
)
def test_command_line_has_the_server_s_options(settings, options):
    arguments = (b"-e", b"a\n'b'\xff", b"--tmpdir=/x")
    command = stap_command(STAP, a_job(*arguments, settings=settings), ANSWER)
    assert command == [
        *(b"/usr/bin/stap", b"-r", b"6.1"),
        *options,
        *(b"--tmpdir=/tmp/a/stap000000", b"--client-options"),
        *arguments,
    ]


def test_build_tree_is_passed_as_it_was_given():
    tree = ServedRelease("6.1", "x86_64", "/kernels/mine", Path("/kernels/mine"))
    command = stap_command(STAP, a_job(release=tree), ANSWER)
    assert command[2] == b"/kernels/mine"


@pytest.mark.parametrize("privilege", [*Privilege, None])
def test_privilege_goes_in_front_of_the_marker(privilege):
    asked = b"--bogus" if privilege is None else b"--privilege=" + privilege.value.encode()
    arguments = (b"-e", b"--privilege=stapdev", asked)
    command = stap_command(STAP, a_job(*arguments), ANSWER)
    at = command.index(b"--client-options")
    assert command[at + 1 :] == [*arguments]
    in_front = [argument for argument in command[:at] if argument.startswith(b"--privilege")]
    restricted = privilege in {Privilege.STAPUSR, Privilege.STAPSYS}
    assert in_front == ([b"--privilege=" + privilege.value.encode()] if restricted else [])


def test_environment_takes_the_client_s_locale():
    environ = {b"PATH": b"/bin", b"LANG": b"C", b"NOTIFY_SOCKET": b"/n", b"CREDENTIALS_DIRECTORY": b"/c"}
    assert stap_environment(environ, (("LANG", "fr_FR.utf8"),)) == {b"PATH": b"/bin", b"LANG": b"fr_FR.utf8"}


def test_request_is_written_privately(tmp_path):
    request = CompileRequest(
        release="6.1",
        arch="x86_64",
        files=(RequestFile(b"script/home/\xff.stp", b"probe"), RequestFile(b"tapset/t/a.stp", b"")),
        directories=(b"empty", b"script", b"script/home", b"tapset", b"tapset/t"),
    )
    write_request(request, tmp_path)
    base = os.fsencode(tmp_path)
    assert Path(os.fsdecode(base + b"/script/home/\xff.stp")).read_bytes() == b"probe"
    assert (tmp_path / "empty").is_dir()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}


def read(answer: Path, max_bytes: int = 1000) -> tuple[ResponseFile, ...]:
    with trees.open_directory(answer) as opened:
        return read_answer(opened, max_bytes=max_bytes)


def test_answer_holds_what_clients_use_and_no_leftovers(tmp_path):
    answer = tmp_path / "stap000000"
    (answer / "uprobes").mkdir(parents=True)
    for name in ("a.ko", "a_src.c", "stapconf_1.h", "uprobes/uprobes.ko", "d.so", "b.bo"):
        (answer / name).write_text(name)
    for name in (
        "a.o",
        "a.ko.sgn",
        "\udcff.c",
        "a.mod.c",
        "a.mod",
        ".a.o.cmd",
        "Makefile",
        "Module.symvers",
        "modules.order",
    ):
        (answer / name).write_text("left over")
    files = {file.path: file.data for file in read(answer)}
    wanted = ("a.ko", "a_src.c", "b.bo", "d.so", "stapconf_1.h", "uprobes/uprobes.ko")
    assert files == {f"stap000000/{name}": name.encode() for name in wanted}


def test_answer_never_follows_a_link_or_waits_on_a_pipe(tmp_path):
    answer = tmp_path / "stap000000"
    answer.mkdir()
    (tmp_path / "secret.c").write_text("key")
    os.mkfifo(answer / "pipe.c")
    (answer / "link.c").symlink_to(tmp_path / "secret.c")
    (answer / "directory").symlink_to(tmp_path)
    assert read(answer) == ()


def test_too_many_files_are_an_error_before_they_are_read(tmp_path, monkeypatch):
    for number in range(20):
        (tmp_path / f"{number}.c").touch()
    for name, bound in (("MAX_FILES", 10), ("_MAX_ENTRIES", 19)):
        with monkeypatch.context() as patched:
            patched.setattr(stap_module, name, bound)
            with pytest.raises(TranslatorError, match="answer has too many files") as caught:
                read(tmp_path)
        assert caught.value.reject_reason is RejectReason.ANSWER_SIZE
    assert len(read(tmp_path)) == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_answer_that_cannot_be_read_whole_is_an_error(tmp_path):
    (tmp_path / "sealed").mkdir(mode=0)
    with pytest.raises(PermissionError):
        read(tmp_path)


def test_deep_answer_is_an_error(tmp_path):
    make_deep(tmp_path)
    with pytest.raises(OSError, match="nested more than 100 deep"):
        read(tmp_path)
    trees.remove(tmp_path)


def test_answer_above_the_limit_is_an_error(tmp_path):
    answer = tmp_path / "stap000000"
    answer.mkdir()
    (answer / "a.ko").write_bytes(bytes(600))
    (answer / "b.ko").write_bytes(bytes(600))
    with pytest.raises(TranslatorError) as caught:
        read(answer)
    assert str(caught.value) == "The answer is larger than 1000 bytes; ask for less at once"


def test_longest_private_path_is_redacted_first():
    text = (
        b"/home/s/.systemtap/cache/x.ko at /home/s/y and /tmp/w/r/response/stap000000/z.c in /tmp/w/r/request"
    )
    hidden = (Path("/home/s"), Path("/tmp/w/r"), Path("/tmp/w/r/response"))
    assert redact(text, hidden) == (
        b"<server>/.systemtap/cache/x.ko at <server>/y and <server>/stap000000/z.c in <server>/request"
    )
    assert redact(b"/usr/share", (Path("/"),)) == b"/usr/share"


@pytest.mark.parametrize(
    ("tested", "release", "is_told"),
    [
        ("3.10 ... 6.1", "6.2.0-rc1", True),
        ("2.6.32 ... 6.1-rc3", "10.0", True),
        ("3.10 ... 6.1", "6.1.55", False),
        ("3.10 ... 6.1", "5.19", False),
        ("3.10 ... 6.1", "odd", False),
        ("", "6.2", False),
    ],
)
def test_kernel_newer_than_those_that_stap_was_tested_with_is_explained(tested, release, is_told):
    told = f"stap 4.8 was tested with Linux {tested}; install a later SystemTap" if is_told else None
    assert StapProgram(Path("/usr/bin/stap"), "4.8", tested).explain_untested(release) == told


@pytest.mark.anyio
class TestFindStap:
    async def test_variable_names_the_program(self, tmp_path):
        stap = make_stap(tmp_path / "mystap", "exit 1")
        assert await find_stap({"SYSTEMTAP_STAP": str(stap)}) == StapProgram(stap, "4.8")

    async def test_program_is_found_on_the_path(self, tmp_path):
        stap = make_stap(tmp_path / "stap", "exit 1")
        assert await find_stap({"PATH": f"/nowhere:{tmp_path}"}) == StapProgram(stap, "4.8")

    async def test_kernels_that_it_was_tested_with_are_read(self, tmp_path):
        stap = tmp_path / "stap"
        stap.write_text(
            "#!/bin/sh\necho '(version 4.8/0.1)'; echo 'tested kernel versions: 2.6.32 ... 6.1-rc3'\n"
        )
        stap.chmod(0o755)
        assert (await find_stap({"SYSTEMTAP_STAP": str(stap)})).tested == "2.6.32 ... 6.1-rc3"

    async def test_missing_program_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            await find_stap({"PATH": str(tmp_path)})
        assert str(caught.value) == (
            "stap was not found; install SystemTap (Debian: systemtap), or name it in SYSTEMTAP_STAP"
        )

    async def test_other_program_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError) as caught:
            await find_stap({"SYSTEMTAP_STAP": "/bin/true"})
        assert str(caught.value) == (
            "/bin/true --version: does not say its version; name a working stap in SYSTEMTAP_STAP"
        )
