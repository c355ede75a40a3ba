"""A host for supervisors, and servers that cannot be made ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kit.hosting import bench  # noqa: F401 - a fixture
from kit.kernel import Kernel

from stapsrv.supervisor.runtime import Runtime


@pytest.fixture
def break_prepare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make preparing a server raise the given errors, one a time, and then work again."""

    def install(*errors: Exception) -> None:
        left = list(errors)
        real = Runtime.prepare

        async def prepare(self, settings, log, **options):
            if left:
                raise left.pop(0)
            return await real(self, settings, log, **options)

        monkeypatch.setattr(Runtime, "prepare", prepare)

    return install


@pytest.fixture
def kernel(bench, tmp_path: Path) -> Kernel:  # noqa: F811 - the fixture
    return Kernel(bench, tmp_path)
