"""Every command of this project, as its own tables and parsers tell of it."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NamedTuple

from stapsrv.client.command import _parser as compile_parser
from stapsrv.control.cli import dispatch
from stapsrv.control.cli.help import ACTIONS, ALIASES, OPTIONS, groups_of
from stapsrv.daemon_options import _parser as daemon_parser
from stapsrv.farm.options import _parser as farm_parser


class Option(NamedTuple):
    """One option.

    Attributes:
        names: as it is typed.
        metavar: what stands for its value; None if it takes none.
        text: what it does.
        group: the heading that it stands under.
        choices: the only values that there are, if so.
    """

    names: tuple[str, ...]
    metavar: str | None
    text: str
    group: str = "options"
    choices: tuple[str, ...] = ()


class Command(NamedTuple):
    """A program, or one of its words.

    Attributes:
        words: what is typed: the program, then the action or tool and the verb.
        summary: what it does, in a few words.
        options: its own.
        verbs: what may follow.
        operand: the name of an argument that it takes, or None.
    """

    words: tuple[str, ...]
    summary: str
    options: tuple[Option, ...] = ()
    verbs: tuple[Command, ...] = ()
    operand: str | None = None


def daemon() -> Command:
    """``stap-serverd``."""
    return _from_parser(("stap-serverd",), daemon_parser())


def compile_client() -> Command:
    """``stap-compile``, with its own options; it takes stap's, too."""
    return _from_parser(("stap-compile",), compile_parser())


def farm() -> Command:
    """``stap-farm``: its commands."""
    return _from_parser(("stap-farm",), farm_parser())


def server() -> Command:
    """``stap-server``: its actions, and its tools."""
    verbs = [*map(_action, ACTIONS), *map(_action, ALIASES), *(_tool(name) for name in dispatch._TOOLS)]
    return Command(("stap-server",), "manage SystemTap compile servers", verbs=tuple(verbs))


def _action(name: str) -> Command:
    known = ALIASES.get(name, name)
    groups = groups_of(known)
    options = tuple(
        Option((row.option,), row.metavar, row.text, str(row.group), _choices(row.metavar))
        for group in groups
        for row in OPTIONS
        if row.group is group
    )
    return Command(("stap-server", name), ACTIONS[known][0], options)


def _tool(name: str) -> Command:
    return _from_parser(("stap-server", name), import_module(dispatch._TOOLS[name])._parser())


def _from_parser(words: tuple[str, ...], parser: argparse.ArgumentParser) -> Command:
    options: list[Option] = []
    verbs: list[Command] = []
    operand = None
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                verbs += [_from_parser((*words, verb), below) for verb, below in action.choices.items()]
            elif not action.option_strings:
                operand = str(action.metavar or action.dest)
            elif action.help != argparse.SUPPRESS:
                options.append(_option(action, group.title or "options", parser.prog))
    return Command(words, (parser.description or "").rstrip("."), tuple(options), tuple(verbs), operand)


def _option(action: argparse.Action, group: str, program: str) -> Option:
    choices = tuple(map(str, action.choices or ())) or _choices(str(action.metavar or ""))
    metavar = None
    if action.nargs != 0:
        metavar = str(action.metavar or "|".join(choices) or action.dest.upper())
    text = (action.help or "").replace("%(prog)s", program).replace("%(default)s", str(action.default))
    return Option(tuple(action.option_strings), metavar, text.replace("%%", "%"), group, choices)


def _choices(metavar: str | None) -> tuple[str, ...]:
    """Return the words of a metavar such as ``yes|no``."""
    return tuple(metavar.split("|")) if metavar and "|" in metavar else ()
