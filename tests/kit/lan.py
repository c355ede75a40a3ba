"""Two hosts on a network of their own: servers on one, the real client and avahi on the other."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from .network import WAIT_S, Host, Program, Seen, join, open_host
from .real import ORIGINAL, Installation

USER = "stap-server"
SERVER_ADDRESS = "10.99.0.1"
CLIENT_ADDRESS = "10.99.0.2"
CABLE = "cable0"
NAME = "Systemtap Compile Server on build"
"""Of the first service."""

_PAUSE_S = 0.1
_ESTABLISHED = r"Avahi service '(.*)' successfully established\.$"


@attrs.define
class Lan:
    """The two hosts, and what their user ``stap-server`` has on both of them.

    Attributes:
        server: named ``build``, runs servers.
        client: named ``laptop``, runs avahi, and has the real client.
        avahi: the one of the client.
        installation: what there is to compile for.
        home: the user's: certificates, trust and the compile cache are in ``systemtap``.
    """

    server: Host
    client: Host
    installation: Installation
    home: Path
    avahi: Program = attrs.field(init=False)

    @property
    def systemtap(self) -> Path:
        return self.home / "systemtap"

    @property
    def moks(self) -> Path:
        """Where the user's machine owner keys are."""
        return self.systemtap / "ssl" / "server" / "moks"

    def start_avahi(self) -> None:
        """Start the client's avahi, once more if it was there before."""
        self.avahi = self.client.start_avahi()
        # While somebody browses, avahi answers others at once; else each look would wait a second for more.
        self.client.browse()

    @contextlib.contextmanager
    def serving(self, *options: object, on: Host | None = None) -> Iterator[Program]:
        """Run ``stap-serverd`` for one release; what it logs to its terminal can be waited for."""
        with self.hosting(*self._one_server, *options, on=on) as program:
            yield program

    @contextlib.contextmanager
    def hosting(self, *options: object, on: Host | None = None) -> Iterator[Program]:
        """Run ``stap-serverd`` with no options but these."""
        words = (sys.executable, "-m", "stapsrv.daemon", *options)
        program = (on or self.server).start(*words, user=USER, **self._environ)
        try:
            yield program
            assert program.stop() == 0, program.lines
            assert program.find_line("Traceback") is None, program.lines
        finally:
            # With a goodbye also after a failure, or the caches keep it for an hour, also in the tests that
            # follow.
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.stop()

    @contextlib.contextmanager
    def serving_original(self, *options: object) -> Iterator[Program]:
        """Run SystemTap's own server for one release; its host needs avahi."""
        words = (ORIGINAL, *self._one_server, *options)
        program = self.server.start(*words, user=USER, **self._environ)
        try:
            yield program
            program.stop()
        finally:
            program.kill()

    def stap(self, *arguments: object) -> str:
        """Run the real client, and return what it says."""
        return self.client.run("stap", *arguments, user=USER, place=self.home, **self._environ)

    def stap_server(self, *arguments: object, on: Host | None = None) -> str:
        """Run ``stap-server``, and return what it says."""
        return self._run_entry("stapsrv.control.cli.main", "main", *arguments, on=on)

    def make_identity(self) -> None:
        """Make the user's certificate, with the server's name in it."""
        self._run_entry("stapsrv.control.cli.commands.cert", "gen_cert")

    def _run_entry(self, module: str, function: str, *arguments: object, on: Host | None = None) -> str:
        """Run one of our commands as its script would."""
        program = f"import sys; from {module} import {function}; sys.exit({function}())"
        host = on or self.server
        return host.run(sys.executable, "-c", program, *arguments, user=USER, **self._environ)

    @property
    def _one_server(self) -> tuple[object, ...]:
        return ("-r", self.installation.release, "-R", self.installation.runtime)

    @property
    def _environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            # Nothing: servers are advertised unless somebody says no.
            "STAPSRV_MDNS": "",
            "SYSTEMTAP_DIR": str(self.systemtap),
        }


def wait_established(server: Program, count: int = 1) -> list[str]:
    """Return the names under which a server is advertised, once there are so many."""

    def look() -> list[str] | None:
        found = [match[1] for line in server.lines if (match := re.search(_ESTABLISHED, line))]
        return found if len(found) >= count else None

    return server.wait(look)


def wait_seen(lan: Lan, condition: Callable[[list[Seen]], bool]) -> list[Seen]:
    """Wait until what the client's avahi has of compile servers is as it should be, and return it."""
    looks: list[list[Seen]] = []
    deadline = time.monotonic() + WAIT_S
    while not looks or not condition(looks[-1]):
        assert time.monotonic() < deadline, looks
        if looks:
            # Nobody tells: an avahi-browse that goes on does not resolve anything twice.
            time.sleep(_PAUSE_S)
        looks.append(lan.client.look())
    return looks[-1]


def give_to_user(path: Path) -> None:
    """Make a file or a tree the user's."""
    entry = pwd.getpwnam(USER)
    for place in (path, *path.rglob("*")):
        os.chown(place, entry.pw_uid, entry.pw_gid)


@contextlib.contextmanager
def open_lan(installation: Installation) -> Iterator[Lan]:
    """Set up the network; everything on it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-lan.", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for place in ("server", "client", "home"):
            (directory / place).mkdir()
        give_to_user(directory / "home")
        with (
            open_host("build", directory / "server") as server,
            open_host("laptop", directory / "client") as client,
        ):
            join((server, CABLE, f"{SERVER_ADDRESS}/24"), (client, CABLE, f"{CLIENT_ADDRESS}/24"))
            lan = Lan(server, client, installation, directory / "home")
            lan.start_avahi()
            lan.make_identity()
            yield lan
