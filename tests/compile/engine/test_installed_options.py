"""The options of the installed stap: how they are asked for, and which stap servers cannot use."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
from kit.stap import make_stap

from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.protocol.options import STAP_4_8, OptionValue
from stapsrv.errors import ConfigError, TranslatorError

pytestmark = pytest.mark.anyio


def count_runs(stap: Path) -> Path:
    """Let a stap write down each run from now on; returns the file."""
    runs = stap.with_name("runs")
    shebang, rest = stap.read_text().split("\n", 1)
    stap.write_text(f'{shebang}\necho "$@" >>{runs}\n{rest}')
    return runs


def upgrade(stap: Path, *names: str) -> None:
    """Replace a stap by one with further options, which take no value."""
    text = stap.read_text().replace("'--vp'", " ".join(f"'--{name}'" for name in ("vp", *names)))
    for name in names:
        text = text.replace("--skip-badvars=1", f"--skip-badvars=1|--{name}=1")
    new = stap.with_name("new")
    new.write_text(text)
    new.chmod(0o755)
    new.rename(stap)


@pytest.fixture
def stap(tmp_path: Path) -> StapProgram:
    return StapProgram(make_stap(tmp_path / "stap", "exit 1"), "4.8")


async def test_values_are_those_of_stap(stap):
    options = await InstalledOptions.read(stap, os.environ)
    table = await options.table_for([b"--" + name.encode() for name in STAP_4_8.long])
    assert table.long == {**STAP_4_8.long, "colour": None}


async def test_only_options_that_are_used_are_asked_for_and_once(stap):
    runs = count_runs(stap.path)
    options = await InstalledOptions.read(stap, os.environ)
    await options.table_for([b"-e", b"x", b"x.stp"])
    assert runs.read_text() == "--client-options --=1\n"
    arguments = [b"--unpriv", b"--color=always", b"--bogus"]
    for _ in range(3):
        table = await options.table_for(arguments)
    assert {name for name, takes in table.long.items() if takes is not None} == {"unprivileged", "color"}
    assert len(runs.read_text().splitlines()) == 4


async def test_replaced_stap_is_asked_again(stap):
    options = await InstalledOptions.read(stap, os.environ)
    assert "semantic-keep-going" not in (await options.table_for([b"--bpf"])).long
    upgrade(stap.path, "semantic-keep-going")
    table = await options.table_for([b"--semantic-keep-going"])
    assert table.long["semantic-keep-going"] is OptionValue.NONE
    assert table.long["bpf"] is None


@pytest.mark.parametrize("version", ["1.8", "3.3"])
async def test_old_stap_is_an_error(stap, version):
    with pytest.raises(ConfigError) as caught:
        await InstalledOptions.read(attrs.evolve(stap, version=version), os.environ)
    assert str(caught.value) == (
        f"{stap.path}: is of SystemTap {version}, which is too old; SystemTap 4.0 and later work"
    )


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "exit 0",
        "kill -9 $$",
        "echo \"stap: option '--=1' is ambiguous; possibilities: '--x'\" >&2; exit 1",
    ],
)
async def test_stap_that_does_not_say_its_options_is_an_error(stap, script):
    stap.path.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(ConfigError) as caught:
        await InstalledOptions.read(stap, os.environ)
    assert "say which options it has; SystemTap 4.0 and later work" in str(caught.value)


async def test_stap_that_cannot_be_asked_later_is_an_error_of_the_request(stap):
    options = await InstalledOptions.read(stap, os.environ)
    stap.path.unlink()
    with pytest.raises(TranslatorError):
        await options.table_for([b"--privilege=stapusr"])


async def test_value_of_an_option_that_stap_objects_to_is_not_known(stap):
    upgrade(stap.path, "refused")
    stap.path.write_text(stap.path.read_text().replace("|--refused=1", ""))
    options = await InstalledOptions.read(stap, os.environ)
    assert (await options.table_for([b"--refused"])).long["refused"] is None
