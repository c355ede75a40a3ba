"""A script to compile, and the kernel to compile it for; it becomes a request."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from stapsrv.client.errors import ClientError
from stapsrv.client.options import StapCommand, parse_stap_options
from stapsrv.client.packing import STANDARD_INPUT, Request, pack_request
from stapsrv.config.kernels import host_arch, host_release, is_release_name
from stapsrv.text import printable

_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
_MOK = re.compile(r"missing|[0-9a-f]{2}(:[0-9a-f]{2})+")


@attrs.frozen(kw_only=True)
class Job:
    """A script to compile.

    Attributes:
        script: a ``Path`` of a file, or a text that is the script itself; None where ``options`` have it
            (``-e``) or ask for a list (``-l``).
        release: of the kernel, as ``uname -r`` shows it there; by default this host's.
        arch: of the kernel; by default this host's.
        options: of stap, as on its command line, such as ``["-I", "tapsets", "-DMAXACTION=100"]``.
        arguments: the script's own.
        moks: fingerprints of the machine owner keys that the target's kernel trusts, or ``missing`` if it
            needs one and has none.
    """

    script: str | Path | None = None
    release: str | None = None
    arch: str | None = None
    options: Sequence[str] = ()
    arguments: Sequence[str] = ()
    moks: Sequence[str] = ()

    def pack(self) -> tuple[bytes, int]:
        """Return the request's zip, and the last pass that it asks for; reads the files.

        Raises:
            ClientError: an option or a file cannot be used.
        """
        given = [os.fsencode(option) for option in self.options]
        named = ("-r", self.release), ("-a", self.arch)
        given += [f"{option}{value}".encode() for option, value in named if value is not None]
        operands = [os.fsencode(argument) for argument in self.arguments]
        stdin = b""
        if isinstance(self.script, Path):
            # A file named - is none, and one named -e is no option.
            operands.insert(0, os.fsencode(self.script.absolute()))
        elif self.script is not None:
            operands.insert(0, STANDARD_INPUT)
            stdin = self.script.encode()
        command = parse_stap_options([*given, b"--", *operands])
        expected = operands[0] if self.script is not None else None
        if command.script != expected:
            raise ClientError("the options have a script of their own, or an argument that is no option's")
        request = pack_command(command, stdin=stdin, environ=own_environ(os.environ), moks=self.moks)
        return request, command.last_pass


def pack_command(
    command: StapCommand, *, stdin: bytes = b"", environ: Mapping[str, str], moks: Sequence[str] = ()
) -> bytes:
    """Return the zip of the request for a command line; files are read below the working directory.

    Raises:
        ClientError: a file cannot be used, or the release is not known.
    """
    for mok in moks:
        if not _MOK.fullmatch(mok):
            raise ClientError(
                f"{printable(mok)!r} is no fingerprint of a key", remedy="write pairs xx:xx:…, or missing"
            )
    release, arch = target_of(command)
    request = Request(
        command=command,
        release=release,
        arch=arch,
        stdin=stdin,
        locale=environ,
        moks=tuple(moks),
    )
    return pack_request(request, cwd=os.getcwdb())  # noqa: PTH109 - names are bytes


def own_environ(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return this process's environment with the locale that it was started with.

    Python sets ``LC_CTYPE`` where the locale is C, or unknown (PEP 538): no client but this one would tell a
    server of that. What it was is only to be had on Linux; elsewhere what is there is taken.
    """
    if environ.get("LC_CTYPE") not in _COERCED:
        return environ
    try:
        started = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return environ
    before = [line for line in map(os.fsdecode, started) if line.startswith("LC_CTYPE=")]
    rest = {name: value for name, value in environ.items() if name != "LC_CTYPE"}
    return rest | ({"LC_CTYPE": before[0].partition("=")[2]} if before else {})


def target_of(command: StapCommand) -> tuple[str, str]:
    """Return the kernel release and the architecture that a command line is for; else a ClientError."""
    return _release(command.release), command.arch or host_arch()


def _release(stated: str | None) -> str:
    if stated is None:
        if sys.platform != "linux":
            raise ClientError(
                "the kernel is not known: this host runs no Linux", remedy="name its release with -r"
            )
        return host_release()
    if stated.startswith("/"):
        raise ClientError(
            f"-r {printable(stated)} is a build tree, and servers compile for those that they have",
            remedy="name the release, as uname -r shows it on the target",
        )
    if not is_release_name(stated):
        raise ClientError(
            f"{printable(stated)!r} is no kernel release", remedy="name one as uname -r shows it"
        )
    return stated
