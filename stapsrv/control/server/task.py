"""A command in a task of its own, which goes on when nobody waits for it any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.errors import ControlError, StapsrvError
from stapsrv.supervisor.operations import Outcome, Report
from stapsrv.supervisor.status import ServerStatus

# Changes waiting to be sent. A client slower than this misses the oldest, but no outcome.
_MOST_STEPS = 1024


class CommandTask:
    """One command and its progress; one task waits for it."""

    def __init__(self, command: Callable[[Report], Awaitable[Sequence[Outcome]]], log: Log) -> None:
        # The last reported status of each server, by id.
        self.latest: dict[int, ServerStatus] = {}
        self._command = command
        self._log = log
        self._steps: deque[ServerStatus] = deque(maxlen=_MOST_STEPS)
        self._outcomes: Sequence[Outcome] | None = None
        self._error: ControlError | None = None
        self._changed = anyio.Event()
        self._waited_for = True

    @property
    def ended(self) -> bool:
        """Whether the command has outcomes or an error."""
        return self._outcomes is not None or self._error is not None

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The outcomes of a command that has ended.

        Raises:
            ControlError: it could not be carried out (FAILED), or crashed (INTERNAL_ERROR).
        """
        if self._error is not None:
            raise self._error
        assert self._outcomes is not None, "asked before the end"  # noqa: S101
        return self._outcomes

    async def run(self) -> None:
        """Run the command; raises nothing but cancellation."""
        try:
            self._outcomes = await self._command(self._report)
        except StapsrvError as exc:
            self._log.warning("control.failed", reason=exc)
            self._error = ControlError(str(exc), code=Code.FAILED)
        except Exception:  # noqa: BLE001 - the one net below a command
            self._log.exception("control.crashed")
            self._error = ControlError(
                "internal error", code=Code.INTERNAL_ERROR, remedy="see the supervisor's log"
            )
        self._changed.set()
        if self._waited_for:
            return
        for outcome in self._outcomes or ():
            if outcome.server is None and outcome.error is not None:
                self._log.warning("control.failed", reason=outcome.error)

    async def wait_step(self, deadline: float) -> ServerStatus | None:
        """Return the next change of a server; None at ``deadline`` (the loop's clock), or if no more come."""
        while not self._steps and not self.ended:
            self._changed = anyio.Event()
            try:
                with anyio.CancelScope(deadline=deadline) as scope:
                    await self._changed.wait()
            except anyio.get_cancelled_exc_class():
                # The end of the last server ends the whole supervisor, and this wait with it; what the
                # command came to must still be told.
                if not self.ended:
                    raise
            if scope.cancelled_caught and not self._steps:
                return None
        return self._steps.popleft() if self._steps else None

    def leave(self) -> None:
        """Stop waiting; the command goes on and its refusals are logged."""
        self._waited_for = False

    def _report(self, status: ServerStatus) -> None:
        self.latest[status.id] = status
        self._steps.append(status)
        self._changed.set()
