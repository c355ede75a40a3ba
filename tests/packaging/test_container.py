"""The image's entrypoint as process 1 of a container: as the Dockerfile has it, over the host's files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kit.dockerfile import Image
from kit.machine import ROOT, SYSTEM_PATH, Machine, machine
from kit.real import FollowedLog, finish, wait_until
from kit.warm import SCRIPT, USER

from stapsrv.config.addresses import parse_farm_address
from stapsrv.config.environment import refuse_unknown, server_values
from stapsrv.config.global_settings import global_from_environ
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.farm.options import LISTEN, parse_arguments

IMAGE = Image.described_by(ROOT / "Dockerfile")
CONTAINER = ROOT / "packaging" / "container"
COMMANDS = Path(sys.executable).parent
FARM_FILES = "/var/lib/stap-farm"

# As an engine does it, for a user who has no capabilities and gets none.
BECOME = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--inh-caps=-all")
BECOME += ("--bounding-set=-all", "--no-new-privs", "--")


class Container:
    """A container of the server's image, and what its engine does with it."""

    def __init__(self, machine: Machine, output: Path) -> None:
        self.machine = machine
        self.output = output

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines()

    def exec(self, *command: object):
        return self.machine.run(*command, user=USER)

    def servers(self) -> list[dict]:
        """What the supervisor says of its servers; nothing while there is none."""
        shown = self.exec("stap-server", "ctl", "status", "--json").stdout
        return [server for each in json.loads(shown)["supervisors"] for server in each["servers"]]

    def wait_healthy(self) -> None:
        """Wait until the servers serve; their engine then hears that all is well."""
        wait_until(lambda: {server["state"] for server in self.servers()} == {"serving"})
        assert self.exec(*IMAGE.healthcheck).status == 0

    def stop(self) -> int:
        """As ``docker stop``; returns the exit status."""
        self.machine.kill(signal.SIGTERM)
        return self.machine.wait()


@pytest.fixture
def run(warm_stap, tmp_path):
    """Run the image: ``docker run -v VOLUME:/var/lib/stap-server -e NAME=VALUE …``."""
    runtime = warm_stap.installation.runtime

    @contextlib.contextmanager
    def run(volume: Path, *, files: Path | None = None, **environ: str) -> Iterator[Container]:
        number = len(list(tmp_path.glob("container*.output")))
        output = tmp_path / f"container{number}.output"
        own = IMAGE.environ | {
            "PATH": f"{COMMANDS}:{SYSTEM_PATH}",
            "HOME": "/var/lib/stap-server",
            "STAPSRV_RUNTIME": str(runtime),
        }
        with machine(
            tmp_path / f"container{number}",
            [*BECOME, *IMAGE.entrypoint],
            files=files,
            mounts={volume: IMAGE.volumes[0], runtime: str(runtime)},
            environ=own | environ,
            output=output,
        ) as running:
            yield Container(running, output)

    return run


@pytest.fixture
def volume(tmp_path):
    """Make a volume that nobody has used."""

    def make(name: str) -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        subprocess.run(["chown", f"{USER}:{USER}", str(directory)], check=True)
        return directory

    return make


@contextlib.contextmanager
def client_beside(server: Container, tmp_path: Path) -> Iterator[Machine]:
    """A container of the client's image, in the server's network; it waits to be told what to do."""
    with machine(
        tmp_path / "client",
        [*BECOME, "sleep", "infinity"],
        environ={
            "PATH": f"{CONTAINER}:{SYSTEM_PATH}",
            "HOME": "/tmp/home",
            "LANG": "C.UTF-8",
            "SERVER": f"localhost:{IMAGE.ports[0]}",
        },
        output=tmp_path / "client.output",
        beside=server.machine,
    ) as client:
        client.run("mkdir", "/tmp/home", user=USER)
        yield client


@pytest.mark.root
@pytest.mark.real
@pytest.mark.timeout(300)
def test_life_of_a_container(run, home, warm_stap, tmp_path):
    """A client that knows but the address compiles; orphans are reaped; SIGTERM finishes what runs."""
    release = warm_stap.installation.release
    with (
        run(home("volume"), STAPSRV_DRAIN_TIMEOUT="60s") as server,
        client_beside(server, tmp_path) as client,
    ):
        server.wait_healthy()
        (found,) = server.servers()
        assert (found["nickname"], found["port"], found["origin"]) == ("container", 5001, "environment")
        assert set(found["settings"]["RELEASE"]) == set(warm_stap.installation.releases)

        ran = client.run("env", "-C", "/tmp/home", "hello", user=USER, environ={"RELEASE": release})
        assert ran.status == 0, ran.stderr
        assert ran.module.endswith(".ko")
        assert any(line.endswith(" complete") for line in server.lines)

        server.exec("sh", "-c", "sleep 0.05 & sleep 0.05 &")
        # Orphans are waited for; there are process 1, the daemon, and perhaps what that is starting.
        wait_until(lambda: "sleep" not in " ".join(server.machine.processes()))
        wait_until(
            lambda: [line.split()[2] for line in server.machine.processes()].count("stap-serverd") == 2
        )

        # The first one may still hold its worker, to store its result and remove its directory.
        before = sum("Processing " in line for line in server.lines)
        compiling = client.begin(
            *("env", "-C", "/tmp/home", "stap", f"--use-server=localhost:{IMAGE.ports[0]}", "-p4"),
            *("-r", release, "-e", SCRIPT.replace("hello", "still running")),
            user=USER,
        )
        with FollowedLog.open(server.output, server.machine.pid) as log:
            log.wait("Processing ", count=before + 1)
        assert server.stop() == 0
        ran = finish(compiling)
        assert ran.status == 0, ran.stderr
        assert any("Waiting for 1 outstanding request" in line for line in server.lines), server.lines


@pytest.mark.root
@pytest.mark.timeout(300)
def test_certificate_stays_with_the_volume(run, volume):
    """And no two volumes have the same. The log is JSON where that is asked for."""
    serials = []
    for name in ("one", "one", "two"):
        place = volume(name)
        with run(place, STAPSRV_LOG_FORMAT="json") as server:
            server.wait_healthy()
            shown = json.loads(server.exec("stap-server", "cert", "show", "--json").stdout)
            serials.append(shown["serial"])
            assert server.stop() == 0
            events = [json.loads(line)["event"] for line in server.lines]
            assert "server.listening" in events
    assert serials[0] == serials[1] != serials[2]


@pytest.mark.root
@pytest.mark.timeout(300)
def test_servers_of_mounted_files_go_before_the_environment(run, volume, tmp_path, warm_stap):
    """And a server that cannot serve makes the container unhealthy, not the others fail."""
    configured = tmp_path / "files" / "etc" / "stap-server" / "conf.d"
    configured.mkdir(parents=True)
    (configured / "good.conf").write_text(f"NICKNAME=good\nRELEASE={warm_stap.installation.release}\n")
    with run(volume("one"), files=tmp_path / "files") as server:
        server.wait_healthy()
        server.machine.run(
            "sh", "-c", "printf 'NICKNAME=bad\nRELEASE=9.9\n' >/etc/stap-server/conf.d/bad.conf"
        )
        server.machine.kill(signal.SIGHUP)
        wait_until(lambda: server.exec(*IMAGE.healthcheck).status == 1)
        assert {each["nickname"]: each["state"] for each in server.servers()} == {
            "good": "serving",
            "bad": "failed",
        }
        assert server.exec("stap-server", "stop", "-n", "bad").status == 0
        assert server.exec(*IMAGE.healthcheck).status == 0
        assert server.exec("stap-server", "stop").status == 0
        assert server.exec(*IMAGE.healthcheck).status == 3


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "value", "status", "line"),
    [
        (
            "STAPSRV_PORT",
            "tcp://10.0.0.1:5001",
            1,
            "STAPSRV_PORT='tcp://10.0.0.1:5001': expected a port number",
        ),
        ("STAPSRV_PROT", "5001", 1, "STAPSRV_PROT: unknown environment variable; did you mean STAPSRV_PORT?"),
        ("STAPSRV_LOG_FILE", "/nowhere/log", 1, "log file /nowhere/log: cannot be written (No such file"),
        ("LISTEN_FDS", "x", 1, "LISTEN_PID=: expected a number"),
    ],
)
def test_wrong_environment_is_one_line_and_no_start(run, volume, name, value, status, line):
    with run(volume("one"), **{name: value}) as server:
        assert server.machine.wait() == status
        (said,) = server.lines
        assert said.startswith(f"stap-serverd: {line}")
        assert not any(volume_path.name == "key4.db" for volume_path in server.output.parent.rglob("*"))


def test_dockerfile_is_clean():
    subprocess.run([COMMANDS / "hadolint", ROOT / "Dockerfile"], check=True, timeout=60)


def test_dockerfile_copies_what_there_is_and_is_let_through():
    text = (ROOT / "Dockerfile").read_text()
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {
        word.removeprefix("./")
        for line in re.findall(r"^COPY (?!--from)(.*)", text, flags=re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)
    packages = re.search(
        r"apt-get install -y --no-install-recommends systemtap systemtap-common (.*?)&&", text, re.DOTALL
    )
    installed = set(packages[1].replace("\\", " ").split())
    assert {"gcc", "make", "libnss3-tools", "bubblewrap"} <= installed
    assert not any("avahi" in package or "headers" in package for package in installed)


def test_compose_file_fits_the_image():
    compose = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
    server, client = compose["services"]["server"], compose["services"]["client"]
    for service in (server, client):
        assert f" AS {service['build']['target']}\n" in (ROOT / "Dockerfile").read_text()
        assert (CONTAINER / service["build"]["context"]).resolve() == ROOT
    assert server["ports"] == [f"{port}:{port}" for port in IMAGE.ports]
    assert f"state:{IMAGE.volumes[0]}" in server["volumes"]
    assert client["environment"]["SERVER"] == f"server:{IMAGE.ports[0]}"
    server_values(server["environment"])
    # Podman refuses an owner.
    assert not any("uid=" in mount for mount in server["tmpfs"])


def test_kubernetes_file_fits_the_image():
    documents = list(yaml.safe_load_all((CONTAINER / "kubernetes.yaml").read_text()))
    claim, service, deployment = documents
    assert [each["kind"] for each in documents] == ["PersistentVolumeClaim", "Service", "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ids = pod["securityContext"]
    assert f"{ids['runAsUser']}:{ids['runAsGroup']}" == IMAGE.user
    environ = {each["name"]: each["value"] for each in container["env"]}
    server_values(environ)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert [ports[service["spec"]["ports"][0]["targetPort"]]] == IMAGE.ports
    assert environ["STAPSRV_METRICS"] == f"0.0.0.0:{ports['health']}"
    for probe, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}
        assert f"| `{path}` |" in (ROOT / "docs" / "metrics.md").read_text()
    # What Kubernetes would set for the service must not be taken for ours.
    assert not service["metadata"]["name"].upper().replace("-", "_").startswith("STAPSRV")
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounted.values()) == set(volumes)
    assert (
        volumes[mounted[IMAGE.volumes[0]]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    )


def farm_environs() -> dict[str, dict[str, str]]:
    """What the members of the farm are told in their environment, by example and member."""
    services = yaml.safe_load((CONTAINER / "farm-compose.yaml").read_text())["services"]
    told = {f"compose {name}": service.get("environment", {}) for name, service in services.items()}
    for pod in farm_pods().values():
        (container,) = pod["containers"]
        told[f"kubernetes {container['name']}"] = {each["name"]: each["value"] for each in container["env"]}
    return {member: environ for member, environ in told.items() if member.split()[1] in FARM_MEMBERS}


def farm_pods() -> dict[str, dict]:
    documents = yaml.safe_load_all((CONTAINER / "farm-kubernetes.yaml").read_text())
    deployments = [each for each in documents if each["kind"] == "Deployment"]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in deployments}


FARM_MEMBERS = ("scheduler", "worker", "server")


def test_farm_members_are_told_what_they_understand():
    told = farm_environs()
    assert len(told) == 2 * len(FARM_MEMBERS)
    for member, environ in told.items():
        refuse_unknown(environ)
        tuning = global_from_environ(environ).tuning
        files = {tuning["farm_ca"], tuning["farm_cert"], tuning["farm_key"]}
        assert {Path(file).parent for file in files} == {Path(FARM_FILES)}, member
        assert tuning.effective("engine") == ("dask" if member.endswith("server") else "local")
        assert ("farm" in tuning) == (not member.endswith("scheduler"))


def test_compose_file_of_a_farm_fits_the_image():
    compose = yaml.safe_load((CONTAINER / "farm-compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"authority", "client", *FARM_MEMBERS}
    for name in FARM_MEMBERS:
        service = services[name]
        assert service["build"]["args"] == {"EXTRAS": "farm"}
        assert service["restart"] == "always"
        assert f"farm:{FARM_FILES}:ro" in service["volumes"]
        assert service["environment"]["STAPSRV_FARM_CERT"] == f"{FARM_FILES}/{name}.pem"
    # The farm's authority stays where it was made.
    assert [name for name in services if "authority:" in str(services[name].get("volumes"))] == ["authority"]
    assert services["authority"]["volumes"] == [f"authority:{IMAGE.volumes[0]}", f"farm:{FARM_FILES}"]
    for name in ("scheduler", "worker"):
        parse_arguments(services[name]["entrypoint"][1:])
        assert (
            services[name]["environment"].get("STAPSRV_FARM", "tls://scheduler:8786")
            == "tls://scheduler:8786"
        )
    assert "entrypoint" not in services["server"]
    assert f"install -d -o 970 -g 970 -m 700 {FARM_FILES}" in (ROOT / "Dockerfile").read_text()


def test_authority_of_the_compose_file_makes_what_members_name(tmp_path):
    compose = yaml.safe_load((CONTAINER / "farm-compose.yaml").read_text())
    shell, option, script = compose["services"]["authority"]["entrypoint"]
    script = (
        script.replace("$$", "$")
        .replace(IMAGE.volumes[0], str(tmp_path))
        .replace(FARM_FILES, f"{tmp_path}/f")
    )
    (tmp_path / "f").mkdir()
    environ = os.environ | {"PATH": f"{COMMANDS}:{os.environ['PATH']}"}
    for _again in range(2):
        subprocess.run([shell, option, script], env=environ, check=True, timeout=60)
        made = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
        assert set(made) == {"ca.pem"} | {f"{name}.{end}" for name in FARM_MEMBERS for end in ("pem", "key")}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "f").iterdir()} == {0o600}


def test_kubernetes_file_of_a_farm_fits_the_image():
    documents = list(yaml.safe_load_all((CONTAINER / "farm-kubernetes.yaml").read_text()))
    services = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "Service"}
    pods = farm_pods()
    assert set(pods) == {"stap-farm-scheduler", "stap-farm-worker", "stap-server"}
    told = farm_environs()
    for name, pod in pods.items():
        (container,) = pod["containers"]
        member = container["name"]
        ids = pod["securityContext"]
        assert f"{ids['runAsUser']}:{ids['runAsGroup']}" == IMAGE.user
        assert not pod["enableServiceLinks"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounted.values()) == set(volumes)
        secret = volumes[mounted[FARM_FILES]]["secret"]
        assert secret == {"secretName": f"stap-farm-{member}", "defaultMode": 0o400}
        if member != "server":
            parse_arguments(container["command"][1:])
        farm = told[f"kubernetes {member}"].get("STAPSRV_FARM")
        if farm is not None:
            address = parse_farm_address(farm)
            (port,) = services[address.host]["ports"]
            assert address.port == port["port"]
            assert services[address.host]["selector"] == {"app": "stap-farm-scheduler"}
        assert name == documents_selector(documents, name)
    scheduler = pods["stap-farm-scheduler"]["containers"][0]
    assert scheduler["ports"] == [{"name": "farm", "containerPort": LISTEN.port}]


def documents_selector(documents: list[dict], name: str) -> str:
    """The label by which a Deployment knows its pods."""
    spec = next(
        each["spec"]
        for each in documents
        if each["metadata"]["name"] == name and each["kind"] == "Deployment"
    )
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    return spec["selector"]["matchLabels"]["app"]


def test_every_environment_variable_is_in_the_page():
    page = (ROOT / "docs" / "containers.md").read_text()
    others = "".join((ROOT / "docs" / name).read_text() for name in ("limits.md", "configuration.md"))
    for row in (*SERVER_SETTINGS, *GLOBAL_SETTINGS):
        if row.tunable:
            assert f"`{row.variable}`" in others
        elif row.by_process:
            assert f"`STAPSRV_{row.variable}`" in page
    for name in re.findall(r"`(STAPSRV_\w+)", page):
        refuse_unknown({name: ""})
