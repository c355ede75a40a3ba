"""The farm of the compose file, in containers of the image that packaging/test-image built with it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import yaml
from kit.engine import Container, Engine, kbuild_of, newest_release
from kit.machine import ROOT
from kit.real import finish, wait_until

SERVICES = yaml.safe_load((ROOT / "packaging" / "container" / "farm-compose.yaml").read_text())["services"]
IMAGES = {"server": "localhost/stapsrv-farm:latest", "client": "localhost/stapsrv-client:latest"}
RELEASE = newest_release()
VARIABLES = {"RELEASE": RELEASE, "KBUILD": kbuild_of(RELEASE)}

pytestmark = pytest.mark.timeout(900)


@attrs.frozen
class Site:
    """The containers of a farm. All share the scheduler's network, which has a loopback interface only."""

    engine: Engine
    hosts: Path  # the file that gives it names
    held: contextlib.ExitStack

    def start(
        self, service: str, name: str, *command: str, network: str = "container:scheduler"
    ) -> Container:
        """Start a container of a service, as the compose file has it, or with another command."""
        program, *arguments = command or SERVICES[service].get("entrypoint", [""])
        own = [
            f"--volume={self.hosts}:/etc/hosts:ro",
            *options(service),
            *([f"--entrypoint={program}"] if program else []),
        ]
        if service == "worker":
            # It would compile for all of this host's before it offers one.
            own.append(f"--env=STAPSRV_RELEASE={RELEASE}")
        image = IMAGES[SERVICES[service]["build"]["target"]]
        words = [word.replace("$$", "$") for word in arguments]
        container = self.engine.start(name, image, *words, network=network, options=own)
        self.held.callback(container.remove)
        return container


def options(service: str) -> list[str]:
    """What the compose file says of a service, in podman's words."""
    said = SERVICES[service]
    environ = {
        name: VARIABLES[name] if value is None else value
        for name, value in said.get("environment", {}).items()
    }
    words = [
        *(["--read-only"] if said.get("read_only") else []),
        *(f"--cap-drop={name}" for name in said.get("cap_drop", ())),
        *(f"--security-opt={option}" for option in said.get("security_opt", ())),
        *(f"--tmpfs={mount}" for mount in said.get("tmpfs", ())),
        *(f"--volume={mount}" for mount in said.get("volumes", ())),
        *(f"--env={name}={value}" for name, value in environ.items()),
    ]
    return [re.sub(r"\$\{(\w+)[^}]*\}", lambda found: VARIABLES[found[1]], word) for word in words]


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    """A farm's authority, which has done its work, and its scheduler."""
    engine = Engine(os.environ["STAPSRV_IMAGES"])
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost scheduler server\n")
    with contextlib.ExitStack() as held:
        for volume in ("authority", "farm", "state"):
            engine.run("volume", "rm", "--force", volume)
            held.callback(engine.run, "volume", "rm", "--force", volume)
        site = Site(engine, hosts, held)
        authority = site.start("authority", "authority", network=SERVICES["authority"]["network_mode"])
        assert engine.run("wait", authority.name).stdout.strip() == "0", authority.lines
        site.start("scheduler", "scheduler", network="none")
        yield site


def is_compiling(node: Container) -> bool:
    return node.exec("pgrep", "-x", "stap").status == 0


def test_farm_of_the_compose_file_survives_the_end_of_a_node(site):
    nodes = [
        site.start("worker", f"worker-{number}") for number in range(SERVICES["worker"]["deploy"]["replicas"])
    ]
    server = site.start("server", "server")
    for node in nodes:
        wait_until(lambda node=node: any("is offered" in line for line in node.lines))
    wait_until(lambda: any("Farm: connected " in line for line in server.lines))
    wait_until(lambda: server.check_health() == "healthy")
    client = site.start("client", "client", "sleep", "infinity")

    ran = client.exec("hello")
    assert ran.status == 0, ran.stderr
    assert ran.module.endswith(".ko")

    words = ("--use-server=server:5001", "-p4", "-r", RELEASE)
    compiling = client.begin("stap", *words, "-e", 'probe begin { println("elsewhere") exit() }')
    wait_until(lambda: any(is_compiling(node) for node in nodes))
    next(node for node in nodes if is_compiling(node)).kill()
    ran = finish(compiling)
    assert ran.status == 0, ran.stderr
    assert ran.module.endswith(".ko")
