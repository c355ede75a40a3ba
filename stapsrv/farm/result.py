"""A node's answer to a job, as bytes: a result, or the error. Pure.

It is decoded as a stranger's, with the rules that hold for what a compile of this host leaves behind: names,
number and sizes of files, and of what was printed.
"""

from __future__ import annotations

import enum

import attrs

from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.engine.stap import MAX_FILES, is_answered_name
from stapsrv.compile.protocol.archive import path_problem
from stapsrv.compile.protocol.response import RESPONSE_DIRECTORY, ResponseFile
from stapsrv.config.table import Limits
from stapsrv.errors import ProtocolError, RequestRejected, StapsrvError, TranslatorError
from stapsrv.farm.wire import Fields, decode, encode
from stapsrv.rejection import RejectReason
from stapsrv.text import printable

_KIND = b"stapans\x01"
_MAX_TEXT = 4096
_MAX_WORD = 200
_MAX_HIDDEN = 16
_MAX_STATUS = 255
# The header and the paths of files, beside what the limits of a server count.
_OVERHEAD_BYTES = 8 * 1024**2
_STDIO = 2


class Failure(enum.StrEnum):
    """Why a node has no result."""

    TRANSLATOR = "translator"  # stap could not be run, or met a bound: a TranslatorError
    REJECTED = "rejected"  # the client can mend it: a RequestRejected
    CHANGED = "changed"  # what it would be compiled with is, or has become, another thing than the job states
    UNUSABLE = "unusable"  # the job breaks a rule


@attrs.frozen(kw_only=True)
class NodeResult:
    """The result of stap on a node, with what the node says of it."""

    result: CompileResult
    node: str
    build: str | None = None  # how the module was built
    uncacheable: str | None = None  # why the result is good for this request alone, in a word


@attrs.frozen(kw_only=True)
class NodeFailure:
    """Why there is no result."""

    failure: Failure
    node: str
    problem: str
    remedy: str | None = None
    reject_reason: RejectReason | None = None

    @classmethod
    def of(cls, exc: StapsrvError, *, node: str, failure: Failure) -> NodeFailure:
        """Return an error as the job's server is to read it, without a path of the node's."""
        return cls(
            failure=failure,
            node=node,
            problem=exc.problem,
            remedy=exc.remedy,
            reject_reason=exc.reject_reason,
        )

    def error(self) -> StapsrvError:
        """Return the error that the client reads, as if its server had compiled."""
        kind = RequestRejected if self.failure is Failure.REJECTED else TranslatorError
        return kind(self.problem, remedy=self.remedy, reject_reason=self.reject_reason)


def encode_answer(answer: NodeResult | NodeFailure) -> bytes:
    """Return an answer as bytes."""
    if isinstance(answer, NodeFailure):
        failed = {
            "failure": answer.failure.value,
            "node": answer.node,
            "problem": printable(answer.problem)[:_MAX_TEXT],
            "remedy": None if answer.remedy is None else printable(answer.remedy)[:_MAX_TEXT],
            "reject_reason": None if answer.reject_reason is None else answer.reject_reason.value,
        }
        return encode(_KIND, failed, ())
    result = answer.result
    header = {
        "failure": None,
        "node": answer.node,
        "build": answer.build,
        "uncacheable": answer.uncacheable,
        "status": result.status,
        "limit_met": result.limit_met,
        "hidden_paths": [printable(path)[:_MAX_TEXT] for path in result.hidden_paths],
        "files": [file.path for file in result.files],
    }
    return encode(_KIND, header, (result.stdout, result.stderr, *(file.data for file in result.files)))


def decode_answer(message: object, limits: Limits) -> NodeResult | NodeFailure:
    """Read an answer within the limits of the job's server; a ProtocolError if it is none."""
    most = 2 * limits.output_bytes + limits.answer_bytes + _OVERHEAD_BYTES
    fields, blobs = decode(_KIND, message, max_bytes=most)
    node = _word(fields, "node") or "?"
    if fields.optional_text("failure") is not None:
        return _failure(fields, node)
    paths = fields.texts("files", count=MAX_FILES)
    if len(blobs) != _STDIO + len(paths):
        raise _error("has not one blob for each file")
    if max(len(blobs[0]), len(blobs[1])) > limits.output_bytes:
        raise _error("prints more than the server allows")
    if sum(map(len, blobs[_STDIO:])) > limits.answer_bytes:
        raise _error("is larger than the server allows")
    for path in paths:
        _check_path(path)
    if len(set(paths)) != len(paths):
        raise _error("has a file twice")
    result = CompileResult(
        status=fields.integer("status", most=_MAX_STATUS),
        stdout=blobs[0],
        stderr=blobs[1],
        files=tuple(ResponseFile(path, data) for path, data in zip(paths, blobs[_STDIO:], strict=True)),
        limit_met=_word(fields, "limit_met"),
        hidden_paths=tuple(map(printable, fields.texts("hidden_paths", count=_MAX_HIDDEN))),
    )
    return NodeResult(
        result=result, node=node, build=_word(fields, "build"), uncacheable=_word(fields, "uncacheable")
    )


def _failure(fields: Fields, node: str) -> NodeFailure:
    reason = fields.optional_text("reject_reason")
    remedy = fields.optional_text("remedy")
    try:
        return NodeFailure(
            failure=Failure(fields.text("failure")),
            node=node,
            problem=printable(fields.text("problem")),
            remedy=None if remedy is None else printable(remedy),
            reject_reason=None if reason is None else RejectReason(reason),
        )
    except ValueError as exc:
        raise _error("fails in a way that there is not") from exc


def _word(fields: Fields, name: str) -> str | None:
    text = fields.optional_text(name, most=_MAX_WORD)
    return None if text is None else printable(text)


def _check_path(path: str) -> None:
    directory, slash, below = path.partition("/")
    try:
        problem = path_problem(below.encode())
    except UnicodeEncodeError as exc:
        raise _error("has a path that is not text") from exc
    if directory != RESPONSE_DIRECTORY or not slash or problem is not None or not is_answered_name(below):
        raise _error("has a file that no compile leaves")


def _error(problem: str) -> ProtocolError:
    return ProtocolError(f"An answer of the farm {problem}")
