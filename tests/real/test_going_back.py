"""Certificate databases and STAT_PATH go back and forth between SystemTap's own programs and these."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from kit.real import Ran, serving, serving_original

REQUEST = ("-p2", "-e", "probe begin { exit() }")
# SystemTap 5 has other blanks there than 4.8.
ANSWER = "begin /*<-begin*/"
# The client of SystemTap 5.1 trusts no server by itself without it; others do not mind.
TRUSTING = {"NSS_DISABLE_PKIX_VERIFY": "1"}


@pytest.mark.parametrize(
    ("maker", "other"), [(serving_original, serving), (serving, serving_original)], ids=["original's", "ours"]
)
def test_database_that_the_other_made(stranger, tmp_path, maker, other):
    """A client that was made to trust the one trusts the other, too."""
    place = tmp_path / "owner"
    place.mkdir()
    owner = attrs.evolve(stranger, place=place, directory=place / "systemtap")
    certificate = owner.directory / "ssl/server/stap.cert"
    with maker(owner) as server:
        trusting = stranger.via(server.port, "--trust-servers=ssl,no-prompt", release=None, **TRUSTING)
        assert trusting.status == 0, trusting.stderr
        made = certificate.read_bytes()
        assert last_probe(stranger.via(server.port, *REQUEST)) == ANSWER

    with other(owner) as server:
        assert server.log.has("Certificate is valid", 1)
        assert server.log.count("Generating a new certificate") == 0
        assert certificate.read_bytes() == made
        for client in (stranger, owner):
            ran = client.via(server.port, *REQUEST)
            assert ran.status == 0, ran.stderr
            assert last_probe(ran) == ANSWER


def last_probe(ran: Ran) -> str:
    """Return the last line of an answer to pass 2, without what separates its words but the first blank."""
    name, _, comment = ran.stdout.splitlines()[-1].partition(" ")
    return f"{name} {comment.replace(' ', '')}"


class StatusDirectory:
    """A STAT_PATH that both programs use."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "stat"
        self.config = directory / "global.conf"
        self.config.write_text(
            f"CONFIG_PATH={directory}/conf.d\nSTAT_PATH={self.path}\nLOG_FILE={directory}/log\n"
        )
        # The original reads no record with a setting that it does not know.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STAPSRV_")}
        self._environ = {**environ, "SYSTEMTAP_DIR": f"{directory}/systemtap", "STAPSRV_MDNS": "no"}

    def ours(self, *words: object) -> None:
        program = [sys.executable, "-c", "from stapsrv.control.cli.main import main; main()"]
        command = [*program, *map(str, words), "-c", str(self.config)]
        subprocess.run(command, env=self._environ, capture_output=True, timeout=120, check=True)

    def original(self) -> str:
        """What the original's ``status`` prints; it insists on its own directory below /var/log."""
        command = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/var/log", "/usr/bin/stap-server", "status"]
        ran = subprocess.run(
            [*command, "-c", str(self.config)], capture_output=True, text=True, timeout=120, check=False
        )
        return ran.stdout + ran.stderr

    def supervisor(self) -> int:
        """Return a descriptor that is readable when the supervisor has ended."""
        (lock,) = self.path.glob("*/lock")
        return os.pidfd_open(int(lock.read_text()))


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.skipif(os.geteuid() == 0, reason="no server runs as root")
def test_original_sees_no_server_when_the_last_is_gone(tmp_path, build_tree, identity, killed):
    stat = StatusDirectory(tmp_path)
    stat.ours("start", "-r", build_tree, "--ssl", identity, "-n", "one")
    if not killed:
        # It removes the record, whose number is no process.
        assert '-n "one"' in stat.original()
    supervisor = stat.supervisor()
    if killed:
        signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        assert select.select([supervisor], [], [], 60)[0]
    stat.ours("stop")
    assert select.select([supervisor], [], [], 60)[0]
    os.close(supervisor)
    assert stat.original() == "No managed stap-server is running\n"
