"""Contains itself, then becomes the program that it is given: a script of its own, on bare Python.

    launcher.py MODE DIRECTORY [ACCESS PATH]… -- COMMAND [ARGUMENT]…

MODE is ``mounts`` (in mount and process-id namespaces of its own, with the capabilities of their user
namespace: builds the file system that the places describe, and gives all capabilities up), ``landlock`` or
``landlock-no-network`` (confines itself to the places, and leaves a keeper behind that ends all that the
command started when the command or the caller has ended). Each ACCESS is the name of one of
:class:`stapsrv.sandbox.mount_plan.Access`, or ``LINK:TARGET``.

It imports nothing of this package and little else, since every request waits for its start, and has numbers
where the kernel's headers have names. It says in one line on standard error what
could not be done, and exits with status 125.

Source: mount(2), pivot_root(2), landlock(7), capabilities(7), and the kernel's headers.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import time

REFUSED = 125

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "s390x": 217, "ppc64le": 203, "ppc64": 203}.get(os.uname().machine, 41)
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 24, 28, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECBITS_NO_ROOT = 0b11
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_CAPABILITIES = 64

_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)

# What Landlock handles, by the ABI that brought it.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS_OF_ABI = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ABI_NETWORK, _ABI_SCOPES = 4, 6
_NET_RIGHTS = 0b11
_SCOPES = 0b11
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ_RIGHTS = _EXECUTE | _READ_FILE | _READ_DIR

_SIGKILL, _SIGTERM, _SIGPIPE, _SIGXFSZ = 9, 15, 13, 25
_SIG_DFL, _SIG_IGN = 0, 1
_END_S = 5.0
"""How long killed processes may take to be gone; only one stuck in the kernel takes longer."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Refused(Exception):
    """What could not be done, and why."""


def main(argv: list[str]) -> None:
    """Contain this process and run the command."""
    split = argv.index("--")
    (mode, directory, *description), command = argv[:split], argv[split + 1 :]
    places = list(zip(description[::2], description[1::2], strict=True))
    try:
        if mode == "mounts":
            _check_caller()
            _build_root(places)
            os.chdir(directory)
            _give_up_capabilities()
            _promise_no_new_privileges()
            _become_init()
        else:
            _check_caller()
            _promise_no_new_privileges()
            _leave_keeper()
            _confine(places, network=mode == "landlock")
        # Python ignores these for itself; a program that it becomes would inherit that.
        for number in (_SIGPIPE, _SIGXFSZ):
            _libc.signal(number, ctypes.c_void_p(_SIG_DFL))
        os.execvp(command[0], command)
    except _Refused as exc:
        reason = str(exc)
    except OSError as exc:
        reason = f"{exc.filename or mode}: {exc.strerror}"
    sys.stderr.write(f"launcher: {reason}\n")
    sys.exit(REFUSED)


def _check_caller() -> None:
    """End if whoever reads the output was gone before this process was to die with it."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in output.poll(0)):
        raise _Refused("nobody waits for the answer")


def _become_init() -> None:
    """Stay behind as the first process of the namespace, and return in a second one.

    The first one is deaf to signals that a program is to die of, and everybody's heir.
    """
    child = os.fork()
    if child == 0:
        return
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(_exit_code(status))


def _exit_code(status: int) -> int:
    """Return how to end as a child did: a signal becomes a number above 128, as a shell has it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _leave_keeper() -> None:
    """Stay behind as two processes, and return in a third one.

    The first is the one that the caller knows and signals. The second, the keeper, leaves the session, so
    that no signal to it ends the keeper, too; it inherits whatever is orphaned below it, and ends it all
    once the program or the first process has ended, in whatever way.
    """
    # Nothing is ever said here: the first process alone holds the writing end until it is no more.
    first_ended, first_lives = os.pipe()
    keeper = os.fork()
    if keeper:
        # Meant for the program, which may take its time to tidy up.
        _libc.signal(_SIGTERM, ctypes.c_void_p(_SIG_IGN))
        os._exit(_exit_code(os.waitpid(keeper, 0)[1]))
    os.close(first_lives)
    _call("prctl", _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    program = os.fork()
    if program == 0:
        _call("prctl", _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
        return
    os.setsid()
    ends = select.poll()
    ends.register(first_ended, 0)
    ends.register(os.pidfd_open(program), select.POLLIN)
    ends.poll()
    os.kill(program, _SIGKILL)
    status = os.waitpid(program, 0)[1]
    _end_children()
    os._exit(_exit_code(status))


def _end_children() -> None:
    """End every process below this one; the children of each that ends become this one's."""
    deadline = time.monotonic() + _END_S
    while children := _children():
        for child in children:
            os.kill(child, _SIGKILL)
        end = select.poll()
        end.register(os.pidfd_open(children[0]), select.POLLIN)
        if not end.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return
        os.waitpid(children[0], 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        # A kernel without that list (CONFIG_PROC_CHILDREN): what was orphaned ends by itself.
        return []


def _call(what: str, result: int) -> int:
    """Return the result of a system call, or say what failed."""
    if result < 0:
        raise _Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _build_root(places: list[tuple[str, str]]) -> None:
    """Make the places the whole file system."""
    if os.getpid() != 1:
        raise _Refused("not the first process of a namespace: it would change the host's own file system")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = "/tmp" if os.path.isdir("/tmp") else "/proc"  # noqa: S108 - only a mount point, seen by nobody else
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
    # The old root stays in reach below this one for as long as things are taken from it.
    old = f"{root}/.old"
    os.mkdir(old)
    os.chdir(root)
    _call("pivot_root", _libc.syscall(_SYS_PIVOT_ROOT, root.encode(), old.encode()))
    os.chdir("/")
    # Before the places: one may be below /dev, in memory.
    os.mkdir("/dev")
    for name in _DEVICES:
        _bind(f"/.old/dev/{name}", f"/dev/{name}")
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"/dev/{name}")
    accesses = {}
    for access, path in places:
        if access.startswith("LINK:"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(access.removeprefix("LINK:"), path)
            continue
        accesses[path] = access
        if access == "EMPTY_DIRECTORY":
            os.makedirs(path, exist_ok=True)
            _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755")
        else:
            _bind("/.old/dev/null" if access == "EMPTY_FILE" else f"/.old{path}", path)
    os.makedirs("/proc", exist_ok=True)
    _seal(accesses)
    # As long as the old one is in reach: only who sees one already may mount another.
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _call("umount", _libc.umount2(b"/.old", _MNT_DETACH))
    os.rmdir("/.old")
    _seal_mount("/")


def _bind(source: str, path: str) -> None:
    """Show a part of the old file system, with all that is mounted below it."""
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    _mount(source, path, None, _MS_BIND | _MS_REC)


def _seal(accesses: dict[str, str]) -> None:
    """Make read-only what is mounted now, unless it belongs to a place that can be written to."""
    for point in _mount_points():
        if point in ("/", "/.old") or point.startswith("/.old/"):
            continue
        place = point
        while place not in accesses and place != "/":
            place = os.path.dirname(place)
        if accesses.get(place) != "WRITE":
            _seal_mount(point)


def _seal_mount(point: str) -> None:
    # What the mount has already must be said again: a user namespace may not take it away.
    kept = os.statvfs(point).f_flag & (_MS_NODEV | _MS_NOEXEC)
    _mount(None, point, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | kept)


def _mount_points() -> list[str]:
    """Return the mount points, by their names in this file system."""
    points = []
    with open("/.old/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            point = line.split(" ")[4]
            for code in ("\\040", "\\011", "\\012", "\\134"):
                point = point.replace(code, chr(int(code[1:], 8)))
            points.append(point)
    return points


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    given = None if data is None else data.encode()
    _call(f"mount on {target}", _libc.mount(*words, ctypes.c_ulong(flags), given))


def _give_up_capabilities() -> None:
    _call("prctl", _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    for capability in range(_MAX_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel knows no more
    _call("securebits", _libc.prctl(_PR_SET_SECUREBITS, _SECBITS_NO_ROOT, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", _libc.capset(header, (ctypes.c_uint32 * 6)()))


def _promise_no_new_privileges() -> None:
    _call("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _confine(places: list[tuple[str, str]], *, network: bool) -> None:
    """Let Landlock allow what the places name, and nothing else that it knows of."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    abi = _call("Landlock", version)
    handled = sum(rights for since, rights in _FILE_RIGHTS_OF_ABI if abi >= since)
    net = 0 if network or abi < _ABI_NETWORK else _NET_RIGHTS
    attributes = (ctypes.c_uint64 * 3)(handled, net, _SCOPES if abi >= _ABI_SCOPES else 0)
    known = 8 if abi < _ABI_NETWORK else 16 if abi < _ABI_SCOPES else 24
    ruleset = _call(
        "Landlock",
        _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(known), 0),
    )
    for access, path in places:
        if access == "READ":
            _allow(ruleset, path, handled & _READ_RIGHTS)
        elif access == "WRITE":
            _allow(ruleset, path, handled & ~_IOCTL_DEV)
    _allow(ruleset, "/proc", handled & _READ_RIGHTS)
    for name in _DEVICES:
        _allow(ruleset, f"/dev/{name}", handled & (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV))
    _call("Landlock", _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        # A packed structure: 64 bits of rights, 32 bits of descriptor.
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder, signed=True)
        _call(path, _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(place)


if __name__ == "__main__":
    main(sys.argv[1:])
