"""Directories and files made on behalf of others, and links that must not lead astray."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stapsrv.errors import ConfigError
from stapsrv.system.secure_dirs import Ownership, make_directory, make_file, open_lock

SHARED = Ownership(-1, -1, 0o1775)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o022, 0o077], autouse=True)
def umask(request):
    """Modes come out as asked for, whatever the caller's umask is."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_directory_and_its_parents_are_made(tmp_path):
    make_directory(tmp_path / "a" / "b" / "c", SHARED)
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o1775]


def test_what_exists_is_not_changed(tmp_path):
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / "log").write_text("kept")
    make_directory(tmp_path / "a", SHARED)
    make_file(tmp_path / "a" / "log", SHARED)
    assert mode(tmp_path / "a") == 0o700
    assert (tmp_path / "a" / "log").read_text() == "kept"


def test_file_and_its_directory_are_made(tmp_path):
    make_file(tmp_path / "a" / "log", Ownership(-1, -1, 0o664))
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "log")) == (0o755, 0o664)


def test_lock_is_made_once_and_not_inherited(tmp_path):
    for _ in range(2):
        fd = open_lock(tmp_path, "start.lock", os.geteuid())
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert mode(tmp_path / "start.lock") == 0o600


def test_parent_parts_of_a_path_work(tmp_path):
    make_directory(tmp_path / "a" / ".." / "b", SHARED)
    assert (tmp_path / "b").is_dir()


@pytest.mark.parametrize("target", ["elsewhere", "../outside", "."])
def test_links_are_followed_for_a_plain_user(tmp_path, target):
    if os.geteuid() == 0:
        pytest.skip("for root they do not")
    (tmp_path / "in" / "elsewhere").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "in" / "link").symlink_to(target)
    make_directory(tmp_path / "in" / "link" / "new", SHARED)
    assert (tmp_path / "in" / target / "new").is_dir()
    (tmp_path / "in" / "absolute").symlink_to(tmp_path / "outside")
    make_directory(tmp_path / "in" / "absolute" / "newer", SHARED)
    assert (tmp_path / "outside" / "newer").is_dir()


def test_circular_links_are_an_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the directory is not root's alone")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="leads through too many links"):
        make_directory(tmp_path / "a" / "new", SHARED)


def test_file_in_place_of_a_directory_is_an_error(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(ConfigError, match=r"cannot be made or opened: Not a directory; make it, or give"):
            make_directory(path, SHARED)


def test_lock_that_is_a_link_is_an_error(tmp_path):
    (tmp_path / "start.lock").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="cannot be made or opened: Too many levels of symbolic links"):
        open_lock(tmp_path, "start.lock", os.geteuid())


def test_unwritable_directory_is_an_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is unwritable for root")
    with pytest.raises(ConfigError, match=r"^/proc/1/stap: cannot be made or opened: "):
        make_directory(Path("/proc/1/stap"), SHARED)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestAsRoot:
    """What root makes is handed over, and only where nobody else can turn the way."""

    def test_what_is_made_belongs_to_its_owner(self, tmp_path):
        make_directory(tmp_path / "a" / "b", Ownership(4711, 4712, 0o750))
        make_file(tmp_path / "a" / "log", Ownership(-1, 4712, 0o664))
        os.close(open_lock(tmp_path / "a" / "b", "lock", 4711))
        owners = [(tmp_path / name).stat() for name in ("a", "a/b", "a/log", "a/b/lock")]
        assert [(owner.st_uid, owner.st_gid) for owner in owners] == [
            (0, 0),
            (4711, 4712),
            (0, 4712),
            (4711, 0),
        ]

    def test_links_in_root_s_directories_are_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        make_directory(tmp_path / "link" / "new", SHARED)
        assert (tmp_path / "real" / "new").is_dir()

    @pytest.mark.parametrize(("uid", "permissions"), [(4711, 0o755), (0, 0o775), (0, 0o1777)])
    def test_links_that_others_may_have_made_are_an_error(self, tmp_path, uid, permissions):
        (tmp_path / "shared").mkdir()
        (tmp_path / "target").mkdir()
        (tmp_path / "shared" / "link").symlink_to(tmp_path / "target")
        os.chown(tmp_path / "shared", uid, 0)
        (tmp_path / "shared").chmod(permissions)
        for path in (tmp_path / "shared" / "link", tmp_path / "shared" / "link" / "new"):
            with pytest.raises(ConfigError) as caught:
                make_directory(path, Ownership(4711, -1, 0o750))
            assert str(caught.value) == (
                f"{path}: leads through the link 'link', which others than root may change;"
                " give the path that it leads to"
            )
        assert list((tmp_path / "target").iterdir()) == []
