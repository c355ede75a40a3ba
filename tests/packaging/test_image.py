"""The Dockerfile's images, as packaging/test-image built them, run by podman as the compose file has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kit.dockerfile import Image
from kit.engine import Container, Engine, kbuild_of, newest_release
from kit.machine import ROOT
from kit.real import finish, wait_until

EXAMPLES = ROOT / "packaging" / "container"
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
DOCKERFILE = Image.described_by(ROOT / "Dockerfile")
SERVER, CLIENT = "localhost/stapsrv:latest", "localhost/stapsrv-client:latest"
ADDRESS = f"localhost:{DOCKERFILE.ports[0]}"
LARGEST_MB = 450
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(900)


RELEASE = newest_release()
KBUILD = kbuild_of(RELEASE)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(os.environ["STAPSRV_IMAGES"])


def options_of_compose_file() -> list[str]:
    """What the compose file says of the server, in podman's words."""
    server = COMPOSE["server"]
    assert server["read_only"]
    mounts = [re.sub(r"\$\{KBUILD[^}]*\}", KBUILD, volume) for volume in server["volumes"]]
    return [
        "--read-only",
        *(f"--cap-drop={name}" for name in server["cap_drop"]),
        *(f"--security-opt={option}" for option in server["security_opt"]),
        *(f"--tmpfs={mount}" for mount in server["tmpfs"]),
        *(f"--volume={mount}" for mount in mounts),
        *(f"--env={name}={value}" for name, value in server["environment"].items()),
    ]


@pytest.fixture
def server(engine) -> Iterator[Container]:
    """A server that the environment configures, with a new volume and the kernels of this host."""
    engine.run("volume", "rm", "--force", "state")
    environ = ("STAPSRV_NICKNAME=lab", f"STAPSRV_RELEASE={RELEASE}", "STAPSRV_DRAIN_TIMEOUT=120s")
    options = [*options_of_compose_file(), *(f"--env={each}" for each in environ)]
    container = engine.start("server", SERVER, options=options)
    yield container
    container.remove()


@pytest.fixture
def client(engine, server) -> Iterator[Container]:
    """A container of the client's image in the server's network; it waits to be told what to do."""
    container = engine.start(
        "client",
        CLIENT,
        "infinity",
        network=f"container:{server.name}",
        options=["--entrypoint=sleep", f"--env=SERVER={ADDRESS}", f"--env=RELEASE={RELEASE}"],
    )
    yield container
    container.remove()


def status(server: Container) -> dict:
    """What is said inside of the one server; nothing while there is none."""
    shown = server.exec("stap-server", "ctl", "status", "--json").stdout or "{}"
    for supervisor in json.loads(shown).get("supervisors", []):
        for found in supervisor["servers"]:
            return {**found, "sandbox": supervisor["sandbox"]}
    return {"state": None}


def wait_serving(server: Container) -> dict:
    """Wait until it serves, and the health check is content; returns its status."""
    wait_until(lambda: status(server)["state"] == "serving")
    assert server.check_health() == "healthy"
    return status(server)


def serial(server: Container) -> str:
    return json.loads(server.exec("stap-server", "cert", "show", "--json").stdout)["serial"]


def requests(server: Container) -> int:
    """Return how many requests it has begun with; its log is JSON, as the compose file has it."""
    logged = [json.loads(line)["event"] for line in server.lines]
    return logged.count("request.one") + logged.count("request.many")


def test_image_is_what_the_dockerfile_says_and_small(engine, capsys):
    found = engine.inspect("image", SERVER)
    config = found["Config"]
    assert config["User"] == DOCKERFILE.user
    assert config["Entrypoint"] == DOCKERFILE.entrypoint
    assert list(config["Volumes"]) == DOCKERFILE.volumes
    assert list(config["ExposedPorts"]) == [f"{port}/tcp" for port in DOCKERFILE.ports]
    assert DOCKERFILE.environ.items() <= dict(each.split("=", 1) for each in config["Env"]).items()
    assert found["Healthcheck"]["Test"] == ["CMD", *DOCKERFILE.healthcheck]
    sizes = {name: engine.inspect("image", name)["Size"] / 1e6 for name in (SERVER, CLIENT)}
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{name}: {size:.0f} MB" for name, size in sizes.items()))
    assert sizes[SERVER] < LARGEST_MB


def test_life_of_a_server_in_a_container(server, client, engine):
    """Configured by the environment it compiles; SIGTERM finishes what runs; its certificate stays."""
    found = wait_serving(server)
    assert (found["nickname"], found["port"], found["origin"]) == ("lab", 5001, "environment")
    assert found["settings"]["RELEASE"] == [RELEASE]
    assert found["sandbox"] in {"landlock", "bubblewrap"}
    assert server.exec("ls", "/tmp/stap-server/stap-server").stdout.split() == ["control.sock", "lock"]
    plain = server.exec("stap-server", "ctl", "status")
    assert plain.status == 0
    assert '-n "lab"' in plain.stdout
    first = serial(server)

    ran = client.exec("hello")
    assert ran.status == 0, ran.stderr
    assert ran.module.endswith(".ko")

    begun = requests(server)
    compiling = client.begin(
        *("stap", f"--use-server={ADDRESS}", "-p4", "-r", RELEASE),
        *("-e", 'probe begin { println("still running") exit() }'),
    )
    wait_until(lambda: requests(server) > begun)
    assert server.stop() == 0
    ran = finish(compiling)
    assert ran.status == 0, ran.stderr
    assert ran.module.endswith(".ko")

    server.start_again()
    wait_serving(server)
    assert serial(server) == first
    assert server.stop() == 0


def test_new_volume_has_a_certificate_of_its_own(server, engine):
    wait_serving(server)
    options = [each.replace("=state:", "=other:") for each in options_of_compose_file()]
    other = engine.start("other", SERVER, options=options)
    try:
        wait_serving(other)
        assert serial(other) != serial(server)
    finally:
        other.remove()


def test_container_without_kernels_says_so_and_ends(engine):
    options = [each for each in options_of_compose_file() if ":ro" not in each]
    container = engine.start("bare", SERVER, options=options)
    try:
        assert engine.run("wait", container.name).stdout.strip() == "1"
        said = [line for line in container.lines if "mount /lib/modules and /usr/src of a host" in line]
        assert len(said) == 1, container.lines
    finally:
        container.remove()


@pytest.mark.parametrize(
    "command",
    [
        ("check-jsonschema", "--no-cache", "--builtin-schema", "vendor.compose-spec", "compose.yaml"),
        ("kubernetes-validate", "--strict", "kubernetes.yaml"),
    ],
    ids=["compose", "kubernetes"],
)
def test_examples_fit_their_schemas(command):
    ran = subprocess.run(
        [PROGRAMS / command[0], *command[1:]], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
