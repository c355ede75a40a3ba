"""The options of stap's command line, and what of them a client sends to a server. Pure.

The table is that of SystemTap 4.8's own client (``stap --use-server``), as seen in what it sends: some
options go to the server, in one form each, some never do, and some cannot be had with a server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import attrs

from stapsrv.client.errors import ClientError
from stapsrv.compile.protocol.options import STAP_4_8, OptionTable, OptionValue, parse_options

LAST_PASS = 4
"""Of those that a server can do; the fifth runs the script."""
_PASSES = range(1, 6)

# What the real client sends: a short option with its value attached, a long one in full.
_SENT_SHORT = frozenset("BDEFLPSWabcdeglmpqrstuvwx")
_SENT_LONG = frozenset(
    [
        "check-version",
        "compatible",
        "dump-functions",
        "dump-probe-aliases",
        "dump-probe-types",
        "privilege",
        "skip-badvars",
        "unprivileged",
        "vp",
    ]
)
# Taken and not sent. Some would change the module: the user reads a warning.
_NOT_SENT = frozenset(
    [
        "G",
        "T",
        "i",
        "all-modules",
        "bpf",
        "color",
        "disable-cache",
        "download-debuginfo",
        "example",
        "interactive",
        "ldd",
        "modinfo",
        "no-global-var-display",
        "poison-cache",
        "prologue-searching",
        "remote-prefix",
        "rlimit-as",
        "rlimit-cpu",
        "rlimit-fsize",
        "rlimit-nproc",
        "rlimit-stack",
        "runtime",
        "save-uprobes",
        "sign-module",
        "suppress-handler-errors",
        "suppress-time-limits",
        "sysroot",
        "target-namespaces",
        "tmpdir",
        "use-server-on-error",
    ]
)
_LISTING = frozenset({"l", "L", "dump-functions", "dump-probe-aliases", "dump-probe-types"})
_INCLUDE, _SCRIPT, _RELEASE, _ARCH, _PASS, _RUNTIME = "I", "e", "r", "a", "p", "R"


@attrs.frozen(kw_only=True)
class StapCommand:
    """A command line of stap, as a request states it.

    ``options`` are those that are sent, in order and in the form of the real client. ``script`` is the path
    of a file, ``-`` for standard input, or None where an option has the script or there is none.
    """

    script: bytes | None = None
    arguments: tuple[bytes, ...] = ()  # the script's own
    includes: tuple[bytes, ...] = ()  # directories with tapsets, as given
    options: tuple[bytes, ...] = ()
    release: str | None = None  # the last -r
    arch: str | None = None  # the last -a, as given
    last_pass: int = LAST_PASS
    not_sent: tuple[str, ...] = ()  # options that were given and never reach a server, with their dashes
    verbose: int = 0


Own = Callable[[str, bytes | None], bool]
"""Is given the name and the value of an option; whether it has taken it."""


def parse_stap_options(
    arguments: Sequence[bytes],
    *,
    own: Own | None = None,
    own_options: Mapping[str, OptionValue] = MappingProxyType({}),
) -> StapCommand:
    """Read the words after ``stap``; ``own`` takes the program's own, ``own_options`` names the long ones.

    Raises:
        ClientError: an option is unknown, lacks its value, or cannot be had with a server; there is no
            script, or more than one.
    """
    parsed = parse_options(arguments, OptionTable({**STAP_4_8.long, **own_options}))
    if parsed.fault is not None:
        raise ClientError(parsed.fault)
    given = [(name, value) for name, value in parsed.options if own is None or not own(name, value)]
    for name, _value in given:
        _check_known(name)
    values = {name: value for name, value in given if value is not None}
    listing = [name for name, _ in given if name in _LISTING]
    last_pass = 2 if listing else _last_pass(values.get(_PASS))
    operands = list(parsed.operands)
    script = _take_script(given, operands, is_listing=bool(listing))
    return StapCommand(
        script=script,
        arguments=tuple(operands),
        includes=tuple(value or b"" for name, value in given if name == _INCLUDE),
        options=tuple(_sent(name, value) for name, value in given if name in _SENT_SHORT | _SENT_LONG),
        release=_text(values.get(_RELEASE)),
        arch=_text(values.get(_ARCH)),
        last_pass=min(last_pass, LAST_PASS),
        not_sent=(
            *dict.fromkeys(_shown(name) for name, _ in given if name in _NOT_SENT),
            *(["-p5"] if last_pass > LAST_PASS else []),
        ),
        verbose=sum(name == "v" for name, _ in given),
    )


def _check_known(name: str) -> None:
    if name == _RUNTIME:
        raise ClientError("-R cannot be had with a server, which has a runtime of its own")
    if name not in _SENT_SHORT | _SENT_LONG | _NOT_SENT | {_INCLUDE}:
        raise ClientError(f"{_shown(name)} is unknown")


def _last_pass(stated: bytes | None) -> int:
    if stated is None:
        return LAST_PASS
    number = int(stated) if stated.isdigit() and len(stated) == 1 else 0
    if number not in _PASSES:
        raise ClientError("Invalid pass number (should be 1-5)")
    return number


def _take_script(
    given: Sequence[tuple[str, bytes | None]], operands: list[bytes], *, is_listing: bool
) -> bytes | None:
    """Return the script's file, taken from the operands, if it is they that name it."""
    names = [name for name, _ in given]
    by_option = names.count(_SCRIPT)
    if by_option > 1:
        raise ClientError("Only one script can be given on the command line")
    if is_listing:
        if by_option:
            raise ClientError("Cannot specify a script with -l/-L/--dump-* switches")
        if _PASS in names:
            raise ClientError("Cannot specify -p with -l/-L/--dump-* switches")
        if sum(name in _LISTING for name in names) > 1:
            raise ClientError("only one of the -l/-L/--dump-* switches may be specified")
        return None
    if by_option:
        return None
    if not operands:
        raise ClientError("A script must be specified")
    return operands.pop(0)


def _sent(name: str, value: bytes | None) -> bytes:
    if len(name) == 1:
        return f"-{name}".encode() + (value or b"")
    return f"--{name}".encode() + (b"" if value is None else b"=" + value)


def _shown(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _text(value: bytes | None) -> str | None:
    """Return a value as text, or None where it is missing or empty, which says as much to the real client."""
    return None if not value else os.fsdecode(value)
