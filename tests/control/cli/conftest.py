"""A supervisor that obeys, and what it and the command line call its servers."""

from __future__ import annotations

import pytest
from kit.supervisor import FakeSupervisor, listening, server_info

from stapsrv.config.kernels import host_arch

ARCH = host_arch()


@pytest.fixture
def title(command_line, user):
    """What a server is called in the original's lines."""

    def called(release: str, nickname: str | None = None, port: int | None = None) -> str:
        name = "" if nickname is None else f' -n "{nickname}"'
        listens = "" if port is None else f' --port "{port}"'
        return f'stap-server -a "{ARCH}" -r "{release}" -u "{user}"{name} --log "{command_line.log}"{listens}'

    return called


@pytest.fixture
def settings(command_line, user):
    """What a supervisor has on record for a server."""

    def recorded(release: str, **others: object) -> dict[str, object]:
        base = {"ARCH": ARCH, "RELEASE": [release], "USER": user, "LOG": str(command_line.log)}
        return {**base, **others}

    return recorded


@pytest.fixture
def supervisor(command_line, user):
    with listening(FakeSupervisor(user), command_line.stat_path) as supervisor:
        yield supervisor


@pytest.fixture
def hosting(supervisor, settings):
    """The supervisor, with two servers: ``web``, and one without a nickname."""
    web = server_info(4194305, settings=settings("5.10", NICKNAME="web", PORT=7001))
    plain = server_info(4194306, settings=settings("6.1"))
    supervisor.servers = {4194305: web, 4194306: plain}
    supervisor.next_id = 4194307
    return supervisor
