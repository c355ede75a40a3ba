"""A supervisor that obeys, and what it and the command line call its servers."""

from __future__ import annotations

import pytest
from kit.control import listening
from kit.supervisor import FIRST_ID, FakeSupervisor, server_status

from stapsrv.config.kernels import host_arch
from stapsrv.config.settings import ServerSettings

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

    def recorded(release: str, **others: object) -> ServerSettings:
        return ServerSettings(arch=ARCH, releases=(release,), user=user, log=command_line.log, **others)

    return recorded


@pytest.fixture
def supervisor(command_line, user):
    with listening(FakeSupervisor(user=user), command_line.stat_path) as supervisor:
        yield supervisor


@pytest.fixture
def hosting(supervisor, settings):
    """The supervisor, with two servers: ``web``, and one without a nickname."""
    web = server_status(FIRST_ID, settings=settings("5.10", nickname="web", port=7001))
    plain = server_status(FIRST_ID + 1, settings=settings("6.1"))
    supervisor.servers = {server.id: server for server in (web, plain)}
    return supervisor
