"""The paths, packages and variables of a host that a result depends on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.inputs import HostInputs
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.config.kernels import ServedRelease, host_release
from stapsrv.config.settings import ServerSettings


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """As much of an installation of stap as is read."""
    prefix = tmp_path / "usr"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "stap").write_bytes(b"\x7fELF and more")
    (prefix / "share" / "systemtap" / "tapset").mkdir(parents=True)
    return prefix


def host_inputs(prefix: Path, *, contained: str = "", **environ: str) -> HostInputs:
    stap = StapProgram(prefix / "bin" / "stap", "4.8")
    inputs = HostInputs(stap, {"PATH": "/usr/bin:bin", **environ}, prefix / "own", contained=contained)
    inputs.rc = inputs.read_rc()
    return inputs


def release(tree: Path, name: str = "6.1") -> ServedRelease:
    return ServedRelease(name, "x86_64", name, tree)


def test_paths_of_tapsets_and_toolchain(prefix, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Makefile").write_text("include /usr/src/common/Makefile\n")
    inputs = host_inputs(
        prefix,
        XDG_DATA_DIRS="/a:/b",
        SYSTEMTAP_DEBUGINFO_PATH="+:.debug:/debug",
        XDG_DATA_HOME="/home/x",
        LD_LIBRARY_PATH="/opt/lib:lib",
    )
    paths = inputs.paths(release(tree), ServerSettings(include=("/tapset",), runtime="/runtime"))
    assert paths.tapsets == (
        WatchedPath(str(prefix / "share/systemtap/tapset")),
        WatchedPath("/tapset"),
        WatchedPath("/home/x/systemtap/tapset"),
        WatchedPath("/a/systemtap/tapset"),
        WatchedPath("/b/systemtap/tapset"),
    )
    assert {
        WatchedPath("/runtime"),
        WatchedPath(str(tree)),
        WatchedPath("/usr/src/common"),
        WatchedPath("/lib/modules/6.1"),
        WatchedPath("/boot", recursive=False),
        WatchedPath("/boot/.debug"),
        WatchedPath("/usr/lib/bfd-plugins"),
        WatchedPath("/usr/lib/.build-id"),
        WatchedPath("/usr/lib/locale"),
        WatchedPath("/usr/include", recursive=False),
        WatchedPath("/debug"),
        WatchedPath("/usr/bin", recursive=False),
        WatchedPath("/opt/lib", recursive=False),
    } <= set(paths.toolchain)
    assert WatchedPath("bin", recursive=False) not in paths.toolchain


def test_paths_need_no_descriptor(prefix, tmp_path, monkeypatch):
    """A request may be the first to ask for them, when descriptors have run out; Python would import."""
    inputs = host_inputs(prefix)

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("io.open", fail)
    monkeypatch.setattr("sysconfig.get_config_var", fail)
    assert (
        WatchedPath("/usr/bin", recursive=False)
        in inputs.paths(release(tmp_path), ServerSettings()).toolchain
    )


def test_dot_dot_in_a_path_is_not_resolved(prefix, tmp_path):
    settings = ServerSettings(include=("/link/../tapset", "/a//b/"))
    tapsets = host_inputs(prefix).paths(release(tmp_path), settings).tapsets
    assert tapsets[1:3] == (WatchedPath("/link/../tapset"), WatchedPath("/a/b"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda prefix: None, None),
        (lambda prefix: (prefix / "bin" / "stap").write_text("#!/bin/sh\n"), "program"),
        (lambda prefix: (prefix / "share" / "systemtap" / "tapset").rmdir(), "tapsets"),
    ],
    ids=["sound", "script", "elsewhere"],
)
def test_unknown_installation_is_a_fault(prefix, change, fault):
    change(prefix)
    assert host_inputs(prefix).fault == fault


def test_replaced_stap_is_a_fault(prefix):
    """It has tapsets of its own, which nobody watches."""
    link = prefix / "stap"
    link.symlink_to(prefix / "bin" / "stap")
    inputs = HostInputs(StapProgram(link, "4.8"), {}, prefix / "own")
    assert inputs.fault is None
    link.unlink()
    link.symlink_to(prefix / "bin" / "stap-5.0")
    assert inputs.fault == "program"


@pytest.mark.parametrize("name", ["CPATH", "KCFLAGS", "LD_PRELOAD", "CROSS_COMPILE"])
def test_path_in_a_variable_of_make_is_a_fault(prefix, name):
    assert host_inputs(prefix, **{name: "-I/opt/x"}).fault == "environment"
    assert host_inputs(prefix, **{name: "plain"}).fault is None


def test_debuginfod_is_a_fault(prefix):
    assert host_inputs(prefix, DEBUGINFOD_URLS="https://example.org").fault == "debuginfod"
    assert host_inputs(prefix, DEBUGINFOD_URLS="").fault is None


def test_state_digest_follows_rc_and_stap(prefix, tmp_path):
    (prefix / "own").mkdir()
    inputs = HostInputs(StapProgram(prefix / "bin" / "stap", "4.8"), {"PATH": "/usr/bin"}, prefix / "own")

    def state() -> bytes | None:
        inputs.rc = inputs.read_rc()
        return inputs.state_digest(release(tmp_path))

    assert inputs.state_digest(release(tmp_path)) is None
    before = state()
    assert before is not None
    assert state() == before
    rc = prefix / "own" / "rc"
    rc.write_text("--rlimit-cpu=100\n")
    limited = state()
    assert limited not in {None, before}
    rc.write_text("-I /opt/tapset\n")
    assert inputs.state_digest(release(tmp_path)) == limited
    assert state() is None
    rc.unlink()
    assert state() == before
    (prefix / "bin" / "stap").write_bytes(b"\x7fELF of another version")
    assert state() not in {None, before}


def test_state_digest_ignores_variables_of_the_process(prefix, tmp_path):
    before = host_inputs(prefix).state_digest(release(tmp_path))
    assert host_inputs(prefix, INVOCATION_ID="1", TMPDIR="/x").state_digest(release(tmp_path)) == before
    assert host_inputs(prefix, KCFLAGS="-O3").state_digest(release(tmp_path)) != before
    assert host_inputs(prefix, contained="off").state_digest(release(tmp_path)) != before


def test_state_digest_follows_the_kernel_s_lockdown(prefix, tmp_path, monkeypatch):
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr("stapsrv.compile.cache.inputs._LOCKDOWN", (str(tmp_path / "none"), str(lockdown)))
    inputs = host_inputs(prefix)
    digests = {inputs.state_digest(release(tmp_path))}
    for text in ("[none] integrity", "none [integrity]"):
        lockdown.write_text(text)
        digests.add(inputs.state_digest(release(tmp_path)))
    assert len(digests) == 3


def test_state_digest_of_the_running_kernel_has_its_modules(prefix, tmp_path):
    inputs = host_inputs(prefix)
    assert inputs.state_digest(release(tmp_path, host_release())) != inputs.state_digest(
        release(tmp_path, "6.1")
    )
