"""Daemons to be put under faults, on both event loops."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from kit.faulty import faulty_server
from kit.hosting import bench  # noqa: F401 - a fixture


@pytest.fixture(params=["asyncio", "trio"])
def backend(request):
    return request.param


@pytest.fixture
def serve(tmp_path, build_tree, identity, backend):
    """Start a daemon with the test's options; its log holds no traceback in the end."""
    with contextlib.ExitStack() as servers:
        begun = []

        def start(*options: object, **more: object):
            begin = partial(faulty_server, tmp_path, build_tree, identity, *options, backend=backend)
            begun.append(servers.enter_context(begin(**more)))
            return begun[-1]

        yield start
        for server in begun:
            assert "Traceback" not in server.log_text()
