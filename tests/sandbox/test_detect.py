"""The sandbox of a host: the first backend whose trial succeeds, or an error."""

from __future__ import annotations

import threading
from pathlib import Path

import attrs
import pytest

from stapsrv.config.table import Limits
from stapsrv.errors import ConfigError
from stapsrv.process import Containment
from stapsrv.sandbox import backends, detect
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.detect import find_sandbox
from stapsrv.sandbox.sandbox import Sandbox

pytestmark = pytest.mark.anyio

STAP = Path("/usr/bin/true")


@pytest.fixture
def find(tmp_path):
    async def search(wanted="auto") -> Sandbox:
        environ = {"PATH": "/usr/bin"}
        found = await find_sandbox(wanted, STAP, environ, home=tmp_path / "home", workspace=tmp_path)
        assert not list(tmp_path.iterdir())
        return found

    return search


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the commands of backends; those that are not named fail."""

    def install(**commands):
        for backend in Backend:
            words = commands.get(backend.value, ("false",))
            monkeypatch.setattr(backends, f"_{backend.value}", lambda _plan, words=words: words)

    return install


READER = ("sh", "-c", 'shift 3; case $1 in cp) cp -t "$3" "$4"; exit 1;; esac', "sh")
"""Passes the trial without containing anything; the first words are those of the limits."""


async def test_first_backend_that_works_is_taken(find, stand_in):
    stand_in(bubblewrap=READER, landlock=READER)
    found = await find()
    assert (found.name, found.containment) == ("bubblewrap", Containment.NAMESPACE)
    stand_in(landlock=READER)
    found = await find()
    assert (found.name, found.containment) == ("landlock", Containment.DEATH_SIGNAL)


async def test_installed_backend_that_fails_is_told_and_a_missing_one_is_not(find, stand_in, monkeypatch):
    stand_in(bubblewrap=("sh", "-c", "echo bwrap: no >&2; exit 1"), landlock=READER)
    monkeypatch.setattr(backends.shutil, "which", lambda _name: "/usr/bin/bwrap")
    assert (await find()).failures == ("bubblewrap: bwrap: no",)
    monkeypatch.setattr(backends.shutil, "which", lambda _name: None)
    assert (await find()).failures == ()


async def test_no_working_backend_is_an_error_with_all_reasons(find, stand_in):
    stand_in(bubblewrap=("sh", "-c", "echo 'No permissions to create new namespace' >&2; exit 1"))
    with pytest.raises(ConfigError) as caught:
        await find()
    assert str(caught.value).startswith(
        "SANDBOX=auto: requests cannot be contained on this host (bubblewrap: No permissions to create new"
        " namespace; landlock: status 1); install bubblewrap and let users make"
    )
    assert "SANDBOX=off" in str(caught.value)


async def test_wanted_backend_is_not_replaced_by_another(find, stand_in):
    stand_in(landlock=READER)
    with pytest.raises(ConfigError, match=r"^SANDBOX=bubblewrap: .*\(bubblewrap: status 1\); "):
        await find("bubblewrap")
    assert (await find("landlock")).backend is Backend.LANDLOCK


async def test_backend_that_hides_nothing_is_refused(find, stand_in):
    stand_in(bubblewrap=("env", "--"))
    with pytest.raises(ConfigError, match="bubblewrap: it does not hide what it should"):
        await find()


async def test_backend_that_allows_no_writing_is_refused(find, stand_in):
    stand_in(bubblewrap=("sh", "-c", "shift 3; case $1 in cp) exit 1;; esac", "sh"))
    with pytest.raises(ConfigError, match="bubblewrap: it allows no file to be written"):
        await find()


async def test_paths_that_hang_are_an_error_in_time(find, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(detect, "_TRIAL_S", 0.05)
    monkeypatch.setattr(detect, "request_mounts", lambda *_arguments: gate.wait())
    try:
        with pytest.raises(
            ConfigError, match="the paths that requests see cannot be looked up: no answer within"
        ):
            await find()
    finally:
        gate.set()


async def test_missing_backend_program_is_named(find, stand_in):
    stand_in(bubblewrap=("/no/such/bwrap",))
    with pytest.raises(ConfigError, match=r"bubblewrap: nice: ./no/such/bwrap.: No such file or directory"):
        await find()


async def test_off_contains_nothing(find, stand_in):
    stand_in()
    found = await find("off")
    assert (found.name, found.backend) == ("off", None)
    assert found.containment is Containment.NAMESPACE
    command = found.command(attrs.NOTHING, Limits({"nice": 3}), ["program"])
    assert command[:8] == ["choom", "-n", "500", "--", "nice", "-n", "3", "setpriv"]
