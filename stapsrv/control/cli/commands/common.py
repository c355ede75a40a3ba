"""Shared by the commands for a server's own files: the owner, option parsing, error handling."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

import attrs
import structlog
from structlog.typing import FilteringBoundLogger

from stapsrv.config.global_settings import SERVICE_USER
from stapsrv.config.option_parser import Parser
from stapsrv.errors import ConfigError, StapsrvError, UsageError
from stapsrv.system.stdio import guard_stdout

# Arguments in, an exit status out.
_Command: TypeAlias = Callable[[Sequence[str]], int]

# Drops everything, for commands that print the results themselves.
SILENT_LOG: FilteringBoundLogger = structlog.wrap_logger(structlog.ReturnLogger(), processors=[])
# As a shell reports a program that a signal ended.
_INTERRUPTED = 130
# Those of stapsrv.identity.key_types, which takes long to import.
_KEY_VARIABLES = ("SYSTEMTAP_MOK_KEY_TYPE", "SYSTEMTAP_SIGN_KEY_TYPE")
# For a compile and its process tree to end, and its files to be removed.
_TIDYING_S = 10.0


@attrs.frozen(kw_only=True)
class Owner:
    """The user whose files they are, with that user's HOME and SYSTEMTAP_DIR, and the kinds of new keys."""

    name: str
    environ: Mapping[str, str]

    @classmethod
    def find(cls, name: str | None, environ: Mapping[str, str]) -> Owner:
        """Return the named user, by default the caller, for root the service's; may raise ConfigError."""
        wanted = name or (SERVICE_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
        try:
            entry = pwd.getpwnam(wanted)
        except KeyError as exc:
            raise ConfigError(f"there is no user {wanted}", remedy="name another with -u") from exc
        own = {"HOME": entry.pw_dir}
        own |= {name: environ[name] for name in _KEY_VARIABLES if name in environ}
        if "SYSTEMTAP_DIR" in environ:
            own["SYSTEMTAP_DIR"] = environ["SYSTEMTAP_DIR"]
        elif entry.pw_uid == os.geteuid():
            # The caller may have another HOME than the database says.
            own["HOME"] = environ.get("HOME", entry.pw_dir)
        return cls(name=wanted, environ=own)

    def run(self, *words: str, output: BinaryIO | None = None) -> int:
        """Run ``stap-server`` as this user, since a server cannot use files that root made."""
        entry = pwd.getpwnam(self.name)
        with subprocess.Popen(
            # -P: nothing is imported from the working directory.
            [sys.executable, "-P", "-m", "stapsrv.control.cli.main", *words],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=os.getgrouplist(self.name, entry.pw_gid),
            # The owner may not be allowed into the caller's directory.
            cwd="/",
            stdout=output,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **self.environ},
        ) as child:
            try:
                return child.wait()
            except KeyboardInterrupt:
                # The child got the terminal's Ctrl-C too, and cleans up.
                with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    return child.wait(timeout=_TIDYING_S)
                child.kill()
                return _INTERRUPTED


class LineParser(Parser):
    """An argparse parser whose errors are one line and a UsageError."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(message, remedy=f"see {self.prog} --help")


class VerbParser(LineParser):
    """The parser of a program with verbs; ``common`` takes the options of all, before the verbs are added."""

    def __init__(self, program: str, *, description: str, example: str, whose: str) -> None:
        super().__init__(prog=program, description=description, epilog=f"example: {program} {example}")
        self.common = LineParser(add_help=False)
        self.common.add_argument(
            "-u", dest="user", metavar="USER", help=f"{whose} (default: yours, for root stap-server's)"
        )
        self._verbs = self.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=LineParser)

    def add_verb(self, verb: str, text: str, *, example: str = "") -> LineParser:
        """Add a verb with its help ``text``, and arguments as an ``example``; return its options' parser."""
        return self._verbs.add_parser(
            verb,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: {self.prog} {verb} {example}".rstrip(),
            parents=[self.common],
        )


def guarded(program: str, *, usage: str = "") -> Callable[[_Command], Callable[..., int]]:
    """Make a program of a command: a failure, or Ctrl-C, is one line on standard error and an exit status.

    The arguments are this process's by default. ``usage`` is printed for ``--help``, if that comes first.
    """

    def decorate(command: _Command) -> Callable[..., int]:
        @functools.wraps(command)
        def run(argv: Sequence[str] | None = None) -> int:
            words = sys.argv[1:] if argv is None else argv
            try:
                with guard_stdout(program):
                    if usage and words and words[0] in {"-h", "--help"}:
                        sys.stdout.write(usage)
                        return 0
                    return command(words)
            except StapsrvError as exc:
                sys.stderr.write(f"{program}: {exc}\n")
                return exc.exit_status
            except KeyboardInterrupt:
                sys.stderr.write(f"{program}: interrupted\n")
                return _INTERRUPTED

        return run

    return decorate


def absolute_path(text: str) -> Path:
    """Parse a path for argparse."""
    return Path(text).absolute()


def export(data: bytes, output: Path | None, *, is_text: bool) -> None:
    """Write a certificate to a file, or to standard output if that is no terminal or the data are text."""
    if output is None:
        if not is_text and sys.stdout.isatty():
            raise UsageError("DER is no text for a terminal", remedy="name a file with -o, or say --pem")
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as exc:
        raise ConfigError(f"cannot be written ({exc.strerror})", where=str(output)) from exc
