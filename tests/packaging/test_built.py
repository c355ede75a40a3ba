"""What is given to others: wheel, source distribution, Debian package, and the tree of ``make install``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from kit.machine import ROOT, SYSTEM_PATH, machine

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
CLEAN = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), "-t", kind]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


def test_wheel_gives_all_commands(wheel, tmp_path):
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=60, env=CLEAN)
    assert {path.name for path in (target / "bin").iterdir()} == set(SCRIPTS)
    assert (target / "stapsrv" / "py.typed").exists()
    for name in SCRIPTS:
        ran = subprocess.run(
            [target / "bin" / name, "--help"],
            env=CLEAN | {"PYTHONPATH": str(target)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout.startswith(f"usage: {name}")


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"stapsrv"}
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    source = build(ROOT, tmp_path / "sdist", "sdist")
    subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(source)], check=True)
    (unpacked,) = tmp_path.glob("stapsrv-*")
    for name in ("Dockerfile", "Makefile", "packaging/install", "docs/containers.md", "tests/conftest.py"):
        assert (unpacked / name).exists()
    assert os.access(unpacked / "packaging" / "install", os.X_OK)
    again = build(unpacked, tmp_path / "again", "wheel")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"PREFIX": "relative"}, "is no absolute path without blanks: set PREFIX, "),
        ({"DESTDIR": "relative"}, "is no absolute path without blanks: set PREFIX, "),
        ({"SYSCONFDIR": "/with blank"}, "is no absolute path without blanks: set PREFIX, "),
        ({"EXTRAS": "farm]; x"}, "names no optional parts: set EXTRAS to "),
    ],
)
def test_wrong_variable_is_one_line_and_nothing_installed(environ, problem, tmp_path):
    ran = subprocess.run(
        [ROOT / "packaging" / "install"],
        env=os.environ | {"DESTDIR": str(tmp_path)} | environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert re.fullmatch(rf"install: '.*' {problem}.*\n", ran.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_installed_tree(installed):
    """Every file is root's, for all to read, and in its place; nothing names the tree that it was made in."""
    for path in installed.rglob("*"):
        mode = path.lstat().st_mode
        assert not mode & 0o022 or path.is_symlink(), path
        assert mode & 0o444 == 0o444, path
    documents = installed / "usr" / "share" / "doc" / "stapsrv"
    linked = re.findall(r"\]\((docs/[^)#]+)", (documents / "README.md").read_text())
    assert linked
    assert all((documents / each).is_file() for each in linked)
    packages = installed / "usr" / "lib" / "stapsrv"
    for path in installed.rglob("*"):
        if path.is_file() and not path.is_symlink() and packages not in path.parents:
            assert str(installed).encode() not in path.read_bytes(), path
    assert {path.name for path in (installed / "usr" / "bin").iterdir()} == set(SCRIPTS)
    units = installed / "usr" / "lib" / "systemd" / "system"
    assert {path.name for path in units.iterdir()} == {
        path.name for path in (ROOT / "packaging" / "systemd").glob("*.s[eo]*") if "-port." not in path.name
    }
    assert len(list(packages.glob("lib/python3*/site-packages/distributed"))) == 1
    ran = subprocess.run(
        ["grep", "-rlF", str(installed), str(packages)], capture_output=True, text=True, check=False
    )
    assert ran.stdout == ""


@pytest.mark.root
@pytest.mark.timeout(300)
def test_debian_package(installed, tmp_path):
    """It takes the place of systemtap-server, brings all commands, makes its user, and goes again."""
    made = subprocess.run(
        [ROOT / "packaging" / "deb", installed],
        env=os.environ | {"DIST": str(tmp_path / "dist")},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    package = Path(made.stdout.strip())
    with machine(
        tmp_path / "root",
        ["sleep", "infinity"],
        mounts={package.parent: "/mnt/dist"},
        environ={"PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"},
        output=tmp_path / "output",
    ) as host:
        host.run("sh", "-c", "userdel stap-test; userdel stap-server; groupdel stap-server")
        # dpkg takes systemtap-server away for it, since both cannot be.
        ran = host.run("dpkg", "-i", f"/mnt/dist/{package.name}")
        assert ran.status == 0, ran.stderr
        state = "${db:Status-Status}\\n"
        assert host.run("dpkg-query", "-W", "-f", state, "stapsrv").stdout == "installed\n"
        assert host.run("dpkg-query", "-W", "-f", state, "systemtap-server").stdout != "installed\n"
        assert "(stapsrv)" in host.run("stap-server", "--version").stdout
        assert host.run("dpkg", "-V", "stapsrv").stdout == ""
        assert host.run("id", "-gn", "stap-server").stdout == "stap-server\n"
        shown = host.run("stat", "-c", "%U %a", "/var/lib/stap-server", "/var/log/stap-server").stdout
        assert shown == "stap-server 755\nstap-server 775\n"
        for page in ("stap-server.8", "stap-serverd.8", "stap-server.conf.5", "stap-gen-cert.1"):
            assert host.run("man", "-w", page).stdout.startswith("/usr/share/man/")
        assert host.run("dpkg", "-P", "stapsrv").status == 0
        assert host.run("test", "-e", "/usr/lib/stapsrv").status == 1
        assert host.run("test", "-d", "/var/lib/stap-server").status == 0
