"""What the kernel's build wrote down, read back: recorded lists, and directories as stap leaves them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from kit.trees import make_deep

from stapsrv.compile.cache import depfile
from stapsrv.compile.cache.depfile import parse_dependencies, read_dependencies
from stapsrv.system import trees

# As Linux 6.1 writes them, shortened.
OBJECT = b"""\
cmd_/tmp/x/stap_1_src.o :=  gcc-12 -Wp,-MMD,/tmp/x/.stap_1_src.o.d -nostdinc -I./include -include /usr/src/c/kconfig.h -c -o /tmp/x/stap_1_src.o /tmp/x/stap_1_src.c

source_/tmp/x/stap_1_src.o := /tmp/x/stap_1_src.c

deps_/tmp/x/stap_1_src.o := \\
    $(wildcard include/config/FOO) \\
  /usr/src/common/include/linux/kconfig.h \\
    $(wildcard include/config/CC_VERSION_TEXT) \\
  include/generated/autoconf.h \\
  ./arch/x86/include/generated/asm/rwonce.h \\
  /var/lib/runtime/linux/../runtime.h \\
  /etc/hostname \\

/tmp/x/stap_1_src.o: $(deps_/tmp/x/stap_1_src.o)

$(deps_/tmp/x/stap_1_src.o):
"""  # noqa: E501 - as it is recorded
NEWER = OBJECT.replace(b"cmd_/", b"savedcmd_/")


@pytest.mark.parametrize("text", [OBJECT, NEWER], ids=["6.1", "6.4"])
def test_lists_name_every_file_and_no_option(text):
    assert parse_dependencies(text) == (
        "/tmp/x/stap_1_src.c",
        "/usr/src/common/include/linux/kconfig.h",
        "include/generated/autoconf.h",
        "./arch/x86/include/generated/asm/rwonce.h",
        "/var/lib/runtime/linux/../runtime.h",
        "/etc/hostname",
    )


@pytest.mark.parametrize("text", [b"", b"cmd_/tmp/x.ko := ld -r -o /tmp/x.ko /tmp/x.o", b"\xff\n:= \\\n"])
def test_commands_without_a_list_name_nothing(text):
    assert parse_dependencies(text) == ()


def leave_build(directory: Path) -> None:
    directory.mkdir()
    (directory / "stap_1.ko").write_bytes(b"ELF")
    (directory / ".stap_1_src.o.cmd").write_bytes(OBJECT.replace(b"/tmp/x", str(directory).encode()))


def test_dependencies_are_absolute_and_not_of_the_build(tmp_path):
    leave_build(tmp_path / "x")
    dependencies = read_dependencies(tmp_path, Path("x"), Path("/lib/modules/1/build"))
    assert dependencies == {
        "/usr/src/common/include/linux/kconfig.h",
        "/lib/modules/1/build/include/generated/autoconf.h",
        "/lib/modules/1/build/arch/x86/include/generated/asm/rwonce.h",
        "/var/lib/runtime/linux/../runtime.h",
        "/etc/hostname",
    }


def test_dependencies_of_builds_beside_the_module_count(tmp_path):
    leave_build(tmp_path / "x")
    query = tmp_path / "x" / "tracequery_1"
    query.mkdir()
    (query / ".query.o.cmd").write_bytes(b"deps_q := \\\n  /opt/trace.h \\\n\n")
    (tmp_path / "x" / "typequery_7.so").write_bytes(b"")
    dependencies = read_dependencies(tmp_path, Path("x"), Path("/b"))
    assert dependencies >= {"/opt/trace.h", f"{tmp_path}/x/typequery_7.so"}


def test_wildcard_that_never_ends_takes_linear_time():
    """Searched for its end from each of its beginnings, this would take minutes."""
    began = time.process_time()
    parse_dependencies(b"deps_x := " + b"$(wildcard " * 100_000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "large", "many", "deep"])
def test_records_that_no_build_leaves_are_not_read(tmp_path, monkeypatch, kind):
    """The read of a result's inputs then gives up, in time; a result without them is not stored."""
    leave_build(tmp_path / "x")
    record = tmp_path / "x" / ".stap_1_src.o.cmd"
    content = record.read_bytes()
    if kind in {"large", "many"}:
        monkeypatch.setattr(depfile, {"large": "_MAX_RECORD_BYTES", "many": "_MAX_PATHS_BYTES"}[kind], 2)
    elif kind == "deep":
        make_deep(tmp_path / "x")
    else:
        record.unlink()
        (tmp_path / "secret").write_bytes(content)
        make = {"link": lambda: record.symlink_to("../secret"), "fifo": lambda: os.mkfifo(record)}
        make.get(kind, record.mkdir)()
    with pytest.raises(OSError, match=r"\S"):
        read_dependencies(tmp_path, Path("x"), Path("/b"))
    trees.remove(tmp_path / "x")


def test_directory_of_records_is_not_followed(tmp_path):
    leave_build(tmp_path / "elsewhere")
    (tmp_path / "x").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        read_dependencies(tmp_path, Path("x"), Path("/b"))
