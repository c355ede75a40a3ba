"""A job of a farm, as bytes. Pure.

A job holds a client's request, and those options of its server that are no paths: further tapsets, the
runtime and what compiles may see are the node's own. It states the identity of what it is to be compiled
with, so that no other node takes it. It is decoded as a stranger's: the request's own rules hold again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import attrs

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.archive import MAX_ENTRIES, RequestFile, path_problem
from stapsrv.compile.protocol.options import Privilege
from stapsrv.compile.protocol.request import MAX_ARGUMENT_BYTES, CompileRequest, parse_locale
from stapsrv.config.kernels import is_release_name
from stapsrv.config.table import Limits
from stapsrv.errors import ProtocolError
from stapsrv.farm.wire import Fields, decode, encode

_KIND = b"stapjob\x01"
# Of a whole job: requests are 50 kB at most, unless their server's settings allow more.
MAX_JOB_BYTES = 256 * 1024**2
_MAX_ARGUMENTS = 100_000
_MAX_OPTIONS = 1000
_MAX_DEADLINE_S = 7 * 86_400.0
_MAX_COUNT = 1 << 60
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_ARCH = re.compile(r"\w{1,64}", re.ASCII)

# What a server allows a request; a node allows no more than its own settings do.
DURATIONS = tuple(row.attribute for row in (Limits.kill_grace_s, Limits.cpu_s))
COUNTS = tuple(
    row.attribute
    for row in (
        *(Limits.output_bytes, Limits.answer_bytes, Limits.temp_bytes, Limits.memory_bytes),
        *(Limits.file_bytes, Limits.processes, Limits.cores, Limits.nice),
    )
)


@attrs.frozen(kw_only=True)
class FarmJob:
    """A job for a node: the request, and all that it is compiled with."""

    name: str  # of this attempt; no other has it
    request: CompileRequest
    identity: str  # of the toolchain that the server promises
    privilege: Privilege | None  # as the server reads the arguments
    build: tuple[str, ...] = ()
    define: tuple[str, ...] = ()
    limits: Mapping[str, float | int] = attrs.field(factory=dict)  # of DURATIONS and COUNTS
    prepared: bool = True
    deadline_s: float
    background: bool = False

    @classmethod
    def of(cls, job: CompileJob, *, name: str, identity: str) -> FarmJob:
        """Return what of a server's job goes to a node."""
        settings, limits = job.settings, job.settings.limits
        return cls(
            name=name,
            request=attrs.evolve(job.keyed_request, release=job.release.name, arch=job.release.arch),
            identity=identity,
            privilege=job.privilege,
            build=settings.build,
            define=settings.define,
            limits={attribute: getattr(limits, attribute) for attribute in (*DURATIONS, *COUNTS)},
            prepared=limits.prepared,
            deadline_s=job.deadline_s,
            background=job.background,
        )


def encode_job(job: FarmJob) -> bytes:
    """Return a job as bytes."""
    request = job.request
    header = {
        "name": job.name,
        "release": request.release,
        "arch": request.arch,
        "identity": job.identity,
        "privilege": None if job.privilege is None else job.privilege.value,
        "locale": [f"{name}={value}" for name, value in request.environment],
        "build": job.build,
        "define": job.define,
        "limits": dict(job.limits),
        "prepared": job.prepared,
        "deadline_s": job.deadline_s,
        "background": job.background,
        "arguments": len(request.arguments),
        "directories": len(request.directories),
    }
    files = [part for file in request.files for part in (file.path, file.data)]
    return encode(_KIND, header, (*request.arguments, *request.directories, *files))


def decode_job(message: object) -> FarmJob:
    """Read a job; a ProtocolError if it is none, or breaks a rule of requests."""
    fields, blobs = decode(_KIND, message, max_bytes=MAX_JOB_BYTES)
    arguments = fields.integer("arguments", most=min(_MAX_ARGUMENTS, len(blobs)))
    directories = fields.integer("directories", most=min(MAX_ENTRIES, len(blobs) - arguments))
    rest = blobs[arguments + directories :]
    if len(rest) % 2:
        raise _error("has a file without its data")
    files = tuple(RequestFile(path, data) for path, data in zip(rest[::2], rest[1::2], strict=True))
    request = CompileRequest(
        release=fields.text("release"),
        arch=fields.text("arch"),
        arguments=tuple(blobs[:arguments]),
        environment=_locale(fields),
        files=files,
        directories=tuple(blobs[arguments : arguments + directories]),
    )
    if not is_release_name(request.release) or _ARCH.fullmatch(request.arch) is None:
        raise _error("is for what is no kernel release and architecture")
    _check_arguments(request.arguments)
    _check_tree([file.path for file in files], request.directories)
    name, identity = fields.text("name"), fields.text("identity")
    if _NAME.fullmatch(name) is None or _IDENTITY.fullmatch(identity) is None:
        raise _error("has no name and identity")
    limits = fields.object("limits")
    bounds = {attribute: limits.number(attribute, most=_MAX_DEADLINE_S) for attribute in DURATIONS}
    counts = {attribute: limits.integer(attribute, most=_MAX_COUNT) for attribute in COUNTS}
    return FarmJob(
        name=name,
        request=request,
        identity=identity,
        privilege=_privilege(fields),
        build=fields.texts("build", count=_MAX_OPTIONS, most=MAX_ARGUMENT_BYTES),
        define=fields.texts("define", count=_MAX_OPTIONS, most=MAX_ARGUMENT_BYTES),
        limits=bounds | counts,
        prepared=fields.flag("prepared"),
        deadline_s=fields.number("deadline_s", most=_MAX_DEADLINE_S),
        background=fields.flag("background"),
    )


def _privilege(fields: Fields) -> Privilege | None:
    stated = fields.optional_text("privilege")
    try:
        return None if stated is None else Privilege(stated)
    except ValueError as exc:
        raise _error("states a privilege that there is not") from exc


def _locale(fields: Fields) -> tuple[tuple[str, str], ...]:
    lines = fields.texts("locale", count=_MAX_OPTIONS)
    environment, refused = parse_locale("".join(f"{line}\n" for line in lines).encode())
    if refused:
        raise _error("has a locale that no client may state")
    return tuple(environment.items())


def _check_arguments(arguments: Sequence[bytes]) -> None:
    for argument in arguments:
        if b"\0" in argument or len(argument) > MAX_ARGUMENT_BYTES:
            raise _error("has an argument that no program can be given")


def _check_tree(files: Sequence[bytes], directories: Sequence[bytes]) -> None:
    """Refuse paths that leave the request's root, occur twice, or whose parents do not come before them."""
    known = set(directories)
    if len(files) + len(directories) > 2 * MAX_ENTRIES:
        raise _error("has too many files")
    if any(first >= second for first, second in pairwise(directories)):
        raise _error("has directories in disorder")
    if len(set(files)) != len(files) or known.intersection(files):
        raise _error("has a file twice")
    for path in (*directories, *files):
        problem = path_problem(path)
        if problem is not None:
            raise _error(f"has a file that {problem}")
        parent = path.rpartition(b"/")[0]
        if parent and parent not in known:
            raise _error("has a file in a directory that is none")


def _error(problem: str) -> ProtocolError:
    return ProtocolError(f"A job of the farm {problem}")
