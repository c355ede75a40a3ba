"""Trust that root gives on behalf of all users, and what the real client and the real staprun make of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from kit.lan import USER, give_to_user
from kit.network import Host, open_host
from kit.ports import quiet_port
from kit.real import Stap

SCRIPT = ("-e", "probe begin { exit() }")

pytestmark = [
    pytest.mark.root,
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]


@attrs.frozen
class Site:
    """A host with a server and with an ``/etc/systemtap`` of its own, in which only root may write."""

    host: Host
    directory: Path
    release: str
    port: int

    @property
    def certificate(self) -> Path:
        return self.directory / "systemtap" / "ssl" / "server" / "stap.cert"

    def environ(self, who: str) -> dict[str, str]:
        place = self.directory / who
        return {
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "STAPSRV_MDNS": "no",
            "SYSTEMTAP_DIR": str(place),
        }

    def attempt(self, *command: object, user: str | None = USER, who: str = "visitor") -> tuple[int, str]:
        """Run a program as a user whose data is that of ``who``; return its status and all output."""
        words = self.host._inside(command, user, self.directory)
        environ = {**os.environ, **self.environ(who)}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout + done.stderr

    def client(self, *arguments: object) -> tuple[int, str]:
        where = f"--use-server=localhost:{self.port}"
        return self.attempt("stap", where, "-r", self.release, *arguments)

    def cert(self, *arguments: object) -> str:
        """Run ``stap-server cert`` as root, for the server's certificate."""
        words = (sys.executable, "-m", "stapsrv.control.cli.main", "cert", *arguments)
        status, output = self.attempt(*words, "--ssl", self.certificate.parent, user=None)
        assert status == 0, output
        return output


@pytest.fixture(scope="module")
def site(users_warm_stap: Stap) -> Iterator[Site]:
    installation = users_warm_stap.installation
    with tempfile.TemporaryDirectory(prefix="stapsrv-trust.", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        cache = directory / "systemtap" / "cache"
        cache.mkdir(parents=True)
        subprocess.run(["cp", "-aT", users_warm_stap.directory / "cache", cache], check=True)
        give_to_user(directory)
        with open_host("build", directory) as host:
            site = Site(host, directory, installation.release, quiet_port())
            host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/etc/systemtap")
            words = ("-r", installation.release, "-R", installation.runtime, "--port", site.port)
            program = host.start(
                sys.executable, "-m", "stapsrv.daemon", *words, user=USER, **site.environ("systemtap")
            )
            # Said when its own client trusts it, which is before it accepts.
            program.wait(lambda: program.find_line("Using network address"), wait_s=120)
            yield site


def test_trust_of_all_users_is_of_no_use_where_they_cannot_write(site):
    """The doctor says so, and what the command names helps."""
    told = site.cert("authorize", "--all")
    command = f"stap-authorize-cert {site.certificate} ~/.systemtap/ssl/client"
    assert f"SEC_ERROR_READ_ONLY.\nEach of these runs: {command}\n" in told
    status, output = site.client("-p1", *SCRIPT)
    assert (status, "SEC_ERROR_READ_ONLY" in output) == (1, True)
    assert doctor(site)["verdict"] == "failure"
    assert "SEC_ERROR_READ_ONLY" in doctor(site)["answer"]

    program = "from stapsrv.control.cli.commands.cert import authorize_cert as run; raise SystemExit(run())"
    client = site.directory / "visitor" / "ssl" / "client"
    status, output = site.attempt(sys.executable, "-c", program, site.certificate, client)
    assert status == 0, output
    status, output = site.client("-p1", *SCRIPT)
    assert status == 0, output
    assert doctor(site)["verdict"] == "ok"


def doctor(site: Site) -> dict[str, str]:
    """Return what the doctor says of the visitor's trust."""
    words = ("--json", "--client", f"localhost:{site.port}", "--release", site.release)
    _, output = site.attempt(sys.executable, "-m", "stapsrv.control.cli.main", "doctor", *words)
    return {found["question"]: found for found in json.loads(output)["findings"]}["trust"]


def test_staprun_of_debian_12_takes_modules_without_signatures_from_root_alone(site):
    """It is stopped where it would load the module: it has no right to."""
    status, output = site.attempt("stap", "--version", user=None)
    if "version 4.8" not in output:
        pytest.skip("about the staprun of SystemTap 4.8")
    words = ("-r", site.release, "--privilege=stapusr", "-p4", *SCRIPT)
    status, output = site.attempt("stap", f"--use-server=localhost:{site.port}", *words, who="systemtap")
    assert status == 0, output
    (module,) = site.directory.glob("stap_*.ko")
    assert module.with_suffix(".ko.sgn").exists()
    assert "/etc/systemtap/staprun trusts" in site.cert("authorize", "--signer")
    status, output = staprun(site, module)
    assert status != 0
    assert (
        "Could not obtain information on certificate database file /etc/systemtap/staprun/cert8.db" in output
    )
    assert "Unable to verify the signature for the module" in output
    for name in ("cert8.db", "key3.db", "secmod.db"):
        site.host.run("install", "-m", "644", "/dev/null", f"/etc/systemtap/staprun/{name}")
    assert "SEC_ERROR_READ_ONLY" in staprun(site, module)[1]

    site.host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/lib/modules")
    place = f"/lib/modules/{platform.release()}/systemtap"
    site.host.run("install", "-D", "-m", "644", "-t", place, module)
    status, output = staprun(site, module.stem)
    assert "signature" not in output
    assert f"Couldn't insert module '{place}/{module.name}'" in output


def staprun(site: Site, module: object) -> tuple[int, str]:
    """Run the real staprun, for a member of stapusr, without the right to load modules."""
    as_member = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--groups=stapusr")
    return site.attempt(*as_member, "--bounding-set=-sys_module", "staprun", module, user=None)
