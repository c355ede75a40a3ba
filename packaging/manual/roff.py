"""Manual pages: templates in, pages out, in the macros of man(7).

A template is a page with lines such as ``@options stap-serverd``, each of which stands for what a table says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from model import Command, Option

Directive = Callable[[Sequence[str]], Iterable[str]]


def fill(template: str, directives: dict[str, Directive]) -> str:
    """Return a page: each line ``@NAME WORD …`` replaced with what the directive NAME makes of the words.

    Raises:
        KeyError: there is no such directive.
    """
    lines: list[str] = []
    for line in template.splitlines():
        if line.startswith("@"):
            name, *words = line[1:].split()
            lines += directives[name](words)
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return text that is shown as it is: options keep their dashes, no line is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("…", "...").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{text}" if text.startswith(".") else text


def entry(title: str, text: str) -> list[str]:
    """Return an item of a list: a title, and below it what it means."""
    return [".TP", title, escaped(_sentence(text))]


def option_title(option: Option) -> str:
    """Return how an option is typed, in bold, its value in italics."""
    names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in option.names)
    return f"{names} \\fI{escaped(option.metavar)}\\fR" if option.metavar else names


def options(command: Command, *, without: Iterable[str] = ()) -> list[str]:
    """Return a command's options under the headings of their groups."""
    lines: list[str] = []
    heading = None
    for option in command.options:
        if set(option.names) & {*without}:
            continue
        if option.group != heading:
            heading = option.group
            lines += [f".SS {_heading(heading)}"]
        lines += entry(option_title(option), option.text)
    return lines


def bold(text: str) -> str:
    """Return text in bold."""
    return f"\\fB{escaped(text)}\\fR"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _heading(text: str) -> str:
    return escaped(re.sub(r" \(.*\)$", "", text[:1].upper() + text[1:]))
