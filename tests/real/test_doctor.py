"""``stap-server doctor`` beside the real stap: what it says of a way is what the real client meets on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = ("-e", "probe begin { exit() }")


def examine(stap, *words: object) -> tuple[int, dict[str, dict[str, str]]]:
    ran = subprocess.run(
        [sys.executable, "-m", "stapsrv.control.cli.main", "doctor", "--json", *map(str, words)],
        env=stap.environ(STAPSRV_MDNS="no"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stderr == ""
    return ran.returncode, {found["question"]: found for found in json.loads(ran.stdout)["findings"]}


def test_a_client_s_way(serve, stap, stranger):
    release = stap.installation.release
    server = serve()
    status, found = examine(stap, "--client", f"localhost:{server.port}", "--release", release)
    assert status == 0, found
    assert found[f"kernel {release}"]["answer"] == "is served"
    assert stap.via(server.port, "-p1", *SCRIPT).status == 0

    status, found = examine(stranger, "--client", f"localhost:{server.port}", "--release", release)
    assert (status, found["trust"]["verdict"]) == (1, "failure")
    assert stranger.via(server.port, "-p1", *SCRIPT).status != 0


def test_a_host_that_compiles(stap, tmp_path: Path):
    release = stap.installation.release
    service = tmp_path / "service"
    (service / "conf.d").mkdir(parents=True)
    (service / "conf.d" / "real.conf").write_text(f"RELEASE={release}\nRUNTIME={stap.installation.runtime}\n")
    config = service / "global.conf"
    config.write_text(f"CONFIG_PATH={service}/conf.d\nSTAT_PATH={service}/stat\nLOG_FILE={service}/log\n")
    _, found = examine(stap, "-c", config)
    assert found[f"compiling for {release}"]["verdict"] == "ok", found
    assert found["containment"]["verdict"] == "ok"
