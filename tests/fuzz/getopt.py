"""The C library's getopt_long with the tables that stap 4.8 gives it: our parser has to agree with it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import attrs

TABLES = Path(__file__).with_name("stap-4.8.options")


class _Option(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("has_arg", ctypes.c_int),
        ("flag", ctypes.c_void_p),
        ("val", ctypes.c_int),
    )


@attrs.frozen
class Read:
    """How getopt_long reads a list: as :class:`stapsrv.compile.protocol.options.ParsedOptions`."""

    options: tuple[tuple[str, bytes | None], ...]
    operands: tuple[bytes, ...]
    failed: bool


class Getopt:
    """Reads argument lists; one of its kind at a time, since the C library's state is global."""

    def __init__(self) -> None:
        rows = [line for line in TABLES.read_text().splitlines() if not line.startswith("#")]
        self._short = rows[0].encode()
        self.names: dict[int, str] = {}
        table = []
        for row in rows[1:]:
            name, has_arg, value = row.split()
            self.names.setdefault(int(value), name)
            table.append(_Option(name.encode(), int(has_arg), None, int(value)))
        self._long = (_Option * (len(table) + 1))(*table, _Option(None, 0, None, 0))
        self._library = ctypes.CDLL(None)
        self._optind = ctypes.c_int.in_dll(self._library, "optind")
        self._optarg = ctypes.c_char_p.in_dll(self._library, "optarg")
        ctypes.c_int.in_dll(self._library, "opterr").value = 0

    def read(self, arguments: Sequence[bytes]) -> Read:
        """Read a list without NULs; where that fails, without its operands."""
        argv = (ctypes.c_char_p * (len(arguments) + 2))(b"stap", *arguments, None)
        self._optind.value = 0
        options: list[tuple[str, bytes | None]] = []
        while True:
            code = self._library.getopt_long(
                len(arguments) + 1, argv, ctypes.c_char_p(self._short), self._long, None
            )
            if code == ord("?"):
                return Read(tuple(options), (), failed=True)
            if code == -1:
                operands = tuple(argv[index] for index in range(self._optind.value, len(arguments) + 1))
                return Read(tuple(options), operands, failed=False)
            options.append((self.names.get(code) or chr(code), self._optarg.value))
