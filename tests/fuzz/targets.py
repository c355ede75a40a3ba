"""What hostile bytes are given to, and what has to hold whatever they are.

A check takes bytes and returns, or raises what nobody may see: any exception but the few that a parser is
allowed is let through, and so is a broken property. Both kinds of fuzzing (see ``run.py``) and the suite call
them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import anyio
import attrs

from fuzz.connections import converse
from fuzz.getopt import Getopt
from stapsrv.compile.cache.script_scan import host_access_reason, names_reading_host_files
from stapsrv.compile.protocol.archive import MAX_COMPONENTS, MAX_ENTRIES, MAX_PATH_BYTES, read_archive
from stapsrv.compile.protocol.frames import FrameReader
from stapsrv.compile.protocol.options import Privilege, parse_options, requested_privilege
from stapsrv.compile.protocol.request import (
    MAX_ARGUMENT_BYTES,
    CompileRequest,
    parse_request,
    render_arguments,
)
from stapsrv.config.files import decode_config, encode_server_settings, server_settings_from
from stapsrv.config.global_settings import GlobalSettings, lay_over
from stapsrv.config.table import GLOBAL_SETTINGS, SERVER_SETTINGS
from stapsrv.control.protocol.jsonrpc import (
    MAX_REQUEST_BYTES,
    LineBuffer,
    Reply,
    Request,
    RequestRefused,
    decode_answer,
    decode_request,
    encode_error,
    encode_request,
)
from stapsrv.control.protocol.schema import IdsParams, ReloadParams, StartParams, settings_from, settings_info
from stapsrv.control.protocol.validation import ShapeError, checked
from stapsrv.errors import ConfigError, ControlError, ProtocolError, RequestRejected

INPUT_S = 5
"""The most processor time that one input may take."""

CORPUS = Path(__file__).with_name("corpus")
LIMIT = 50_000
FRAME_LIMIT = 5_000


def check_frame(data: bytes) -> None:
    """A frame in chunks: its first byte says of what size, then a stream follows."""
    size, stream = (data[0] % 17 + 1, data[1:]) if data else (1, b"")
    reader = FrameReader(FRAME_LIMIT)
    try:
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
            assert reader.missing_bytes >= 0
        reader.feed_eof()
    except ProtocolError as exc:
        _check_words(exc)
    else:
        assert reader.payload is not None or not stream
        assert reader.payload in {None, stream[4:]}
        assert len(reader.payload or b"") <= FRAME_LIMIT
    if len(stream) <= FRAME_LIMIT:
        again = FrameReader(FRAME_LIMIT)
        whole = len(stream).to_bytes(4, "big") + stream
        for start in range(0, len(whole), size):
            assert again.payload is None
            again.feed(whole[start : start + size])
        again.feed_eof()
        assert again.payload == stream


def check_zip(data: bytes) -> None:
    """A zip: whatever passes can be laid out below a directory, and gives the same when packed again."""
    try:
        archive = read_archive(data, max_bytes=LIMIT)
    except ProtocolError as exc:
        _check_words(exc)
        return
    assert len(archive.files) + len(archive.directories) <= 2 * MAX_ENTRIES
    assert 1 <= sum(len(file.data) for file in archive.files) <= LIMIT
    directories = set(archive.directories)
    paths = [file.path for file in archive.files]
    assert len({*paths, *directories}) == len(paths) + len(directories)
    for path in (*paths, *directories):
        components = path.split(b"/")
        assert not {b"", b".", b".."} & set(components)
        assert b"\0" not in path
        assert len(path) <= MAX_PATH_BYTES
        assert len(components) <= MAX_COMPONENTS
        assert len(components) == 1 or b"/".join(components[:-1]) in directories
    assert list(archive.directories) == sorted(directories)
    if len(archive.files) <= 64:
        again = read_archive(_packed([(file.path, file.data) for file in archive.files]), max_bytes=LIMIT)
        assert again.files == archive.files


def check_request(data: bytes) -> None:
    """A request's zip: what passes can be given to a program, and says the same when encoded again."""
    try:
        request = parse_request(data, max_request_bytes=LIMIT)
    except (ProtocolError, RequestRejected) as exc:
        _check_words(exc)
        return
    for argument in request.arguments:
        assert b"\0" not in argument
        assert len(argument) <= MAX_ARGUMENT_BYTES
    assert render_arguments(request.arguments).isprintable()
    for name, value in request.environment:
        assert name in LOCALE_KEYS
        assert not set(value) - LOCALE_VALUES
    assert all(message.startswith("Server: ") and message.isprintable() for message in request.messages)
    assert "/" not in request.release
    assert not request.release.startswith((".", "-"))
    assert all(set(fingerprint) <= set("0123456789abcdef:") for fingerprint in request.fingerprints)
    if not request.messages and len(request.files) <= 64 and _has_locale(request.version):
        _check_encoded_again(request)


def _has_locale(version: str) -> bool:
    return [int(number) for number in version.split(".")] >= [1, 6]


def _check_encoded_again(request: CompileRequest) -> None:
    entries = [
        (b"version", request.version.encode()),
        (b"sysinfo", f"sysinfo: {request.release} {request.arch}".encode()),
        *((b"argv%d" % number, argument) for number, argument in enumerate(request.arguments, 1)),
        (b"locale", "".join(f"{name}={value}\n" for name, value in request.environment).encode()),
    ]
    keys = [*request.fingerprints, *(["missing"] if request.mok_missing else [])]
    entries.append((b"mok_fingerprints", "".join(f"{key}\n" for key in keys).encode()))
    if {file.path.split(b"/")[0] for file in request.files} & {path for path, _ in entries}:
        # A directory of the request may bear the name of an entry that it did not have.
        return
    entries += [(file.path, file.data) for file in request.files]
    again = parse_request(_packed(entries), max_request_bytes=2 * LIMIT)
    for name in ("version", "release", "arch", "arguments", "environment", "fingerprints", "files"):
        assert getattr(again, name) == getattr(request, name), name


def check_entries(data: bytes) -> None:
    """Names and contents with separators between them, as a request's zip that is sound as such."""
    parts = data.split(SEPARATOR)[:40]
    payload = _packed(list(zip(parts[::2], parts[1::2], strict=False)))
    check_zip(payload)
    check_request(payload)


def check_script(data: bytes) -> None:
    """A script, or a tapset: a probe of a program is found behind any other text."""
    reason = host_access_reason(data, frozenset({"errno"}))
    assert reason in {None, "code", "unread", "program", "header"}
    names = names_reading_host_files([data, b"function g() { return f() }"])
    assert "" not in names
    assert "f" not in names or "g" in names
    assert host_access_reason(data + b'\nprobe process("/bin/ls").begin {}', frozenset()) or b"/" in data


SEPARATOR = b"\xff\0"

LOCALE_KEYS = frozenset(
    ["LANG", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_TIME", "LC_MONETARY", "LC_NUMERIC"]
)
LOCALE_VALUES = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@_.=-")


def check_options(data: bytes) -> None:
    """Arguments with NULs between them: read as stap's own getopt_long reads them."""
    arguments = data.split(b"\0")[:64]
    parsed = parse_options(arguments)
    oracle = GETOPT.read(arguments)
    assert (parsed.fault is not None) == oracle.failed, parsed.fault
    assert parsed.options == oracle.options
    asked = requested_privilege(arguments)
    if oracle.failed:
        assert parsed.fault is not None
        assert parsed.fault.isprintable()
        assert asked is None
        return
    assert parsed.operands == oracle.operands
    levels = {
        b"stapusr" if name == "unprivileged" else value
        for name, value in oracle.options
        if name in {"unprivileged", "privilege"}
    }
    known = {level.value.encode(): level for level in Privilege}
    if not levels:
        assert asked is Privilege.STAPDEV
    else:
        assert asked is (known.get(levels.pop() or b"") if len(levels) == 1 else None)


GETOPT = Getopt()


def check_config(data: bytes) -> None:
    """A configuration file of either kind: what passes reads the same when it is written again."""
    try:
        text = decode_config(data, where="x.conf")
    except ConfigError as exc:
        _check_words(exc)
        return
    try:
        lay_over(GLOBAL, text, where="global")
    except ConfigError as exc:
        _check_words(exc)
    try:
        settings = server_settings_from(text, where="x.conf")
    except ConfigError as exc:
        _check_words(exc)
        return
    try:
        written = encode_server_settings(settings)
    except ValueError:
        # A value that no file can hold, such as one with a carriage return in its middle.
        assert {"\r", "\0"} & set(text) or "()" in text
        return
    assert server_settings_from(written, where="again") == settings


GLOBAL = GlobalSettings(config_path=Path("/c"), stat_path=Path("/s"), log_file=Path("/l"), stap_user=None)


def check_messages(data: bytes) -> None:
    """Lines of the control socket, to a supervisor and from one."""
    lines = LineBuffer(1000)
    size = data[0] % 61 + 1 if data else 1
    try:
        for start in range(0, len(data), size):
            lines.feed(data[start : start + size])
            while (line := lines.next_line()) is not None:
                assert len(line) <= 1000
                _check_line(line)
        lines.feed_eof()
    except ControlError as exc:
        _check_refusal(exc)
    _check_line(data)


def _check_line(line: bytes) -> None:
    try:
        request = decode_request(line)
    except RequestRefused as exc:
        _check_refusal(exc)
    else:
        if len(line) <= MAX_REQUEST_BYTES:
            _check_encoded(request)
        for shape in (StartParams, IdsParams, ReloadParams):
            try:
                params = checked(request.params, shape, name="params", exact=True)
            except ShapeError as exc:
                _check_words(exc)
            else:
                if shape is StartParams:
                    _check_servers(params)
    try:
        decode_answer(line)
    except ControlError as exc:
        _check_refusal(exc)


def _check_encoded(request: Request) -> None:
    try:
        encoded = encode_request(request)
    except ValueError:
        # A number such as 1e999, which is infinite here, and has no form in JSON.
        return
    assert decode_request(encoded) == request


def _check_servers(params: Mapping[str, object]) -> None:
    servers = params["servers"]
    assert isinstance(servers, list)
    for server in servers:
        try:
            settings = settings_from(server["settings"], where="params")
        except ControlError as exc:
            _check_refusal(exc)
        else:
            info = json.loads(json.dumps(settings_info(settings)))
            assert settings_from(info, where="again") == settings
            written = encode_server_settings(settings)
            kept = attrs.evolve(settings, keep_temporary=False)
            assert server_settings_from(written, where="again") == kept


def _check_refusal(exc: ControlError) -> None:
    _check_words(exc)
    request_id = exc.request_id if isinstance(exc, RequestRefused) else None
    answer = decode_answer(encode_error(request_id, exc))
    assert isinstance(answer, Reply)
    assert answer.error is not None
    assert (answer.id, answer.error.code, str(answer.error)) == (request_id, exc.code, str(exc))


def _check_words(exc: Exception) -> None:
    """No text about hostile bytes may drive a terminal or forge a line; some have a line for each fault."""
    assert all(line.isprintable() and line for line in str(exc).split("\n"))


def check_connection(data: bytes) -> None:
    """A whole control connection: every line that comes back is an answer, and it ends."""
    answered = anyio.run(converse, data)
    for line in answered.splitlines():
        decode_answer(line)


class _Header(zipfile.ZipInfo):
    """A header whose name is bytes, all of them: zipfile itself would end it at a NUL."""

    __slots__ = ("name",)

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - zipfile's
        return self.name, 0


def _packed(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (path, data) in enumerate(entries):
            header = _Header(f"{number}")
            header.name = path
            archive.writestr(header, data)
    return buffer.getvalue()


_REQUEST = (
    *(b"version", b"sysinfo", b"sysinfo: 6.1 x86_64", b"argv1", b"argv2", b"argv10", b"\0", b"\n", b".."),
    *(b"locale", b"LANG=", b"LC_ALL=C", b"mok_fingerprints", b"missing", b"00:11:22", b"script/x", b"/"),
)

WORDS: Mapping[str, Sequence[bytes]] = {
    "frame": (b"\0\0\0\0", b"\0\0\x13\x88", b"\xff\xff\xff\xff"),
    "zip": (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"../", b"/", b"\xff" * 4),
    "request": _REQUEST,
    "entries": (*_REQUEST, SEPARATOR),
    "options": (
        *(b"--" + name.encode() for name in GETOPT.names.values()),
        *(b"\0", b"=", b"--", b"-", b"-e", b"-vp", b"stapusr", b"stapsys", b"--priv", b"--un"),
    ),
    "script": (
        *(b'process("/bin/ls")', b"@cast(", b'@var("x", "/x")', b"@define ", b"%(", b"%)", b"%{", b"%}"),
        *(
            b"function f",
            b"probe ",
            b"module(",
            b"(",
            b")",
            b"/*",
            b"*/",
            b"//",
            b"#",
            b'"',
            b"\\",
            b"*",
            b"?",
        ),
    ),
    "config": (
        *(row.variable.encode() + b"=" for row in (*SERVER_SETTINGS, *GLOBAL_SETTINGS)),
        *(b"+=", b"()", b"#", b"\n", b"\r\n", b"\xef\xbb\xbf", b"10s", b"1k", b"yes", b"127.0.0.1"),
    ),
    "messages": (
        *(b'{"jsonrpc":"2.0","id":', b'"method":"start"', b'"params":{', b'"servers":[{"settings":{'),
        *(b"\n", b"1e999", b"[", b"{", b"null", b'"ids":"all"'),
    ),
    "connection": (
        *(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n', b'"params":{}', b'"hello"', b"\n", b"[", b"{"),
        b'"timeout_s":0',
    ),
}
"""Pieces that inputs of a target are made of, beside the corpus."""

CHECKS: Mapping[str, Callable[[bytes], None]] = {
    "frame": check_frame,
    "zip": check_zip,
    "request": check_request,
    "entries": check_entries,
    "options": check_options,
    "script": check_script,
    "config": check_config,
    "messages": check_messages,
    "connection": check_connection,
}


def corpus(name: str) -> Iterator[Path]:
    """Return the saved inputs of a target, in a fixed order."""
    return iter(sorted((CORPUS / name).iterdir()))
