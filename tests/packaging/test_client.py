"""The client's own distribution: it works where there is nothing else, and no SystemTap."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kit.compile_server import MODULE, Identity, RecordingServer, response
from kit.machine import ROOT

SOURCE = ROOT / "packaging/client"
PROBE = """
import sys
import stapsrv.client, stapsrv.client.command, stapsrv.client.discovery
for name in set(stapsrv.client.__all__) - {"SupervisorNotRunning", "SyncControlClient", "find_sockets"}:
    getattr(stapsrv.client, name)
try:
    stapsrv.client.SyncControlClient
except ImportError as exc:
    print(exc)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=SOURCE, check=True, capture_output=True, timeout=60)
    (made,) = target.glob("stapsrv_client-*.whl")
    return made


def test_wheel_holds_what_the_client_imports_and_needs_two_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    required = [
        line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert [line.split()[1].partition(">")[0] for line in required] == ["attrs", "cryptography"]
    packages = {"/".join(name.split("/")[:2]) for name in names if name.startswith("stapsrv/")}
    rooms = {name for name in packages if not name.endswith((".py", ".typed"))}
    assert rooms == {"stapsrv/client", "stapsrv/compile", "stapsrv/config", "stapsrv/system"}
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_compiles_in_a_fresh_environment_without_systemtap(wheel, tmp_path):
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=120)
    pip = [sys.executable, "-m", "pip", "--python", str(place), "install", "-q", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    probed = subprocess.run(
        [place / "bin/python", "-c", PROBE], capture_output=True, text=True, check=True, cwd="/"
    )
    assert probed.stdout == "SyncControlClient comes with the server: pip install stapsrv\n"
    with RecordingServer.open(Identity.make(tmp_path / "server")) as server:
        server.answer = response(stap1_ko=MODULE)
        words = [
            "--server",
            server.address,
            "--fingerprint",
            server.identity.fingerprint,
            "-r",
            "6.1",
            "-e",
            "probe",
        ]
        ran = subprocess.run(
            [place / "bin/stap-compile", *words],
            cwd=tmp_path,
            env={"PATH": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "stap1.ko\n", "")
    assert (tmp_path / "stap1.ko").read_bytes() == MODULE
