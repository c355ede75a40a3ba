"""The units, in a real systemd that is process 1 of a machine of its own."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from kit.machine import ROOT, SYSTEM_PATH, Machine, machine
from kit.real import wait_until
from kit.warm import SCRIPT, USER

UNITS = ROOT / "packaging" / "systemd"

# Not for a machine like this: they would touch the kernel, which is the host's, or wait for hardware.
MASKED = (
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-update-utmp.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-journal-flush.service",
    "avahi-daemon.socket",
    "dbus.socket",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "proc-sys-fs-binfmt_misc.automount",
)
TARGET = "[Unit]\nRequires=basic.target stap-server.socket stap-server-native.socket\nAfter=basic.target\n"


@pytest.fixture
def booted(installed, warm_stap, home, tmp_path):
    """A machine that has just come up, with one server configured and its port held by systemd."""
    files = tmp_path / "files"
    subprocess.run(["cp", "-a", str(installed), str(files)], check=True)
    units = files / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for name in MASKED:
        (units / name).symlink_to("/dev/null")
    (units / "stapsrv-test.target").write_text(TARGET)
    port = (UNITS / "stap-server-port.socket").read_text()
    (units / "stap-server-native.socket").write_text(port)
    (files / "etc" / "default").mkdir()
    (files / "etc" / "default" / "stap-server").write_text("MDNS=no\n")
    (files / "etc" / "stap-server" / "conf.d" / "native.conf").write_text(
        f"NICKNAME=native\nRELEASE={warm_stap.installation.release}\nRUNTIME={warm_stap.installation.runtime}\n"
    )
    systemd = ["/lib/systemd/systemd", "--system", "--unit=stapsrv-test.target", "--log-target=null"]
    with machine(
        tmp_path / "root",
        systemd,
        files=files,
        mounts={
            home("home"): "/var/lib/stap-server",
            warm_stap.installation.runtime: str(warm_stap.installation.runtime),
        },
        environ={"container": "stapsrv", "PATH": SYSTEM_PATH},
        output=tmp_path / "output",
    ) as booted:
        wait_until(lambda: booted.run("systemctl", "is-active", "stapsrv-test.target").stdout == "active\n")
        yield booted


def shown(machine: Machine, name: str) -> str:
    return machine.run("systemctl", "show", "--value", "-p", name, "stap-server").stdout.strip()


def compile_on(machine: Machine, release: str):
    """Compile with the real client, as the user whose client trusts the server."""
    return machine.run(
        *("env", "-C", "/tmp", "stap", "--use-server=localhost:5001", "-p4", "-r", release, "-e", SCRIPT),
        user=USER,
        environ={"HOME": "/var/lib/stap-server"},
    )


@pytest.mark.root
@pytest.mark.real
@pytest.mark.timeout(300)
def test_life_of_the_service(booted, warm_stap):
    """Started by its first client, reloaded, fed, restarted when it crashes, stopped; and it compiles."""
    release = warm_stap.installation.release
    assert shown(booted, "ActiveState") == "inactive"
    ran = booted.run("stap-server", "ctl", "status", "--json")  # knocks at the control socket
    assert ran.status in {0, 3}, ran  # before it hosts a server there is none
    wait_until(lambda: shown(booted, "StatusText") == "1 of 1 servers serve")
    ran = compile_on(booted, release)
    assert ran.status == 0, ran.stderr
    assert ran.module.endswith(".ko")
    status = json.loads(booted.run("stap-server", "ctl", "status", "--json").stdout)
    (supervisor,) = status["supervisors"]
    assert supervisor["user"] == USER
    # The hardening leaves room for the strongest that there is.
    assert (supervisor["containment"], supervisor["sandbox"]) == ("process-id namespace", "bubblewrap")
    (server,) = supervisor["servers"]
    assert (server["nickname"], server["port"], server["state"]) == ("native", 5001, "serving")

    new = f"NICKNAME=second\nRELEASE={release}\nPORT=5002\n"
    booted.run("sh", "-c", f"printf '{new}' > /etc/stap-server/conf.d/second.conf")
    assert booted.run("systemctl", "reload", "stap-server").status == 0
    wait_until(lambda: shown(booted, "StatusText") == "2 of 2 servers serve")
    booted.run("sh", "-c", "echo nonsense > /etc/stap-server/conf.d/second.conf")
    assert booted.run("systemctl", "reload", "stap-server").status == 1
    assert shown(booted, "ActiveState") == "active"
    booted.run("rm", "/etc/stap-server/conf.d/second.conf")

    pid = shown(booted, "MainPID")
    assert booted.run("kill", "-KILL", pid).status == 0
    wait_until(lambda: shown(booted, "NRestarts") == "1" and shown(booted, "ActiveState") == "active")
    assert shown(booted, "MainPID") != pid
    assert compile_on(booted, release).status == 0

    assert booted.run("systemctl", "stop", "stap-server").status == 0
    assert (shown(booted, "ActiveState"), shown(booted, "Result")) == ("inactive", "success")
    assert compile_on(booted, release).status == 0  # its port is open still, and starts it
    assert shown(booted, "ActiveState") == "active"


@pytest.mark.root
@pytest.mark.timeout(300)
def test_what_is_wrong_is_said_where_an_administrator_looks(booted):
    booted.run("sh", "-c", "echo LOG_FIEL=1 > /etc/default/stap-server")
    assert booted.run("systemctl", "start", "stap-server").status == 1
    told = booted.run("journalctl", "-q", "-o", "cat", "-u", "stap-server").stdout
    assert (
        "stap-serverd: /etc/default/stap-server:1: unknown variable 'LOG_FIEL'; did you mean LOG_FILE?"
        in told
    )
    assert shown(booted, "Result") == "exit-code"
    # Also made anew with its socket, as long after the boot as may be.
    again = "systemctl stop stap-server.socket && rm -rf {} && systemctl start stap-server.socket"
    assert booted.run("sh", "-c", again.format("/run/stap-server/stap-server")).status == 0
    modes = booted.run("stat", "-c", "%a %U:%G", "/run/stap-server", "/run/stap-server/stap-server").stdout
    assert modes.splitlines() == ["1775 stap-server:stap-server", "750 stap-server:stap-server"]
    moved = booted.run(
        "sh",
        "-c",
        "set -e; umask 002; cd /var/log/stap-server; echo x > log; chown stap-server: log;"
        "logrotate -f /etc/logrotate.d/stap-server; cat log.1",
    )
    assert moved.stdout == "x\n", moved.stderr


FARM = "/var/lib/stap-server/.systemtap/farm"
FARM_SETTINGS = f"""\
MDNS=no
ENGINE=dask
FARM=tls://127.0.0.1:8786
FARM_CA={FARM}/ca.pem
FARM_CERT={FARM}/here.pem
FARM_KEY={FARM}/here.key
"""


def said(machine: Machine, unit: str) -> str:
    return machine.run("journalctl", "-q", "-o", "cat", "-u", unit).stdout


@pytest.mark.root
@pytest.mark.real
@pytest.mark.timeout(400)
def test_life_of_a_farm(booted, warm_stap):
    """Scheduler and node come up by their units, compile for a server, and come back when killed."""
    release = warm_stap.installation.release
    for words in (("init",), ("issue", "here")):
        ran = booted.run("stap-farm", "ca", *words, user=USER, environ={"HOME": "/var/lib/stap-server"})
        assert ran.status == 0, ran.stderr
    booted.run("sh", "-c", f"printf '{FARM_SETTINGS}' > /etc/default/stap-server")
    # As `systemctl edit` does it.
    change = (
        f"[Service]\nEnvironment=STAPSRV_RELEASE={release} STAPSRV_RUNTIME={warm_stap.installation.runtime}\n"
    )
    drop_in = "/etc/systemd/system/stap-farm-worker.service.d"
    booted.run("sh", "-c", f"mkdir {drop_in} && printf '{change}' > {drop_in}/override.conf")
    assert booted.run("systemctl", "daemon-reload").status == 0
    assert booted.run("systemctl", "start", "stap-farm-scheduler", "stap-farm-worker").status == 0
    wait_until(lambda: f"kernel release {release} is offered" in said(booted, "stap-farm-worker"))
    booted.run("stap-server", "ctl", "status")  # starts the server, whose client then trusts it
    wait_until(lambda: shown(booted, "StatusText") == "1 of 1 servers serve")
    ran = compile_on(booted, release)
    assert ran.status == 0, ran.stderr + said(booted, "stap-farm-worker")
    assert f" for {release} in " in said(booted, "stap-farm-worker")

    for unit in ("stap-farm-scheduler", "stap-farm-worker"):
        joined = said(booted, "stap-farm-worker").count("Farm: this is worker ")
        assert booted.run("systemctl", "kill", "-s", "KILL", unit).status == 0
        wait_until(lambda: said(booted, "stap-farm-worker").count("Farm: this is worker ") > joined)  # noqa: B023
        assert booted.run("systemctl", "show", "--value", "-p", "NRestarts", unit).stdout == "1\n"
    for unit in ("stap-farm-worker", "stap-farm-scheduler"):
        assert booted.run("systemctl", "stop", unit).status == 0
        assert booted.run("systemctl", "show", "--value", "-p", "Result", unit).stdout == "success\n"
        assert "Traceback" not in said(booted, unit)


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which since systemd 256 wants a /run to write to where systemd does not run."""
    command = ["systemd-analyze", *words]
    if not Path("/run/systemd").is_dir():
        command = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/run", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


UNIT_FILES = sorted(path.name for path in UNITS.iterdir() if path.suffix in {".service", ".socket"})


@pytest.mark.parametrize("name", UNIT_FILES)
def test_units_are_understood(tmp_path, name):
    """By systemd's own reader, which reports unknown and misplaced lines."""
    for unit in UNIT_FILES:
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(re.sub(r"/usr/bin/stap-\S+", "/usr/bin/true", text))
    verified = analyze("verify", "--man=no", "--recursive-errors=no", str(tmp_path / name))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "exposure"), [("stap-server", 3.6), ("stap-farm-worker", 3.6), ("stap-farm-scheduler", 1.3)]
)
def test_service_is_locked_down(name, exposure):
    """No line that was tried is lost: systemd's own measure of exposure, from 0 to 10."""
    unit = UNITS / f"{name}.service"
    threshold = f"--threshold={exposure * 10:.0f}"
    judged = analyze("security", "--offline=true", threshold, "--no-pager", str(unit))
    assert judged.returncode == 0, judged.stdout
