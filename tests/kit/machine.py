"""A machine, or a container, without an engine: process 1 in namespaces, over the host's own files.

What it writes goes to memory; what it is to have besides is laid over the host's files. Its network is a
loopback interface, so nothing that it says is heard outside. Only root can make one.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from kit.real import PATIENCE_S, Ran, finish, wait_until

ROOT = Path(__file__).parent.parent.parent
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup")

# $1: an empty directory; $2: what is laid over the host's files; $3: further mounts, SOURCE:TARGET each on a
# line; the rest is process 1. Device files are the host's own, and there are no others.
_BOOT = r"""
set -eu
place=$1 files=$2 mounts=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" overlay "$place/root"
cd "$place/root"
[ -z "$files" ] || cp -r "$files/." .
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
while IFS=: read -r source target; do
    [ -n "$source" ] || continue
    mkdir -p "./$target"
    mount --bind "$source" "./$target"
done <<EOT
$mounts
EOT
[ -e /proc/self/ns/net ] && ip link set lo up
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
exec "$@"
"""


@attrs.frozen
class Machine:
    """One that runs.

    Attributes:
        process: the ``unshare`` that made it; it ends as process 1 does.
        pid: of its process 1, for this host.
        environ: of its process 1, and of what is run in it.
    """

    process: subprocess.Popen[str]
    pid: int
    environ: Mapping[str, str]

    def begin(
        self, *command: object, user: str | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program in it, as ``docker exec`` does; :func:`kit.real.finish` waits for it."""
        entering = ["nsenter", f"--target={self.pid}", "--all"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        return subprocess.Popen(
            [*entering, *become, *map(str, command)],
            env={**self.environ, **(environ or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )

    def run(self, *command: object, user: str | None = None, environ: Mapping[str, str] | None = None) -> Ran:
        """Run a program in it to its end."""
        return finish(self.begin(*command, user=user, environ=environ))

    def kill(self, number: int) -> None:
        """Send a signal to its process 1, as an engine does."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; returns the exit status of its process 1."""
        return self.process.wait(timeout=PATIENCE_S)

    def processes(self) -> list[str]:
        """Return the names of all that is in it, ended and not waited for included."""
        shown = self.run("ps", "-e", "-o", "pid=,stat=,comm=").stdout.splitlines()
        return [line for line in shown if not line.endswith((" ps", " nsenter"))]


@contextlib.contextmanager
def machine(
    place: Path,
    init: Sequence[object],
    *,
    files: Path | None = None,
    mounts: Mapping[Path, str] | None = None,
    environ: Mapping[str, str],
    output: Path,
    beside: Machine | None = None,
) -> Iterator[Machine]:
    """Run a machine until the block ends, or its process 1 does.

    Args:
        place: an empty directory.
        init: process 1, and its arguments.
        files: laid over the host's, as root's.
        mounts: directories of the host, by where they are to be.
        environ: of process 1, whole.
        output: what process 1 writes.
        beside: shares its network.
    """
    network = ["--net"] if beside is None else []
    joining = [] if beside is None else ["nsenter", f"--net=/proc/{beside.pid}/ns/net"]
    # Parts of the host's tree that are on other file systems are not below an overlay by themselves.
    apart = {Path(sys.prefix): sys.prefix, ROOT: str(ROOT)}
    apart = {path: name for path, name in apart.items() if path.stat().st_dev != Path("/").stat().st_dev}
    table = "\n".join(f"{source}:{target}" for source, target in {**apart, **(mounts or {})}.items())
    place.mkdir(exist_ok=True)
    with (
        _group(place.name) as group,
        output.open("w") as written,
        subprocess.Popen(
            [
                *joining,
                *("bash", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', group),
                *("unshare", *_NAMESPACES, *network, "--", "bash", "-c", _BOOT, "bash"),
                *(place, files or "", table),
                *("env", "-i", *(f"{name}={value}" for name, value in environ.items())),
                *map(str, init),
            ],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            text=True,
        ) as process,
    ):
        try:
            yield Machine(process, _first_child(process, output), environ)
        finally:
            process.kill()
            process.wait()


def _first_child(process: subprocess.Popen[str], output: Path) -> int:
    """Return the process that became process 1, when it has all its mounts."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found: list[int] = []

    def is_up() -> bool:
        assert process.poll() is None, output.read_text()
        found[:] = map(int, children.read_text().split())
        # In the middle of execve(2) there is no command line.
        starting = {b"", b"unshare", b"bash", b"env"}
        return bool(found) and Path(f"/proc/{found[0]}/cmdline").read_bytes().split(b"\0")[0] not in starting

    wait_until(is_up)
    return found[0]


@contextlib.contextmanager
def _group(name: str) -> Iterator[Path]:
    """Have a cgroup, version 2, that holds nobody else; what was made below it goes with it."""
    mounted = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    top = next(path for path in mounted if (path / "cgroup.procs").exists())
    group = top / f"stapsrv-{os.getpid()}-{name}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        with (group / "cgroup.events").open() as events:
            while "populated 0" not in events.read():
                # The kernel reports a change as urgent data (cgroups(7)).
                assert select.select([], [], [events], PATIENCE_S)[2]
                events.seek(0)
        for below in sorted(group.glob("**/"), reverse=True):
            below.rmdir()
