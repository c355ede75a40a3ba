"""The servers that a user knows, each pinned to one certificate, as ssh does with hosts.

A file with a line ``HOST:PORT SHA256:...`` for each; other lines are kept. It is replaced in one step, by one
process at a time, and only its user can read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
from cryptography import x509

from stapsrv.client.address import Address
from stapsrv.client.errors import ClientError, ServerNotTrusted, UnknownServer
from stapsrv.client.trust import fingerprint_of, parse_fingerprint
from stapsrv.system.atomic_file import replace_file

_MAX_BYTES = 4 * 1024 * 1024


def default_path(environ: Mapping[str, str]) -> Path:
    """Return the user's own file, below ``XDG_CONFIG_HOME``, by default ``~/.config``."""
    configured = Path(environ.get("XDG_CONFIG_HOME", ""))
    # A relative one is to be ignored (XDG base directory specification).
    base = configured if configured.is_absolute() else Path(environ.get("HOME") or Path.home()) / ".config"
    return base / "stapsrv" / "known_servers"


@attrs.frozen
class _Pin:
    line: int
    fingerprint: str


@attrs.frozen
class KnownServers:
    """Trusts the servers that a file names, with the certificates that it pins them to."""

    path: Path

    def check(self, address: Address, certificate: x509.Certificate) -> None:
        """See :class:`stapsrv.client.trust.Trust`; a server without a line is an UnknownServer."""
        shown = fingerprint_of(certificate)
        pins = self._pins(address)
        if not pins:
            raise UnknownServer(str(address), shown)
        if all(pin.fingerprint != shown for pin in pins):
            pin = pins[0]
            raise ServerNotTrusted(
                f"THE CERTIFICATE OF {address} HAS CHANGED: it shows {shown}, and {self.path}:{pin.line} has "
                f"{pin.fingerprint}; somebody may be listening in",
                remedy=f"ask its operator, and only if it was renewed remove line {pin.line} of {self.path}",
            )

    def pin(self, address: Address, fingerprint: str) -> None:
        """Trust a server from now on, with this certificate alone.

        Raises:
            ClientError: the file cannot be read or written.
        """
        with self._explained():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                kept = [line for line in self._lines() if line.split()[:1] != [str(address)]]
                text = "".join(f"{line}\n" for line in [*kept, f"{address} {parse_fingerprint(fingerprint)}"])
                # Where it is a link, what it leads to.
                replace_file(self.path.resolve(), text.encode("utf-8", "surrogateescape"), mode=0o600)

    def _pins(self, address: Address) -> list[_Pin]:
        with self._explained():
            lines = self._lines()
        pins = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if words[:1] != [str(address)]:
                continue
            try:
                pins.append(_Pin(number, parse_fingerprint(words[1] if len(words) > 1 else "")))
            except ClientError as exc:
                raise ClientError(
                    exc.problem, where=f"{self.path}:{number}", remedy="mend or remove that line"
                ) from exc
        return pins

    def _lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        if len(data) > _MAX_BYTES:
            # A part of it would be written back in place of all.
            raise ClientError(
                f"has more than {_MAX_BYTES >> 20} MiB", where=str(self.path), remedy="remove old lines"
            )
        return data.decode("utf-8", "surrogateescape").splitlines()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            # Others hold it for as long as it takes to write a small file.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise ClientError(f"cannot be used ({exc.strerror})", where=str(self.path)) from exc
