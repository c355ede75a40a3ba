"""The command line of ``stap-server ACTION [options]``: words in, one value out.

The order of the options means something, so what comes out keeps it as far as it does:

* ``-a -r -I -R -B -D -u`` describe a server: the same one, however many are typed; ``-r -I -B -D`` add up.
  So do the long options of the table of tunables (:mod:`stapsrv.config.tunables`).
* ``-n`` and ``-p`` name a server whose settings take the place of what described this one before; what
  follows overrides them. A second ``-n`` or ``-p`` begins a further server.
* ``-i`` means one server for each installed release, with the ``-I -R -B -D -u`` typed before it. What
  follows describes a further server, which ``-r``, ``-n`` or ``-p`` must then name, lest an option that
  came too late for ``-i`` starts a server of its own.
* ``-I -R -B -D -u`` and the tunables stay in force for further servers (manual page: "the server(s)"); the
  selection, which puts servers together, sees to that.
* ``--log --port --ssl --max-threads --max-request-size --max-compressed-request`` make lists, to be dealt out
  in turn when the servers are known.

Source: manual page, OPTIONS. The original of 4.8 takes a whole command line for one server: a second
``-n`` replaces the first, and ``-i`` makes one server of all releases (older ones did as the manual page
says). Its check lets ``-rX`` and ``--port=X`` pass and its parser then refuses them; here a value may be
attached or separate. ``-k`` and ``-P`` swallow the next word there, here not.

An invocation crosses the control socket as words, too: one grammar and one set of checks, and a program
may ask for what the manual page says.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stapsrv.config.files import PORTS, REQUEST_BYTES, THREADS, NumberRange, unwritable_reason
from stapsrv.control.cli.invocation import (
    LIST_OPTIONS,
    TUNING_OPTIONS,
    Action,
    DealtValue,
    Invocation,
    OutputForm,
    ServerOption,
    ServerSpecification,
    TypedOption,
)
from stapsrv.errors import ControlError, UsageError

_NAMES = (ServerOption.NICKNAME, ServerOption.PID)
_LISTS = {option: attribute for attribute, option in LIST_OPTIONS.items()}
_NUMBERS: Mapping[str, NumberRange] = {
    "--port": PORTS,
    "--max-threads": THREADS,
    "--max-request-size": REQUEST_BYTES,
    "--max-compressed-request": REQUEST_BYTES,
}
_PATHS = ("-c", "-I", "-R", "--log", "--ssl")
_WITH_VALUE = ("-c", "--timeout", *ServerOption, *_LISTS, *TUNING_OPTIONS)
_FLAGS = ("-i", "-k", "-P", "--json", "--classic", "--wait", "--no-wait", "--help", "--version")
_MAY_BE_EMPTY = ("-a", "-R", "-u", *_LISTS, *TUNING_OPTIONS)
_CONTROL = "ctl"
_INVALID_PARAMS = -32602
"""JSON-RPC 2.0, error object."""
_ACTIONS = {str(action): action for action in Action} | {
    "try-restart": Action.CONDRESTART,
    "--help": Action.HELP,
    "--version": Action.VERSION,
}


def parse_arguments(words: Sequence[str], *, directory: str | None) -> Invocation:
    """Read a command line, without the program's name.

    Args:
        words: the action, then the options.
        directory: the caller's working directory, to make relative paths absolute with: the supervisor
            that will use them has another one. None refuses relative paths.

    Raises:
        UsageError: it cannot be understood; the text names the option.
    """
    running_only = bool(words) and words[0] == _CONTROL
    if running_only:
        words = words[1:]
    reader = _Reader(_parse_action(words), directory)
    for option, value in _split(words[1:]):
        reader.take(option, value)
    invocation = reader.finish()._replace(running_only=running_only)
    if invocation.action is Action.RELOAD and invocation.specifications:
        raise UsageError(
            "reload takes no servers: it makes the running ones those that are configured",
            remedy="name none, or restart those that you mean",
        )
    return invocation


def encode_invocation(invocation: Invocation) -> list[str]:
    """Return the words that stand for an invocation on the control socket (:func:`decode_invocation`)."""
    words = [_CONTROL] if invocation.running_only else []
    words.append(str(invocation.action))
    for server in invocation.specifications:
        name = () if server.name is None else (server.name,)
        for typed in (*server.earlier, *name, *server.settings):
            words += typed
        words += ["-i"] if server.each_release else []
    for attribute, option in LIST_OPTIONS.items():
        for value in getattr(invocation.lists, attribute):
            words += (option, "" if value is None else str(value))
    words += () if invocation.config_file is None else ("-c", invocation.config_file)
    flags = {
        "-k": invocation.keep_temporary,
        "-P": invocation.use_password,
        "--no-wait": not invocation.wait,
        f"--{invocation.output}": invocation.output is not OutputForm.AUTO,
    }
    words += [flag for flag, given in flags.items() if given]
    words += () if invocation.timeout_s is None else ("--timeout", str(invocation.timeout_s))
    return words


def decode_invocation(data: object) -> Invocation:
    """Read the words that a peer sent as a JSON array.

    Raises:
        ControlError: not an array of strings, or not a command line; relative paths are refused, since
            the peer's working directory is not known.
    """
    if not isinstance(data, list) or not all(isinstance(word, str) for word in data):
        raise ControlError("expected an array of strings, the words of a command line", code=_INVALID_PARAMS)
    try:
        return parse_arguments(data, directory=None)
    except UsageError as exc:
        raise ControlError(str(exc), code=_INVALID_PARAMS) from exc


class _Specifications:
    """Groups options, as they come, into specifications."""

    def __init__(self) -> None:
        self._done: list[ServerSpecification] = []
        self._open = ServerSpecification()

    def take(self, typed: TypedOption) -> None:
        if typed.option not in _NAMES:
            self._open = self._open._replace(settings=(*self._open.settings, typed))
            return
        if self._open.name is not None:
            self._close()
        self._open = ServerSpecification(name=typed, earlier=self._open.settings)

    def repeat_for_each_release(self) -> None:
        self._open = self._open._replace(each_release=True)
        self._close()

    def finish(self) -> tuple[ServerSpecification, ...]:
        if self._open != ServerSpecification():
            self._refuse_too_late_for_each()
            self._close()
        return tuple(self._done)

    def _refuse_too_late_for_each(self) -> None:
        after_each = bool(self._done) and self._done[-1].each_release
        typed = [setting.option for setting in self._open.settings]
        if after_each and self._open.name is None and ServerOption.RELEASE not in typed:
            raise UsageError(
                f"{typed[0]} after -i applies to no server",
                remedy="put it before -i, or name the further server with -r, -n or -p",
            )

    def _close(self) -> None:
        self._done.append(self._open)
        self._open = ServerSpecification()


class _Reader:
    """Takes options one by one."""

    def __init__(self, action: Action, directory: str | None) -> None:
        self._invocation = Invocation(action)
        self._directory = directory
        self._specifications = _Specifications()
        self._flags: list[str] = []

    def take(self, option: str, value: str) -> None:
        """Note one option; ``value`` is empty for those that take none."""
        if option in _FLAGS:
            self._flags.append(option)
            if option == "-i":
                self._specifications.repeat_for_each_release()
            return
        if option in _PATHS and value and self._directory is not None:
            # Not pathlib: an absolute path stays exactly as it was typed.
            value = os.path.join(self._directory, value)  # noqa: PTH118
        _checked(option, value)
        if option in _LISTS:
            lists, name = self._invocation.lists, _LISTS[option]
            dealt = (*getattr(lists, name), _parse_dealt(option, value))
            self._invocation = self._invocation._replace(lists=lists._replace(**{name: dealt}))
        elif option == "-c":
            self._invocation = self._invocation._replace(config_file=value)
        elif option == "--timeout":
            self._invocation = self._invocation._replace(timeout_s=_parse_timeout(value))
        elif option in TUNING_OPTIONS:
            _check_tuning(option, value)
            self._specifications.take(TypedOption(option, value))
        else:
            self._specifications.take(TypedOption(ServerOption(option), value))

    def finish(self) -> Invocation:
        flags = self._flags
        if "--json" in flags and "--classic" in flags:
            raise UsageError("--json and --classic exclude each other")
        shown = [_ACTIONS[flag] for flag in flags if flag in _ACTIONS]
        forms = [form for form in OutputForm if f"--{form}" in flags]
        waits = [flag == "--wait" for flag in flags if flag in ("--wait", "--no-wait")]
        return self._invocation._replace(
            action=shown[0] if shown else self._invocation.action,
            specifications=self._specifications.finish(),
            keep_temporary="-k" in flags,
            use_password="-P" in flags,
            wait=waits[-1] if waits else True,
            output=forms[0] if forms else OutputForm.AUTO,
        )


def _parse_action(words: Sequence[str]) -> Action:
    listed = f"give one of {', '.join(Action)}"
    if not words:
        raise UsageError("no action given", remedy=listed)
    action = _ACTIONS.get(words[0])
    if action is not None:
        return action
    if words[0].startswith("-"):
        raise UsageError(f"{words[0]!r} comes before the action", remedy=f"first {listed}")
    nearest = _nearest(words[0], _ACTIONS)
    raise UsageError(f"unknown action {words[0]!r}", remedy=f"did you mean {nearest}?" if nearest else listed)


def _split(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give each option with its value, which is empty for one that takes none."""
    rest = iter(words)
    for word in rest:
        if word == "--":
            # The original skips it, and goes on to read options.
            continue
        if word.startswith("--"):
            option, attached, value = word.partition("=")
        else:
            option, value = word[:2], word[2:]
            attached = value
        if option in _FLAGS:
            if attached:
                raise UsageError("takes no value", where=option)
        elif option not in _WITH_VALUE:
            raise _unknown(word, option)
        elif not attached:
            separate = next(rest, None)
            if separate is None:
                raise UsageError("needs a value", where=option)
            value = separate
        yield option, value


def _unknown(word: str, option: str) -> UsageError:
    if not word.startswith("-") or word == "-":
        return UsageError(f"unexpected argument {word!r}", remedy="see stap-server --help")
    known = [name for name in (*_WITH_VALUE, *_FLAGS) if name.startswith("--") and option.startswith("--")]
    nearest = _nearest(option, known)
    remedy = f"did you mean {nearest}?" if nearest else "see stap-server --help"
    return UsageError(f"unknown option {option!r}", remedy=remedy)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant."""
    import difflib  # noqa: PLC0415 - only mistakes need it, and each run would pay for it

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def _checked(option: str, value: str) -> str:
    """Return a value, if a settings file could hold it and the option takes it."""
    reason = unwritable_reason(value)
    if reason is not None:
        raise UsageError(f"the value {reason}", where=option)
    # A file that records the server would read "()" as an array without elements.
    if option not in _MAY_BE_EMPTY and value in ("", "()"):
        raise UsageError("needs a value", where=option)
    if value and option in _PATHS and not value.startswith("/"):
        raise UsageError(f"expected an absolute path, not {value!r}", where=option)
    return value


def _parse_dealt(option: str, value: str) -> DealtValue:
    if not value:
        return None
    allowed = _NUMBERS.get(option)
    if allowed is None:
        return value
    try:
        return allowed.parse(value)
    except ValueError as exc:
        raise UsageError(f"expected {exc}, not {value!r}", where=option) from exc


def _check_tuning(option: str, value: str) -> None:
    """Refuse what the table does not take; an empty value takes back what was typed before."""
    try:
        if value:
            TUNING_OPTIONS[option].kind.parse(value)
    except ValueError as exc:
        raise UsageError(f"expected {exc}, not {value!r}", where=option) from exc


def _parse_timeout(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"expected a number of seconds above 0, not {value!r}", where="--timeout")
    return seconds
