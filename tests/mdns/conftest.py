"""The network of the tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kit.lan import Lan, open_lan
from kit.real import Installation, Unavailable


@pytest.fixture(scope="session")
def lan() -> Iterator[Lan]:
    """Two hosts with a cable between them; whatever runs there ends with the tests."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))
    with open_lan(installation) as opened:
        yield opened
