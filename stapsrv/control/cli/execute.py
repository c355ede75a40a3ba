"""Carries out a plan, with the supervisors of all users side by side, and reports each server's outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stapsrv.control.cli.console import named
from stapsrv.control.cli.inventory import FoundServer, Inventory, LostServer
from stapsrv.control.cli.plan import Target
from stapsrv.control.cli.report import Reporter, Result, Verb
from stapsrv.control.cli.supervisors import ALREADY_DOWN, Supervisors
from stapsrv.control.protocol.schema import settings_info
from stapsrv.errors import StapsrvError

if TYPE_CHECKING:
    from stapsrv.control.client.sync import Command
    from stapsrv.control.protocol.schema import OutcomeInfo, ServerSpecInfo
    from stapsrv.control.protocol.status_fields import SettingsInfo

    # A user's name and targets in, an outcome for each out.
    _Ask: TypeAlias = Callable[[str, list[Target]], list[OutcomeInfo]]
    # Knows whom and what to ask.
    _AskOne: TypeAlias = Callable[[], list[OutcomeInfo]]


class Executor:
    """Carries out operations; a failure with one server or user does not stop the others."""

    def __init__(self, inventory: Inventory, supervisors: Supervisors, reporter: Reporter) -> None:
        self.failed = False
        self._supervisors = supervisors
        self._reporter = reporter
        self._default_user = inventory.default_user
        self._complaints: set[str] = set()

    def user_of(self, target: Target) -> str:
        """Return the user that a target's server runs as, or is to run as."""
        if isinstance(target.server, FoundServer):
            return target.server.supervisor["user"]
        user = target.settings.user if target.settings is not None else None
        return user or self._default_user

    def complain(self, *faults: str) -> None:
        """Report problems that are not about a single server, each once."""
        self.failed = self.failed or bool(faults)
        for fault in faults:
            if fault not in self._complaints:
                self._complaints.add(fault)
                self._reporter.complain(fault)

    def stop(self, targets: Sequence[Target]) -> list[Target]:
        """Stop servers, orphaned ones too; return those that are down."""
        hosted = [target for target in targets if isinstance(target.server, FoundServer)]
        outcomes = [
            (target, self._forget(target, target.server))
            for target in targets
            if isinstance(target.server, LostServer)
        ]
        outcomes += self._each(
            Verb.STOP, hosted, lambda user, group: self._supervisors.stop(user, _ids(group))
        )
        for target, outcome in outcomes:
            self.report(Verb.STOP, target, outcome)
        return [target for target, outcome in outcomes if outcome["error"] is None]

    def restart(self, targets: Sequence[Target]) -> None:
        """Stop and start servers with the settings that they have."""
        outcomes = self._each(
            Verb.RESTART,
            targets,
            lambda user, group: self._supervisors.restart(user, _ids(group), _specs(group)),
        )
        for target, outcome in outcomes:
            self.report(Verb.STOP, target, outcome if _is_stuck(outcome) else {**outcome, "error": None})
        for target, outcome in outcomes:
            if not _is_stuck(outcome):
                self.report(Verb.START, target, outcome)

    def start(self, targets: Sequence[Target]) -> None:
        """Start servers; running ones are left as they are."""
        self._report_each(
            Verb.START, targets, lambda user, group: self._supervisors.start(user, _specs(group))
        )

    def drain(self, targets: Sequence[Target], *, undo: bool) -> None:
        """Drain servers, or with ``undo`` let them accept again."""
        verb = Verb.UNDRAIN if undo else Verb.DRAIN
        command: Command = "undrain" if undo else "drain"
        self._report_each(
            verb, targets, lambda user, group: self._supervisors.command(command, user, _ids(group))
        )

    def reload(self, users: Sequence[str], *, anew: bool = False) -> None:
        """Have users' supervisors apply the configuration, or stop their servers and begin ``anew``.

        To apply it, one is started where there is none.
        """
        if not users:
            return
        self._reporter.begin(Verb.RELOAD, [f"the servers of user {user}" for user in users])
        ask = self._supervisors.begin_anew if anew else self._supervisors.reload
        for answer in _side_by_side([partial(ask, user) for user in users]):
            if isinstance(answer, StapsrvError):
                self.complain(str(answer))
            else:
                for outcome in answer:
                    self._report_reloaded(outcome)

    def report(self, verb: Verb, target: Target, outcome: OutcomeInfo) -> None:
        """Report the outcome of a target."""
        settings: SettingsInfo = {} if target.settings is None else settings_info(target.settings)
        if isinstance(target.server, FoundServer) and verb is not Verb.START:
            settings = named(target.server.info)
        self._report(verb, settings, self._name(target), outcome)

    def _report_each(self, verb: Verb, targets: Sequence[Target], ask: _Ask) -> None:
        for target, outcome in self._each(verb, targets, ask):
            self.report(verb, target, outcome)

    def _each(self, verb: Verb, targets: Sequence[Target], ask: _Ask) -> list[tuple[Target, OutcomeInfo]]:
        """Ask each user's supervisor about that user's targets; return all outcomes."""
        groups: dict[str, list[Target]] = {}
        for target in targets:
            groups.setdefault(self.user_of(target), []).append(target)
        if groups:
            self._reporter.begin(verb, [self._name(target) for group in groups.values() for target in group])
        outcomes: list[tuple[Target, OutcomeInfo]] = []
        answers = _side_by_side([partial(ask, user, group) for user, group in groups.items()])
        for group, answer in zip(groups.values(), answers, strict=True):
            if isinstance(answer, StapsrvError):
                outcomes += [(target, failure(str(answer))) for target in group]
            else:
                outcomes += zip(group, answer, strict=True)
        return outcomes

    def _forget(self, target: Target, server: LostServer) -> OutcomeInfo:
        """Remove an orphaned server's record, so that no supervisor takes it over."""
        try:
            self._supervisors.forget(self.user_of(target), Path(server.info["record"]))
        except StapsrvError as exc:
            return failure(str(exc))
        return ALREADY_DOWN

    def _name(self, target: Target) -> str:
        if isinstance(target.server, FoundServer):
            return target.server.info["nickname"]
        settings = target.settings
        if settings is None:
            return "server"
        file = Path(target.where).name if target.where is not None else None
        return settings.nickname or file or ", ".join(settings.releases) or "server"

    def _report_reloaded(self, outcome: OutcomeInfo) -> None:
        server = outcome["server"]
        if server is None:
            self.complain(outcome["error"] or "something was refused without a reason")
        elif server["wanted"] == "down":
            self._report(Verb.STOP, named(server), server["nickname"], outcome)
        else:
            self._report(Verb.START, server["settings"], server["nickname"], outcome)

    def _report(self, verb: Verb, settings: SettingsInfo, name: str, outcome: OutcomeInfo) -> None:
        self.failed = self.failed or outcome["error"] is not None
        self._reporter.result(Result(verb, settings, name, **outcome))


def _side_by_side(asks: Sequence[_AskOne]) -> list[list[OutcomeInfo] | StapsrvError]:
    """Ask all supervisors at once, so that one that stalls holds up no other; return answers or errors."""
    answers: dict[int, list[OutcomeInfo] | Exception] = {}

    def ask_one(number: int) -> None:
        try:
            answers[number] = asks[number]()
        except Exception as exc:  # noqa: BLE001 - raised below, in the thread that waits for it
            answers[number] = exc

    # Daemon threads: who interrupts the command waits for none of them.
    threads = [threading.Thread(target=ask_one, args=(number,), daemon=True) for number in range(len(asks))]
    for thread in threads:
        thread.start()
    found = []
    for number, thread in enumerate(threads):
        thread.join()
        answer = answers[number]
        if isinstance(answer, Exception) and not isinstance(answer, StapsrvError):
            raise answer
        found.append(answer)
    return found


def failure(reason: str) -> OutcomeInfo:
    """Return the outcome of a server that could not be asked for."""
    return {"server": None, "already": False, "error": reason}


def _ids(targets: Sequence[Target]) -> list[int]:
    return [target.server.server_id for target in targets if target.server is not None]


def _specs(targets: Sequence[Target]) -> list[ServerSpecInfo]:
    return [
        {"settings": settings_info(target.settings), "origin": target.where}
        for target in targets
        if target.settings is not None
    ]


def _is_stuck(outcome: OutcomeInfo) -> bool:
    return outcome["server"] is not None and outcome["server"]["state"] == "stopping"
