"""Everything about running stap: the program, its command line, environment, files, and what it printed.

The facts are those of PROTOCOL, "Running stap".
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import attrs

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.archive import MAX_COMPONENTS, MAX_PATH_BYTES
from stapsrv.compile.protocol.options import privilege_arguments
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import RESPONSE_DIRECTORY, ResponseFile
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import ExitReason, run_process_tree
from stapsrv.rejection import RejectReason
from stapsrv.system import trees

_SERVER = b"<server>"
_VERSION = re.compile(rb"\(version (\d+(?:\.\d+)*)")
_TESTED = re.compile(rb"tested kernel versions: (\S+ \.\.\. \d+\.\d+\S*)")
_RELEASE = re.compile(r"(\d+)\.(\d+)")
_VERSION_S = 20.0

# What the people and programs behind a client use: modules, generated source and headers. Signatures are
# this server's to add, and none is taken from here. All else in stap's directory is what the kernel's build
# leaves behind: objects, dependency lists, a Makefile and NAME.mod.c.
_ANSWERED = (".ko", ".so", ".bo", ".c", ".h")
_LEFTOVERS = (".mod.c",)
# A script that asks for every tracepoint of a kernel leaves some thousands.
MAX_FILES = 10_000
_MAX_ENTRIES = 50_000

# Meant for this process by the service manager and no business of a compiler; and the variable that
# makes stap read its options in another order than clients and this server do.
_PRIVATE_VARIABLES = frozenset(
    {b"POSIXLY_CORRECT"}
    | {b"NOTIFY_SOCKET", b"WATCHDOG_PID", b"WATCHDOG_USEC", b"CREDENTIALS_DIRECTORY"}
    | {b"LISTEN_FDS", b"LISTEN_FDNAMES", b"LISTEN_PID"}
)


@attrs.frozen
class StapProgram:
    """The translator of this host; its version, such as ``4.8``, is the protocol version in answers."""

    path: Path
    version: str
    # The kernels that it was tested with, in its own words: the first ... the last.
    tested: str = attrs.field(default="", eq=False)

    def explain_untested(self, release: str) -> str | None:
        """Return what to do where a kernel is newer than those that stap was tested with."""
        newest, wanted = _number(self.tested.rpartition(" ")[2]), _number(release)
        if newest is None or wanted is None or wanted <= newest:
            return None
        return f"stap {self.version} was tested with Linux {self.tested}; install a later SystemTap"


async def find_stap(environ: Mapping[str, str]) -> StapProgram:
    """Find ``$SYSTEMTAP_STAP`` or ``stap`` on the path, and ask its version; may raise ConfigError."""
    wanted = environ.get("SYSTEMTAP_STAP") or "stap"
    found = shutil.which(wanted, path=environ.get("PATH"))
    if found is None:
        remedy = "install SystemTap (Debian: systemtap), or name it in SYSTEMTAP_STAP"
        raise ConfigError(f"{wanted} was not found", remedy=remedy)
    # Even for its version stap makes its directory; one that cannot be made does not stop it.
    env = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
    env[b"SYSTEMTAP_DIR"] = os.fsencode(os.devnull)
    try:
        result = await run_process_tree([found, "--version"], deadline_s=_VERSION_S, env=env)
    except TranslatorError as exc:
        raise ConfigError(f"cannot be run: {exc.problem}", where=found) from exc
    printed = result.stdout + result.stderr
    match = _VERSION.search(printed)
    if result.exit_reason is not ExitReason.EXITED or result.status != 0 or match is None:
        remedy = "name a working stap in SYSTEMTAP_STAP"
        raise ConfigError("does not say its version", where=f"{found} --version", remedy=remedy)
    tested = _TESTED.search(printed)
    kernels = "" if tested is None else tested[1].decode("ascii", "replace")
    return StapProgram(Path(found), match[1].decode("ascii"), kernels)


def _number(release: str) -> tuple[int, int] | None:
    match = _RELEASE.match(release)
    return None if match is None else (int(match[1]), int(match[2]))


def stap_command(stap: StapProgram, job: CompileJob, answer: Path) -> list[bytes]:
    """Return the command line: the server's options, the privilege, the marker, the client's arguments."""
    settings = job.settings
    own: list[str] = [str(stap.path), "-r", job.release.argument]
    if settings.arch is not None:
        own += ["-a", settings.arch]
    for option, values in (("-B", settings.build), ("-D", settings.define), ("-I", settings.include)):
        own += [option + value for value in values]
    if settings.runtime is not None:
        own += ["-R", settings.runtime]
    own.append(f"--tmpdir={answer}")
    # The privilege that was read in the client's arguments: stap fails if it reads another one there.
    privilege = privilege_arguments(job.privilege)
    return [*map(os.fsencode, own), *privilege, b"--client-options", *job.request.arguments]


def stap_environment(environ: Mapping[bytes, bytes], locale: Iterable[tuple[str, str]]) -> dict[bytes, bytes]:
    """Return the server's environment with the client's locale in place of its own."""
    kept = {name: value for name, value in environ.items() if name not in _PRIVATE_VARIABLES}
    return kept | {os.fsencode(name): os.fsencode(value) for name, value in locale}


def write_request(request: CompileRequest, root: Path) -> None:
    """Write the request's directories and files below ``root``, which is empty; may raise OSError."""
    base = os.fsencode(root)
    for directory in request.directories:
        os.mkdir(os.path.join(base, directory), mode=0o700)  # noqa: PTH102, PTH118 - client paths are bytes
    for file in request.files:
        path = os.path.join(base, file.path)  # noqa: PTH118 - client paths are bytes
        # The paths were checked when the request was parsed; O_EXCL and O_NOFOLLOW make sure.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(file.data)


def read_answer(answer: int, *, max_bytes: int) -> tuple[ResponseFile, ...]:
    """Read the files of stap's directory, an open one, that go to the client, in the order of their paths.

    Raises:
        TranslatorError: they are larger than ``max_bytes``, or too many.
        OSError: not all of them can be read.
    """
    found: list[ResponseFile] = []
    left = max_bytes
    with contextlib.closing(trees.walk(answer, max_depth=MAX_COMPONENTS)) as entries:
        for seen, entry in enumerate(entries, start=1):
            if seen > _MAX_ENTRIES or len(found) > MAX_FILES:
                raise _too_large("has too many files")
            if not _is_answered(entry.name) or not stat.S_ISREG(entry.status.st_mode):
                continue
            left -= entry.status.st_size
            if left < 0 or len(entry.path) > MAX_PATH_BYTES:
                raise _too_large(f"is larger than {max_bytes} bytes")
            data = trees.read_file(entry.directory, entry.name, max_bytes=entry.status.st_size)
            found.append(ResponseFile(f"{RESPONSE_DIRECTORY}/{entry.path}", data))
    return tuple(sorted(found, key=attrgetter("path")))


def _too_large(problem: str) -> TranslatorError:
    remedy = "ask for less at once"
    return TranslatorError(f"The answer {problem}", remedy=remedy, reject_reason=RejectReason.ANSWER_SIZE)


def _is_answered(name: str) -> bool:
    # All names that stap and the kernel's build give are UTF-8.
    is_text = not any("\udc80" <= character <= "\udcff" for character in name)
    return is_text and is_answered_name(name)


def is_answered_name(name: str) -> bool:
    """Whether a file of this name goes to the client."""
    return name.endswith(_ANSWERED) and not name.endswith(_LEFTOVERS)


def redact(text: bytes, paths: Sequence[Path]) -> bytes:
    """Replace each of ``paths`` in ``text`` by ``<server>``."""
    # The longest first: one may be the beginning of another.
    for path in sorted(map(os.fsencode, paths), key=len, reverse=True):
        if path.strip(b"/"):
            text = text.replace(path, _SERVER)
    return text
