"""Mount plans: nothing redundant, and in an order in which mounts can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.mounts import access_to

from stapsrv.sandbox.mount_plan import Access, plan_mounts
from stapsrv.system.symlinks import Link

READ, WRITE, EMPTY, FILE = Access.READ, Access.WRITE, Access.EMPTY_DIRECTORY, Access.EMPTY_FILE


def plan(*mounts: tuple[str, Access], links: tuple[tuple[str, str], ...] = ()):
    return plan_mounts(
        {Path(path): access for path, access in mounts},
        [Link(Path(path), target) for path, target in links],
        directory=Path("/"),
        network=False,
    )


@pytest.mark.parametrize(
    ("mounts", "kept"),
    [
        ([("/usr/lib", READ), ("/usr", READ)], [("/usr", READ)]),
        ([("/usr", READ), ("/usr/cache", WRITE)], [("/usr", READ), ("/usr/cache", WRITE)]),
        ([("/a", READ), ("/a/ssl", EMPTY)], [("/a", READ), ("/a/ssl", EMPTY)]),
        ([("/a", READ), ("/a/key", FILE)], [("/a", READ), ("/a/key", FILE)]),
        # What is hidden already needs no cover.
        ([("/home/me", EMPTY), ("/home/me/run", EMPTY)], []),
        ([("/a", READ), ("/a/b", EMPTY), ("/a/b/c", EMPTY)], [("/a", READ), ("/a/b", EMPTY)]),
        # A part of what is hidden is shown.
        ([("/home/me", EMPTY), ("/home/me/cache", WRITE)], [("/home/me/cache", WRITE)]),
        (
            [("/a", READ), ("/a/b", EMPTY), ("/a/b/c", READ)],
            [("/a", READ), ("/a/b", EMPTY), ("/a/b/c", READ)],
        ),
        ([("/a", READ), ("/a", WRITE)], [("/a", WRITE)]),
    ],
)
def test_redundant_mounts_are_dropped(mounts, kept):
    made = plan(*mounts)
    assert [(str(path), access) for path, access in made.mounts.items()] == kept
    assert made.hidden == tuple(Path(path) for path, access in kept if access.is_hidden)


def test_links_are_kept_where_no_mount_shows_them():
    made = plan(("/usr", READ), links=(("/usr/bin/cc", "gcc"), ("/bin", "usr/bin"), ("/etc/localtime", "x")))
    assert [(str(link.path), link.target) for link in made.links] == [
        ("/bin", "usr/bin"),
        ("/etc/localtime", "x"),
    ]


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.dictionaries(PATHS, st.sampled_from([READ, WRITE, EMPTY])), PATHS)
def test_deepest_mount_decides(wanted, path):
    made = plan(*wanted.items())
    above = [place for place in (path, *map(str, Path(path).parents)) if place in wanted]
    expected = wanted[above[0]] if above else None
    found = access_to(made, Path(path))
    assert found is expected or {found, expected} == {None, EMPTY}
    depths = [len(place.parts) for place in made.mounts]
    assert depths == sorted(depths)
