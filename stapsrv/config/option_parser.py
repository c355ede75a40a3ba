"""The grammar of the programs' command lines: argparse, with the habits of getopt that scripts rely on."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stapsrv.errors import UsageError
from stapsrv.text import nearest

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from stapsrv.config.setting import Setting

_ABOUT_OPTION = re.compile(r"argument (\S+): (.*)", re.DOTALL)


class Append(argparse.Action):
    """Append (option, value) to the list ``typed``, in the order of the command line; no value is None."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002 - it may be an abbreviation
    ) -> None:
        """Take one option."""
        value = values if isinstance(values, str) else None
        namespace.typed = [*getattr(namespace, "typed", ()), (self.option_strings[0], value)]


def add_typed(values: dict[str, Any], row: Setting[Any], text: str) -> None:
    """Parse an option's value into ``values``; raise a UsageError that names the option."""
    # A path is made absolute, since a compile runs in another directory.
    if row.kind.is_path:
        if not text:
            raise UsageError("needs a value", where=row.option)
        text = str(Path(text).absolute())
    try:
        row.add(values, text)
    except ValueError as exc:
        raise UsageError(f"expected {exc}, not {text!r}", where=row.option) from exc


def help_of(row: Setting[Any]) -> str:
    """Return argparse's help of an option: what it does, and its default."""
    default = f" (default: {row.default_text})" if row.default_text else ""
    repeated = "; may be repeated" if row.array else ""
    return f"{row.help}{repeated}{default}".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Argparse, whose help is written or fails: Python 3.12 and later ignore such an error."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        (file or sys.stderr).write(message)


class OptionParser(Parser):
    """Argparse, with getopt's values and with errors of our own, one line each."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read a command line; the namespace has ``typed``. The text of a UsageError names the option."""
        namespace, rest = self.parse_known_args(self._attached(words), argparse.Namespace(typed=[]))
        if rest:
            self._refuse(rest[0])
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a UsageError."""
        about = _ABOUT_OPTION.fullmatch(message)
        option, problem = (about[1], about[2]) if about else (None, message)
        if problem.startswith("ignored explicit argument"):
            problem = "takes no value"
        problem = problem.replace("expected one argument", "needs a value")
        raise UsageError(problem, where=option, remedy=None if about else f"see {self.prog} --help")

    def _attached(self, words: Sequence[str]) -> list[str]:
        # By "=", where argparse takes it for nothing else: getopt takes the next word for the value even when
        # it begins with a dash, and -n=x for "=x".
        with_value = {name for action in self._actions if action.nargs != 0 for name in action.option_strings}
        attached: list[str] = []
        rest = iter(words)
        for word in rest:
            if word in with_value:
                value = next(rest, None)
                attached.append(word if value is None else f"{word}={value}")
            elif word[:2] in with_value and not word.startswith("--"):
                attached.append(f"{word[:2]}={word[2:]}")
            elif word != "--":
                # The original skips a "--", and goes on to read options.
                attached.append(word)
        return attached

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:  # noqa: ANN401 - argparse's
        # Argparse would drop a value that is "--".
        if isinstance(action, Append) and action.nargs is None:
            return arg_strings[0]
        return super()._get_values(action, arg_strings)

    def _refuse(self, word: str) -> NoReturn:
        remedy = f"see {self.prog} --help"
        if not word.startswith("-") or word == "-":
            raise UsageError(f"unexpected argument {word!r}", remedy=remedy)
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        names = [name for action in self._actions for name in action.option_strings]
        known = [name for name in names if name.startswith("--") and option.startswith("--")]
        meant = nearest(option, known)
        raise UsageError(f"unknown option {option!r}", remedy=f"did you mean {meant}?" if meant else remedy)
