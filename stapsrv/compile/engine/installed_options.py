"""The options of the stap that is installed, as it states them itself.

Its C library's getopt_long lists all long options when a word could abbreviate each of them; and where an
option takes a value, the word behind it is no option. So one run of stap tells their names, and at most three
more whether one of them takes a value; a client's request has those asked that it uses. Each run ends with
such an ambiguous word or without a value that is required, so that stap does nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import attrs

from stapsrv.compile.cache.fingerprint import stamp
from stapsrv.compile.engine.stap import StapProgram
from stapsrv.compile.protocol.options import STAP_4_8, OptionTable, OptionValue
from stapsrv.errors import ConfigError, TranslatorError
from stapsrv.process import ExitReason, run_process_tree
from stapsrv.system.blocking import BlockingCalls

_OLDEST = (4, 0)
_WORKS_WITH = "SystemTap 4.0 and later work"
_ANSWER_S = 20.0  # it takes 10 ms
_POSSIBILITIES = re.compile(rb"^.*'--=1' is ambiguous; possibilities:(.*)$", re.MULTILINE)
_NAME = re.compile(rb"'--([A-Za-z0-9_-]+)'")
# Without these it is no stap that a server can use.
_NEEDED = frozenset({"client-options", "privilege", "tmpdir"})


@attrs.define(eq=False)
class InstalledOptions:
    """The option table of a stap, which is read again when the program was replaced."""

    _path: Path
    _environ: Mapping[bytes, bytes]
    _stamp: bytes = attrs.field(init=False, default=b"")
    _table: OptionTable = attrs.field(init=False, default=OptionTable({}))
    _one_at_a_time: anyio.Lock = attrs.field(init=False, factory=anyio.Lock)
    _files: BlockingCalls = attrs.field(init=False, factory=BlockingCalls)

    @classmethod
    async def read(cls, stap: StapProgram, environ: Mapping[str, str]) -> InstalledOptions:
        """Read the names of a stap's options; raises a ConfigError if servers cannot use that stap."""
        if tuple(map(int, stap.version.split(".")))[:2] < _OLDEST:
            raise ConfigError(
                f"is of SystemTap {stap.version}, which is too old", where=str(stap.path), remedy=_WORKS_WITH
            )
        variables = {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}
        variables.pop(b"POSIXLY_CORRECT", None)
        variables |= {b"LC_ALL": b"C", b"SYSTEMTAP_DIR": os.fsencode(os.devnull)}
        options = cls(stap.path, variables)
        try:
            await options._refresh()
        except (OSError, TranslatorError) as exc:
            reason = exc.problem if isinstance(exc, TranslatorError) else str(exc)
            raise ConfigError(reason, where=str(stap.path), remedy=_WORKS_WITH) from exc
        return options

    async def table_for(self, arguments: Sequence[bytes]) -> OptionTable:
        """Return the table by which stap reads these arguments; may raise a TranslatorError."""
        if not any(argument.startswith(b"--") for argument in arguments):
            return self._table
        async with self._one_at_a_time:
            try:
                await self._refresh()
            except OSError as exc:
                raise TranslatorError(f"stap could not be looked at: {exc.strerror}") from exc
            named = {self._table.named(argument) for argument in arguments}
            for name in named - {None}:
                await self._ask_value(name)
            return self._table

    async def _refresh(self) -> None:
        now = await self._files.run(partial(stamp, self._path))
        if now == self._stamp:
            return
        listed = _POSSIBILITIES.search(await self._ask(b"--=1"))
        names = [] if listed is None else [name.decode("ascii") for name in _NAME.findall(listed[1])]
        if not _NEEDED.issubset(names):
            raise TranslatorError("does not say which options it has")
        self._table, self._stamp = OptionTable(dict.fromkeys(names)), now

    async def _ask_value(self, name: str | None) -> None:
        if name is None or self._table.long[name] is not None:
            return
        option = b"--" + name.encode("ascii")
        if b"'%s' doesn't allow an argument" % option in await self._ask(option + b"=1", b"--=2"):
            value: OptionValue | None = OptionValue.NONE
        elif b"'--=1' is ambiguous" in await self._ask(option, b"--=1", b"--=2"):
            value = OptionValue.OPTIONAL
        elif b"'%s' requires an argument" % option in await self._ask(option):
            value = OptionValue.REQUIRED
        else:
            # It objects to the option itself, as it does for clients to some.
            value = STAP_4_8.long.get(name)
        self._table = OptionTable({**self._table.long, name: value})

    async def _ask(self, *arguments: bytes) -> bytes:
        command = [os.fsencode(self._path), b"--client-options", *arguments]
        result = await run_process_tree(command, deadline_s=_ANSWER_S, env=self._environ)
        if result.exit_reason is not ExitReason.EXITED or result.status <= 0:
            raise TranslatorError("stap does not say which options it has")
        return result.stderr
