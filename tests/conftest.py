"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import hypothesis
import pytest
import structlog
from kit.keys import quick_keys  # noqa: F401 - a fixture
from kit.real import Stap
from kit.warm import open_warm_stap

from stapsrv.identity.certificate import load_or_create_identity

REAL = Path(__file__).parent / "real"

# The same examples each time, and nothing written beside the tests, which may belong to somebody else.
hypothesis.settings.register_profile("stapsrv", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("stapsrv")

# No server that a test starts is heard of on a real network; the tests of that have networks of their own.
os.environ["STAPSRV_MDNS"] = "no"
# Nor does it compile for anybody but the test.
os.environ["STAPSRV_WARMUP"] = "no"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Pass over a file without a test that ``-m`` selects: each process of a run takes seconds to read all.

    So a mark has to stand in the file of its tests, as ``mark.root`` does.
    """
    if collection_path.suffix != ".py":
        return None
    text = collection_path.read_text()
    is_real = REAL in collection_path.parents
    has_none = {
        "root": "mark.root" not in text,
        "not root": False,
        "real": not is_real and "mark.real" not in text,
        "not real": is_real,
    }
    wanted = config.getoption("-m").split(" and ")
    return (has_none.keys() >= set(wanted) and any(has_none[mark] for mark in wanted)) or None


def pytest_collection_finish() -> None:
    """Spare the collector of garbage what was made until now: it would look through it time and again."""
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both backends."""
    return str(request.param)


@pytest.fixture
def build_tree(tmp_path: Path) -> Path:
    """A kernel build tree as far as a server looks at it."""
    tree = tmp_path / "tree"
    (tree / "include" / "config").mkdir(parents=True)
    (tree / "include" / "config" / "kernel.release").write_text("6.1.0-test\n")
    return tree


@pytest.fixture(scope="session")
def pristine_identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate database, made once: keys are slow to make."""
    directory = tmp_path_factory.mktemp("identity") / "server"
    log = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])

    async def make() -> None:
        await load_or_create_identity(directory, log=log)

    anyio.run(make)
    return directory


@pytest.fixture
def identity(pristine_identity: Path, tmp_path: Path) -> Path:
    """A certificate database of the test's own."""
    copy = tmp_path / "identity"
    shutil.copytree(pristine_identity, copy)
    return copy


@pytest.fixture(scope="session")
def users_warm_stap() -> Iterator[Stap]:
    """A stap of the user stap-server's that has compiled before, for the tests that root runs."""
    with open_warm_stap() as stap:
        yield stap
