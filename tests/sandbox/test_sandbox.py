"""The sandbox with and without a backend: what it refuses, passes on and explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.errors import ConfigError
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.policy import SandboxPolicy, request_mounts
from stapsrv.sandbox.sandbox import Sandbox

STAP = Path("/usr/bin/true")


@pytest.mark.parametrize(
    ("status", "stderr", "error"),
    [
        (
            1,
            b"bwrap: No permissions to create new namespace\nmore\n",
            "bwrap: No permissions to create new namespace",
        ),
        (125, b"launcher: /opt: No such file or directory\n", "launcher: /opt: No such file or directory"),
        (1, b"parse error: bwrap: x\n", None),
        (0, b"bwrap: a warning\n", None),
    ],
)
def test_setup_error_is_the_first_line_of_a_wrapper_that_failed(status, stderr, error):
    assert Sandbox(Backend.BUBBLEWRAP).setup_error(status, stderr) == error


def test_environment_passes_whole_without_a_backend_but_for_the_temporary_directory():
    environ = {b"AWS_SECRET": b"x", b"PATH": b"/usr/bin", b"TMPDIR": b"/tmp"}
    place = {"temporary": Path("/own"), "network": False}
    assert Sandbox(None).environment(environ, **place) == environ | {b"TMPDIR": b"/own"}
    contained = Sandbox(Backend.LANDLOCK).environment(environ, **place)
    assert contained == {b"PATH": b"/usr/bin", b"TMPDIR": b"/own"}


def test_environment_keeps_only_known_variables():
    environ = {
        b"PATH": b"/usr/bin",
        b"LC_ALL": b"C",
        b"SYSTEMTAP_DIR": b"/st",
        b"AWS_SECRET": b"x",
        b"STAPSRV_PORT": b"1",
        b"https_proxy": b"p",
        b"MAKEFLAGS": b"-j",
        b"TMPDIR": b"/tmp",
    }
    contained = Sandbox(Backend.LANDLOCK)
    kept = contained.environment(environ, temporary=Path("/own"), network=False)
    assert kept == {b"PATH": b"/usr/bin", b"LC_ALL": b"C", b"SYSTEMTAP_DIR": b"/st", b"TMPDIR": b"/own"}
    assert b"https_proxy" in contained.environment(environ, temporary=Path("/own"), network=True)


def test_landlock_refuses_to_hide_a_part_of_a_directory(tmp_path):
    (tmp_path / "tapsets" / "ssl").mkdir(parents=True)
    policy = SandboxPolicy(
        stap=STAP,
        environ={"PATH": "/usr/bin"},
        home=tmp_path / "home",
        read=(tmp_path / "tapsets",),
        secret=(tmp_path / "tapsets" / "ssl",),
    )
    plan = request_mounts(policy, tmp_path / "request")
    for backend in (Backend.BUBBLEWRAP, None):
        Sandbox(backend).check_plan(plan)
    with pytest.raises(ConfigError) as caught:
        Sandbox(Backend.LANDLOCK).check_plan(plan)
    assert str(caught.value) == (
        f"{tmp_path}/tapsets: holds {tmp_path}/tapsets/ssl, which requests must not see, and landlock cannot"
        " hide a part of a directory; move one of the two"
    )
