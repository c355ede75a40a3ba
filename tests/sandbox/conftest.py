"""Each backend that works on this host, and a witness of what a program leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.trees import Witness

from stapsrv.errors import ConfigError
from stapsrv.sandbox.backends import Backend
from stapsrv.sandbox.detect import find_sandbox


@pytest.fixture
def witness(tmp_path: Path):
    made = Witness(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def available(tmp_path: Path):
    """Skip the test where a backend does not work on this host."""

    async def check(backend: Backend) -> Backend:
        stap = Path("/usr/bin/true")
        try:
            await find_sandbox(backend.value, stap, {"PATH": "/usr/bin"}, home=tmp_path, workspace=tmp_path)
        except ConfigError as exc:
            # One that is installed and fails would else be missed.
            if backend.is_installed and "Landlock: " not in str(exc):
                pytest.fail(str(exc), pytrace=False)
            pytest.skip(str(exc))
        return backend

    return check


@pytest.fixture(params=Backend, ids=lambda backend: backend.value)
async def backend(request: pytest.FixtureRequest, available) -> Backend:
    return await available(request.param)
