"""Commands that look after a server's own files: whose they are, and as whom to change them."""

from __future__ import annotations

import argparse
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import attrs
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from stapsrv.config.global_settings import SERVICE_USER
from stapsrv.errors import ConfigError, StapsrvError, UsageError
from stapsrv.system.stdio import guard_stdout

_INTERRUPTED = 130
"""As a shell says of a program that a signal ended."""
_TIDYING_S = 10.0
"""For a compile to be ended, with its whole process tree, and its files to be removed."""


@attrs.frozen(kw_only=True)
class Owner:
    """Whose certificate it is.

    Attributes:
        name: the user.
        environ: that user's HOME and SYSTEMTAP_DIR.
    """

    name: str
    environ: Mapping[str, str]

    @classmethod
    def find(cls, name: str | None, environ: Mapping[str, str]) -> Owner:
        """Return the user of that name; by default the caller, and for root the service's user.

        Raises:
            ConfigError: there is no such user.
        """
        wanted = name or (SERVICE_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
        try:
            entry = pwd.getpwnam(wanted)
        except KeyError as exc:
            raise ConfigError(f"there is no user {wanted}", remedy="name another with -u") from exc
        own = {"HOME": entry.pw_dir}
        if "SYSTEMTAP_DIR" in environ:
            own["SYSTEMTAP_DIR"] = environ["SYSTEMTAP_DIR"]
        elif entry.pw_uid == os.geteuid():
            own["HOME"] = environ.get("HOME", entry.pw_dir)
        return cls(name=wanted, environ=own)


class LineParser(argparse.ArgumentParser):
    """Argparse, but a fault is one line and an error of our own."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(message, remedy=f"see {self.prog} --help")


class VerbParser(LineParser):
    """The command line of a program with verbs.

    Args:
        program: its name.
        description: what it is for.
        example: its most telling use.
        whose: what ``-u`` decides on.
        examples: what follows a verb in the example that its own help gives, by verb.

    Attributes:
        common: takes the options of all verbs, which are added before the verbs.
    """

    def __init__(
        self, program: str, *, description: str, example: str, whose: str, examples: Mapping[str, str]
    ) -> None:
        super().__init__(prog=program, description=description, epilog=f"example: {program} {example}")
        self.common = LineParser(add_help=False)
        self.common.add_argument(
            "-u", dest="user", metavar="USER", help=f"{whose} (default: yours, for root stap-server's)"
        )
        self._examples = examples
        self._verbs = self.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=LineParser)

    def add_verb(self, verb: str, text: str) -> LineParser:
        """Add a verb, whose help is ``text``; returns what takes its own options."""
        return self._verbs.add_parser(
            verb,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example: {self.prog} {verb}{self._examples.get(verb, '')}",
            parents=[self.common],
        )


def guarded(program: str, command: Callable[[], int]) -> int:
    """Run a command; returns its exit status, after one line on standard error where it failed.

    It may be a program of its own or a part of ``stap-server``: Ctrl-C, or a reader that has gone, ends here.
    """
    try:
        with guard_stdout(program):
            return command()
    except StapsrvError as exc:
        sys.stderr.write(f"{program}: {exc}\n")
        return exc.exit_status
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        return _INTERRUPTED


def absolute_path(text: str) -> Path:
    """Read a path for argparse."""
    return Path(text).absolute()


def run_as_owner(
    owner: Owner, module: str, arguments: Sequence[str], *, output: BinaryIO | None = None
) -> int:
    """Run a module of this program as the owner: files made by root would be of no use to a server.

    Args:
        owner: who runs it.
        module: its name.
        arguments: its command line.
        output: its standard output; None for this process's.
    """
    entry = pwd.getpwnam(owner.name)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=os.getgrouplist(owner.name, entry.pw_gid),
        cwd="/",
        stdout=output,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            # A name that the locale cannot write is no reason to fail.
            "PYTHONIOENCODING": ":backslashreplace",
            **owner.environ,
        },
    ) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            return _interrupted(child)


def silent_log() -> FilteringBoundLogger:
    """Return a logger for functions that tell a server's log what this command prints itself."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[_drop], wrapper_class=structlog.make_filtering_bound_logger("critical")
    )
    return logger


def _interrupted(child: subprocess.Popen[bytes]) -> int:
    """Let a child that a terminal has told of Ctrl-C, too, tidy up, and return its exit status."""
    try:
        return child.wait(timeout=_TIDYING_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        return _INTERRUPTED


def _drop(_logger: object, _level: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent
