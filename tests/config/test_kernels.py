"""Releases, build trees, architecture names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stapsrv.config import kernels
from stapsrv.config.kernels import (
    ServedRelease,
    installed_releases,
    is_release_name,
    normalise_arch,
    resolve_release,
)
from stapsrv.errors import ConfigError


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("6.2.0-b", "6.1.0-a"):
        (tmp_path / name / "build").mkdir(parents=True)
    (tmp_path / "5.0-without-headers").mkdir()
    monkeypatch.setattr(kernels, "MODULES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("machine", "arch"),
    [
        ("x86_64", "x86_64"),
        ("i686", "i386"),
        ("i386", "i386"),
        ("sun4u", "sparc64"),
        ("armv7l", "arm"),
        ("sa110", "arm"),
        ("s390x", "s390"),
        ("aarch64", "arm64"),
        ("arm64", "arm64"),
        ("riscv64", "riscv"),
        ("ppc64le", "powerpc"),
        ("powerpc", "powerpc"),
        ("mips64", "mips"),
        ("sh4", "sh"),
        ("sh4a", "sh"),
        ("sparc64", "sparc64"),
    ],
)
def test_architectures_are_named_as_the_kernel_names_them(machine, arch):
    assert normalise_arch(machine) == arch
    assert normalise_arch(arch) == arch


@pytest.mark.parametrize("name", ["6.1.0-56-amd64", "2.6.18-128.el5", "6.12.107+deb12-amd64", "5.10~rc1"])
def test_names_of_releases(name):
    assert is_release_name(name)


@pytest.mark.parametrize("name", ["", "/lib", "../x", "-r", ".", "a b", "a\n", "a/b", "é"])
def test_names_that_are_no_release(name):
    assert not is_release_name(name)


def test_installed_releases_have_a_build_tree(modules, monkeypatch):
    assert installed_releases() == ["6.1.0-a", "6.2.0-b"]
    monkeypatch.setattr(kernels, "MODULES", modules / "nothing")
    assert installed_releases() == []


def test_release_by_name(modules):
    served = resolve_release("6.1.0-a", arch="x86_64")
    assert served == ServedRelease("6.1.0-a", "x86_64", "6.1.0-a", modules / "6.1.0-a" / "build")
    assert served.sysinfo == "6.1.0-a x86_64"


def test_release_by_build_tree(tmp_path):
    stated = tmp_path / "include" / "config"
    stated.mkdir(parents=True)
    (stated / "kernel.release").write_text("6.9.9-mine\n")
    served = resolve_release(str(tmp_path), arch="arm64")
    assert served == ServedRelease("6.9.9-mine", "arm64", str(tmp_path), tmp_path)


def test_release_of_a_build_tree_is_that_of_its_modules(tmp_path):
    """Debian's trees name the upstream version in the other file."""
    make_tree(tmp_path, '#define UTS_RELEASE "6.1.0-56-amd64"\n')
    assert resolve_release(str(tmp_path), arch="x86_64").name == "6.1.0-56-amd64"


@pytest.mark.parametrize("header", ["", "#define UTS_RELEASE\n", '#define UTS_RELEASE "not one"\n', "\xff"])
def test_build_tree_with_a_damaged_header_states_its_release(tmp_path, header):
    make_tree(tmp_path, header)
    assert resolve_release(str(tmp_path), arch="x86_64").name == "6.1.192"


def make_tree(tree, header):
    (tree / "include" / "config").mkdir(parents=True)
    (tree / "include" / "config" / "kernel.release").write_text("6.1.192\n")
    (tree / "include" / "generated").mkdir()
    (tree / "include" / "generated" / "utsrelease.h").write_text(header)


def test_missing_build_tree_names_package_and_alternatives(modules):
    with pytest.raises(ConfigError) as caught:
        resolve_release("9.9", arch="x86_64")
    assert str(caught.value) == (
        f"-r 9.9: {modules}/9.9/build is missing; install the headers of that kernel (Debian: "
        "linux-headers-9.9), or serve one that is installed: 6.1.0-a, 6.2.0-b"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at everything")
def test_unreadable_modules_directory_has_no_releases(modules):
    """As a service manager hides them."""
    modules.chmod(0)
    try:
        assert installed_releases() == []
        with pytest.raises(ConfigError) as caught:
            resolve_release("6.1.0-a", arch="x86_64")
    finally:
        modules.chmod(0o755)
    assert str(caught.value).startswith(
        f"-r 6.1.0-a: {modules}/6.1.0-a/build cannot be looked at: Permission denied"
    )


def test_unconfigured_build_tree(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resolve_release(str(tmp_path), arch="x86_64")
    assert str(caught.value) == (
        f"-r {tmp_path}: no kernel release in {tmp_path}/include/config/kernel.release (No such file or "
        "directory); give a configured and prepared kernel build tree (make modules_prepare)"
    )


@pytest.mark.parametrize("content", [b"\xff\n", b"not a release\n", b""])
def test_build_tree_with_a_damaged_release(tmp_path, content):
    (tmp_path / "include" / "config").mkdir(parents=True)
    (tmp_path / "include" / "config" / "kernel.release").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^-r {tmp_path}: "):
        resolve_release(str(tmp_path), arch="x86_64")


def test_neither_release_nor_path():
    with pytest.raises(ConfigError) as caught:
        resolve_release("../../etc", arch="x86_64")
    assert str(caught.value) == (
        "-r '../../etc': is not a kernel release; give a release such as 6.1.0-56-amd64, "
        "or the absolute path of a kernel build tree"
    )
