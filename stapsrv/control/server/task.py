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
        self._result: Sequence[Outcome] | ControlError | None = None
        self._changed = anyio.Event()
        self._waited_for = True

    @property
    def ended(self) -> bool:
        """Whether the command has outcomes or an error."""
        return self._result is not None

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """The outcomes of a command that has ended.

        Raises:
            ControlError: it could not be carried out (FAILED), or crashed (INTERNAL_ERROR).
        """
        assert self._result is not None, "asked before the end"  # noqa: S101
        if isinstance(self._result, ControlError):
            raise self._result
        return self._result

    async def run(self) -> None:
        """Run the command; raises nothing but cancellation."""
        try:
            self._result = outcomes = await self._command(self._report)
        except StapsrvError as exc:
            self._log.warning("control.failed", reason=exc)
            self._result = ControlError(str(exc), code=Code.FAILED)
        except Exception:  # noqa: BLE001 - the one net below a command
            self._log.exception("control.crashed")
            self._result = ControlError(
                "internal error", code=Code.INTERNAL_ERROR, remedy="see the supervisor's log"
            )
        else:
            for outcome in () if self._waited_for else outcomes:
                if outcome.server is None and outcome.error is not None:
                    self._log.warning("control.failed", reason=outcome.error)
        self._changed.set()

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
