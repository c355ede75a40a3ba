"""Every error that a user of stapsrv can meet.

The tree, one level deep, is cut by who must act::

    StapsrvError            never raised itself
    ├── UsageError          the person at the command line: an unknown option, a bad number
    ├── ConfigError         the operator, before anything starts; never retried
    ├── IdentityError       the operator: a certificate database that cannot be used or made
    ├── ProtocolError       the peer broke framing, limits or the zip rules; ends its connection
    ├── RequestRejected     the client can mend it; the text is sent to it, so it holds no server path
    ├── TranslatorError     this server: stap could not be started, overran its deadline, or vanished
    ├── LifecycleError      the verb does not fit the state of the server
    ├── AdvertiseError      a server cannot be advertised; retried, never that server's failure
    └── ControlError        a command that is unknown, malformed or not permitted; a stable code each

Not errors: stap exiting non-zero (an outcome with a response), a frame of length 0 (a look at the
certificate), a client that leaves without close_notify, cancellation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from stapsrv.rejection import RejectReason


_E = TypeVar("_E", bound=BaseException)


def first_error(group: BaseExceptionGroup[_E]) -> _E:
    """Return the first exception of a group that is none itself: one start has one reason to fail."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


class StapsrvError(Exception):
    """What was wrong, where (a file and line, an option), and what to do about it, on one line.

    ``problem`` has no full stop; ``remedy`` is an imperative phrase; ``reject_reason`` is the bound that a
    peer or a compile met, if it is that.
    """

    # What a command exits with when this error ends it (manual page: 1 failed, 2 usage).
    exit_status: ClassVar[int] = 1

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        reject_reason: RejectReason | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.remedy = remedy
        self.reject_reason = reject_reason

    def __str__(self) -> str:
        sentence = self.problem if self.where is None else f"{self.where}: {self.problem}"
        return sentence if self.remedy is None else f"{sentence}; {self.remedy}"


class UsageError(StapsrvError):
    """A command line that cannot be understood; nothing was done."""

    exit_status = 2


class ConfigError(StapsrvError):
    """A setting that cannot be served: a missing build tree, a log that cannot be written."""


class IdentityError(StapsrvError):
    """A certificate database that is obsolete, damaged, locked or unreadable, or a tool that failed on it."""


class ProtocolError(StapsrvError):
    """The peer broke the framing, a size limit or the rules of the request zip."""


class RequestRejected(StapsrvError):
    """A well-formed request that this server will not run; the client reads why."""


class TranslatorError(StapsrvError):
    """stap could not be started or did not end within its deadline."""


class LifecycleError(StapsrvError):
    """A command that does not fit what a server is doing."""


class AdvertiseError(StapsrvError):
    """Multicast DNS cannot be spoken now: no network, a socket that is refused, a library that gave up."""


class ControlError(StapsrvError):
    """A command over the control socket that was not carried out; ``code`` is of ``docs/control.md``."""

    def __init__(self, problem: str, *, code: int, remedy: str | None = None) -> None:
        super().__init__(problem, remedy=remedy)
        self.code = code
