"""Containers by podman, of the images that packaging/test-image built, in a storage of their own.

None has a network but the loopback interface. Only root can run them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import attrs

from kit.machine import ROOT
from kit.real import PATIENCE_S, Ran, finish

# Higher than the host's, they could not be set without its own privileges.
_LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


def newest_release() -> str:
    """Return the plainest of the releases whose headers are installed here."""
    command = f'. "{ROOT}/packaging/common.bash" && header_releases | tail -n 1'
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout.strip()


def kbuild_of(release: str) -> str:
    """Return what has to be mounted beside the headers of a release: they lead there."""
    return os.path.dirname(os.path.realpath(f"/lib/modules/{release}/build/scripts"))


@attrs.frozen
class Engine:
    """Podman over the storage in a directory. Its other runtime, crun, wants a host with cgroup v2 alone."""

    directory: str

    def begin(self, *words: object) -> subprocess.Popen[str]:
        """Start a command of podman's; :func:`kit.real.finish` waits for it."""
        return subprocess.Popen(
            [
                *("podman", "--root", f"{self.directory}/storage", "--runroot", f"{self.directory}/run"),
                *("--storage-driver", "overlay", "--runtime", "runc", "--log-level", "fatal"),
                *map(str, words),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )

    def run(self, *words: object) -> Ran:
        """Run a command of podman's to its end, whatever comes of it."""
        return finish(self.begin(*words))

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what podman says of an image or of a container."""
        ran = self.run(kind, "inspect", name)
        assert ran.status == 0, ran.stderr
        (found,) = json.loads(ran.stdout)
        return found

    def start(
        self, name: str, image: str, *command: str, network: str = "none", options: Sequence[str] = ()
    ) -> Container:
        """Start a container; without a command, it runs the image's entrypoint alone."""
        ran = self.run(
            *("run", "--detach", "--name", name, "--network", network),
            *(*_LIMITS, *options, image, *command),
        )
        assert ran.status == 0, ran.stderr
        return Container(self, name)


@attrs.frozen
class Container:
    """A container that was started."""

    engine: Engine
    name: str

    @property
    def lines(self) -> list[str]:
        """What its process 1 wrote, over all its starts."""
        ran = self.engine.run("logs", self.name)
        return (ran.stdout + ran.stderr).splitlines()

    def begin(self, *command: object) -> subprocess.Popen[str]:
        """Start a program in it."""
        return self.engine.begin("exec", self.name, *command)

    def exec(self, *command: object) -> Ran:
        """Run a program in it to its end."""
        return finish(self.begin(*command))

    def check_health(self) -> str:
        """Run the image's health check now; returns what the engine makes of it."""
        self.engine.run("healthcheck", "run", self.name)
        state = self.engine.inspect("container", self.name)["State"]
        return state.get("Health", state.get("Healthcheck"))["Status"]

    def stop(self) -> int:
        """Send SIGTERM, and wait for the end; returns the exit status of process 1."""
        ran = self.engine.run("stop", "--time", int(PATIENCE_S), self.name)
        assert ran.status == 0, ran.stderr
        return self.engine.inspect("container", self.name)["State"]["ExitCode"]

    def kill(self) -> None:
        """End all that runs in it at once (-9)."""
        ran = self.engine.run("kill", "--signal", "KILL", self.name)
        assert ran.status == 0, ran.stderr

    def start_again(self) -> None:
        """Start it after it was stopped, with the same volumes."""
        ran = self.engine.run("start", self.name)
        assert ran.status == 0, ran.stderr

    def remove(self) -> None:
        """Remove it, and the volumes that have no name."""
        self.engine.run("rm", "--force", "--time", "0", "--volumes", self.name)
