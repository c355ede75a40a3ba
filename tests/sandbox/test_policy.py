"""The mounts of a request, on a host of files and links made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
from kit.mounts import access_to

from stapsrv.config.kernels import ServedRelease
from stapsrv.sandbox.mount_plan import Access
from stapsrv.sandbox.policy import SandboxPolicy, make_caches, request_mounts
from stapsrv.system.symlinks import Link

READ, WRITE = Access.READ, Access.WRITE


@pytest.fixture
def policy(tmp_path):
    """A server's user with a home, certificates, a kernel and a request."""
    home = tmp_path / "home"
    for directory in (
        "home/.systemtap/ssl/server",
        "home/.systemtap/cache",
        "home/.systemtap/toolchains/1",
        "home/.systemtap/toolchains/2",
        "run/request.1",
        "run/request.2",
    ):
        (tmp_path / directory).mkdir(parents=True)
    (home / ".systemtap" / "rc").write_text("--rlimit-cpu=60\n")
    tree = tmp_path / "kernels" / "tree"
    tree.mkdir(parents=True)
    return SandboxPolicy(
        stap=Path("/usr/bin/stap"),
        environ={"PATH": "/usr/bin"},
        home=home,
        release=ServedRelease("none", "x86_64", "none", tree),
        known=(home / ".systemtap" / "toolchains" / "1",),
    )


def seen(policy: SandboxPolicy, tmp_path: Path):
    plan = request_mounts(policy, tmp_path / "run" / "request.1")
    return lambda path: access_to(plan, tmp_path / path)


def test_request_sees_its_directory_and_what_stap_needs(policy, tmp_path):
    access = seen(policy, tmp_path)
    assert access("run/request.1/response") is WRITE
    assert access("home/.systemtap/toolchains/1/ab") is READ
    assert access("home/.systemtap/rc") is READ
    assert access("kernels/tree/Makefile") is READ
    plan = request_mounts(policy, tmp_path)
    for path in ("/usr/bin/gcc", "/usr/lib/debug", "/etc/ld.so.cache"):
        assert access_to(plan, Path(path)) is READ
    assert not plan.network


@pytest.mark.parametrize(
    "path",
    [
        *("run/request.2", "home", "home/.bashrc", "kernels/other", "home/.systemtap/ssl/server/key4.db"),
        *("home/.systemtap/cache", "home/.systemtap/toolchains/2"),
    ],
)
def test_request_sees_nothing_else_of_the_user(policy, tmp_path, path):
    assert seen(policy, tmp_path)(path) is None


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/shadow", "/root", "/home", "/tmp", "/run", "/var/log", "/proc/1"]
)
def test_request_sees_nothing_private_of_the_host(policy, tmp_path, path):
    assert access_to(request_mounts(policy, tmp_path / "run"), Path(path)) is None


def test_secrets_stay_hidden_in_a_shown_directory(policy, tmp_path):
    (tmp_path / "home" / "log").touch()
    policy = attrs.evolve(policy, read=(tmp_path / "home",), secret=(tmp_path / "home" / "log",))
    access = seen(policy, tmp_path)
    assert access("home/tapset/x.stp") is READ
    assert access("home/.systemtap/ssl/server/key4.db") is Access.EMPTY_DIRECTORY
    assert access("home/log") is Access.EMPTY_FILE
    assert access("home/.systemtap/cache") is Access.EMPTY_DIRECTORY
    assert access("home/.systemtap/toolchains/1/ab") is READ


def test_environment_and_policy_name_further_paths(policy, tmp_path):
    for name in ("st", "opt", "ccache"):
        (tmp_path / name).mkdir(parents=True)
    environ = {"SYSTEMTAP_DIR": str(tmp_path / "st"), "SYSTEMTAP_TAPSET": f"{tmp_path / 'opt'}:relative"}
    policy = attrs.evolve(policy, environ=environ, write=(tmp_path / "ccache",))
    access = seen(policy, tmp_path)
    assert access("st/rc") is None
    assert access("opt/x.stp") is READ
    assert access("ccache/x") is WRITE
    assert access("home/.systemtap/rc") is None


def test_build_tree_brings_the_trees_it_refers_to(policy, tmp_path):
    """By links, as in Debian's headers; by its Makefile, as in one made with O=."""
    tree = policy.release.build_tree
    for name in ("kbuild/scripts", "source", "beside"):
        (tmp_path / "kernels" / name).mkdir(parents=True)
    (tree / "scripts").symlink_to("../kbuild/scripts")
    (tree / "Makefile").write_text(f"# made\ninclude {tmp_path / 'kernels' / 'source'}/Makefile\n")
    access = seen(policy, tmp_path)
    assert access("kernels/kbuild/scripts/sign-file") is READ
    assert access("kernels/source/Kbuild") is READ
    assert access("kernels/kbuild/x") is None
    assert access("kernels/beside") is None


def test_tree_behind_links_is_seen_under_each_name(policy, tmp_path):
    modules = tmp_path / "modules" / "6.1"
    modules.mkdir(parents=True)
    (modules / "build").symlink_to("../link")
    (tmp_path / "modules" / "link").symlink_to(policy.release.build_tree)
    plan = request_mounts(
        attrs.evolve(policy, release=attrs.evolve(policy.release, build_tree=modules / "build")),
        tmp_path / "run",
    )
    assert access_to(plan, policy.release.build_tree) is READ
    assert Link(modules / "build", "../link") in plan.links
    assert Link(tmp_path / "modules" / "link", str(policy.release.build_tree)) in plan.links


def test_debuginfod_urls_bring_the_network(policy, tmp_path):
    policy = attrs.evolve(policy, environ={"DEBUGINFOD_URLS": "https://debuginfod.example"})
    make_caches(policy)
    plan = request_mounts(policy, tmp_path / "run")
    assert plan.network
    assert access_to(plan, policy.home / ".cache" / "debuginfod_client") is WRITE
    assert access_to(plan, Path("/etc/hosts")) is READ


def test_fetched_debug_information_is_readable_without_network(policy, tmp_path):
    (policy.home / ".cache" / "debuginfod_client").mkdir(parents=True)
    assert seen(policy, tmp_path)("home/.cache/debuginfod_client/ab") is READ
    assert seen(policy, tmp_path)("home/.cache/other") is None


def test_stap_outside_usr_brings_its_installation(policy, tmp_path):
    for name in ("st/bin", "st/share/systemtap/tapset", "st/secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "st" / "bin" / "stap").touch()
    access = seen(attrs.evolve(policy, stap=tmp_path / "st" / "bin" / "stap"), tmp_path)
    assert access("st/bin/stap") is READ
    assert access("st/share/systemtap/tapset/x") is READ
    assert access("st/secret") is None


def test_cache_of_debuginfod_is_made_where_it_is_used(policy, tmp_path):
    make_caches(policy)
    assert not (tmp_path / "home" / ".cache").exists()
    make_caches(attrs.evolve(policy, environ={"DEBUGINFOD_URLS": "https://debuginfod.example"}))
    assert os.access(tmp_path / "home" / ".cache" / "debuginfod_client", os.W_OK)
