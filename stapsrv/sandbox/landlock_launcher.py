"""A program of its own: confines itself with Landlock, then becomes the command that it is given.

    landlock_launcher.py network|no-network [READ|WRITE PATH]... -- COMMAND [ARGUMENT]...

A keeper process stays behind and ends all that the command started when the command or the caller has ended.
Errors go to standard error in one line, with exit status 125.

Source: landlock(7), prctl(2), and the kernel's headers.
"""

# It starts for every request, so it imports little, and nothing of this package. It has numbers where the
# kernel's headers have names.

from __future__ import annotations

import ctypes
import os
import select
import sys
import time

REFUSED = 125

_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_DEVICES = ("null", "zero", "full", "random", "urandom")

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
# How long killed processes may take to be gone; only one that is stuck in the kernel takes longer.
_END_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class _SetupError(Exception):
    pass


def main(argv: list[str]) -> None:
    """Confine this process and become the command."""
    split = argv.index("--")
    (network, *words), command = argv[:split], argv[split + 1 :]
    mounts = list(zip(words[::2], words[1::2], strict=True))
    try:
        _check_caller()
        _call("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _leave_keeper()
        _confine(mounts, network=network == "network")
        # Python ignores these for itself; a program that it becomes would inherit that.
        for number in (_SIGPIPE, _SIGXFSZ):
            _libc.signal(number, ctypes.c_void_p(_SIG_DFL))
        os.execvp(command[0], command)
    except _SetupError as exc:
        reason = str(exc)
    except OSError as exc:
        reason = f"{exc.filename or command[0]}: {exc.strerror}"
    sys.stderr.write(f"launcher: {reason}\n")
    sys.exit(REFUSED)


def _check_caller() -> None:
    """Exit if the parent died before PR_SET_PDEATHSIG was set: its end of the output pipe is closed then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in output.poll(0)):
        raise _SetupError("nobody waits for the answer")


def _exit_code(status: int) -> int:
    # 128 + N when signal N ended it, as in a shell.
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _leave_keeper() -> None:
    """Fork twice: this process waits, its child keeps, and the function returns in the grandchild.

    The first process is the one that the caller knows and signals. The keeper inherits every orphan below it,
    and ends all of them once the program or the first process has ended, in whatever way.
    """
    # Nothing is ever written: the first process alone holds the writing end, until it has ended.
    first_ended, first_lives = os.pipe()
    keeper = os.fork()
    if keeper:
        # TERM is for the program, which may take its time to tidy up.
        _libc.signal(_SIGTERM, ctypes.c_void_p(_SIG_IGN))
        os._exit(_exit_code(os.waitpid(keeper, 0)[1]))
    os.close(first_lives)
    _call("prctl", _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    program = os.fork()
    if program == 0:
        _call("prctl", _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
        return
    # A signal to the caller's session must not end the keeper.
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
    """Kill every process below this one; the children of each that ends become this one's."""
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
    if result < 0:
        raise _SetupError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _confine(mounts: list[tuple[str, str]], *, network: bool) -> None:
    """Have Landlock deny access to all files but those of the mounts, and all else that it can deny."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    abi = _call("Landlock", version)
    handled = sum(rights for since, rights in _FILE_RIGHTS_OF_ABI if abi >= since)
    net = 0 if network or abi < _ABI_NETWORK else _NET_RIGHTS
    attributes = (ctypes.c_uint64 * 3)(handled, net, _SCOPES if abi >= _ABI_SCOPES else 0)
    # An older kernel refuses a structure that is longer than the one it knows.
    size = 8 if abi < _ABI_NETWORK else 16 if abi < _ABI_SCOPES else 24
    ruleset = _call(
        "Landlock", _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    )
    for access, path in mounts:
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
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        # A packed structure: 64 bits of rights, 32 bits of descriptor.
        rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder, signed=True)
        _call(path, _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
