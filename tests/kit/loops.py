"""Every event loop that a server may run on, for tests of what differs between them."""

from __future__ import annotations

import pytest

# For async tests, or the ``pytestmark`` of a module of them: instead of the two loops of the other tests.
every_loop = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
