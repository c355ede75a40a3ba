"""The formats of log entries: classic, JSON, or the systemd journal's own. Pure.

The classic sentences that scripts look for are the original's, to the letter; the others are in its manner.
Whatever a client sent, one entry is one entry: control characters are escaped in the classic and the JSON
format, and the journal's own framing counts bytes. Only a traceback takes further lines in the classic
format; they are indented, where an entry begins with a date.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import attrs

from stapsrv.config.kinds import LogFormat
from stapsrv.text import printable

CLASSIC: Mapping[str, str] = {
    "configuration.refused": "Configuration refused: {reason}",
    "configuration.warning": "{warning}",
    "server.starting": "===== compile server pid {pid} starting as {user} =====",
    "server.listening": "Using network address {address}",
    "server.threads": "Using a maximum of {threads} threads",
    "server.serial": "Concurrency disabled",
    "server.signal": "Received signal {signal}, exiting",
    "server.hangs": "Something hangs, a call into a file system perhaps; exiting after {seconds} seconds",
    "server.draining": "Waiting for {outstanding} outstanding requests to complete...",
    "server.resumed": "Server {id} of a supervisor that died is resumed",
    "server.refused": "The server cannot be started: {reason}",
    "server.crashed": "The server crashed:",
    "server.backing_off": "The server is started again in {seconds} seconds",
    "server.accept_paused": "Draining: new connections are reset until undrain",
    "server.accept_resumed": "New connections are served again",
    "server.stopped": "The server has stopped",
    "listener.descriptors": (
        "Open files allow {affordable} connections, and {wanted} are wanted; raise the limit of open files"
    ),
    "listener.exhausted": "Connections cannot be accepted now: {reason}; trying on",
    "stat_file.damaged": "A record of a running server is damaged: {reason}",
    "stat_file.unwritable": "A running server cannot be recorded: {reason}",
    "sandbox.found": "Requests are contained by {mechanism}",
    "sandbox.failed": "A better way to contain requests is installed and does not work here: {failure}",
    "workspace.memory": "Requests are compiled in memory, in {directory}",
    "sandbox.off": "Requests are not contained: SANDBOX=off",
    "limits.both": "{both} in stap's rc file are set: the lower one holds",
    "sandbox.cgroup": "Requests get control groups of their own in {cgroup}",
    "identity.missing": "Certificate database {directory} does not exist",
    "identity.generating": "Generating a new certificate database directory in {directory}",
    "identity.found": "Certificate found in database {directory}",
    "identity.not_before": "  Not Valid Before: {when} UTC",
    "identity.not_after": "  Not Valid After: {when} UTC",
    "identity.valid": "Certificate is valid",
    "identity.expired": "Certificate has expired (on {when} UTC)",
    "identity.not_yet_valid": "Certificate is not valid before {when} UTC",
    "identity.tightened": "Others could write to {directory}; they cannot any more",
    "identity.unusable": "Certificate database {directory} cannot be used: {reason}",
    "identity.renewing": "Certificate expires on {when} UTC and is renewed",
    "identity.renewal_failed": "Certificate database {directory} could not be renewed: {reason}",
    "identity.renewal_crashed": "The check of certificate database {directory} crashed",
    "clock.jumped": "The clock was set; certificates are judged by it after a minute",
    "trust.established": "The local client trusts this server: {directory}",
    "trust.failed": "The local client could not be made to trust this server: {directory}: {reason}",
    "release.found": "Found out the {what} of kernel release {release} for all compiles, in {seconds} s",
    "release.unfound": "Cannot find out the {what} of kernel release {release} for all compiles: {reason}",
    "release.healthy": "Kernel release {release} can be compiled for; a first compile took {seconds} s",
    "release.unhealthy": "Kernel release {release} cannot be compiled for: {reason}",
    "release.crashed": "Kernel release {release} was not looked after any more: an error of this program:",
    "mdns.adding": "Adding Avahi service '{name}'",
    "mdns.established": "Avahi service '{name}' successfully established.",
    "mdns.renaming": "Avahi service name collision, renaming service '{name}' to '{other}'",
    "mdns.updated": "Avahi service '{name}' is updated",
    "mdns.removing": "Removing Avahi service '{name}'",
    "mdns.omitted": "Avahi service '{name}' has no room for {omitted}",
    "mdns.host_taken": "{host}.local is another host's name on this network; announcing {other}.local",
    "mdns.failed": "Servers cannot be advertised: {reason}; the next attempt is in {seconds} seconds",
    "mdns.missing": "Servers are not advertised on {interfaces}: down, absent or without an address",
    "mdns.no_monitor": "Changes of the network cannot be followed: {reason}",
    "mdns.responder_error": "Advertising reports an error: {reason}",
    "mdns.crashed": "Advertising failed by an error of this program, and is tried again:",
    "mok.generating": "Generating a new machine owner key ({kind}) in {directory}",
    "mok.generated": "Machine owner key {fingerprint} generated",
    "mok.signed": "Modules signed with machine owner key {fingerprint}",
    "mok.offered": "Machine owner key {fingerprint} offered to the client for enrolment",
    "mok.unusable": "Machine owner key {directory} cannot be used: {reason}",
    "identity.unwatched": "Changes in {directory} are not advertised: {reason}",
    "identity.not_watched": "A replaced certificate is noticed one connection later: {reason}",
    "control.command": "Control command {method} of user {user}",
    "control.refused": "Control: user {user} was refused: {reason}",
    "control.crowded": "Control connections are refused: {reason}",
    "control.failed": "Control command {method} failed: {reason}",
    "control.malformed": "Control: the connection of user {user} was closed: {reason}",
    "control.stalled": "Control: the connection of user {user} was closed: it took no answers",
    "control.exhausted": "Control connections cannot be accepted now: {reason}; trying on",
    "control.crashed": "Control: an error of this program:",
    "metrics.listening": "Metrics and health at {address}",
    "metrics.exhausted": "Connections for metrics cannot be accepted now: {reason}; trying on",
    "metrics.failed": "Metrics cannot be served now: {reason}; trying on",
    "metrics.crashed": "Metrics: an error of this program:",
    "log.lost": "{entries} log lines were lost while the log could not be written",
    "cache.unusable": "Result cache off: {reason}",
    "cache.idle": "Result cache idle: not all inputs of results can be watched: {reason}",
    "cache.watching": "Result cache on; watching {paths} input paths",
    "cache.unwatched": "Results that depend on {path} are not cached: it cannot be watched: {reason}",
    "cache.missed_change": "{path} changed without an event; results from before are not used any more",
    "cache.overflow": "Changes came too fast to be followed; all input paths are scanned again",
    "cache.unreadable": "The result cache cannot be read: {reason}",
    "cache.unwritable": "The result cache cannot be written: {reason}",
    "cache.damaged": "The cached result {entry} was damaged and is removed",
    "cache.outside": "A result is not cached: it depends on {file}, which is not watched",
    "prepared.none": "New modules for {release} are built by make: {reason}",
    "prepared.unusable": "Modules are built by make: plans cannot be kept: {reason}",
    "scripts.arrived": "Kernel release {release} was installed; scripts are checked for it",
    "scripts.checked": "Scripts for {release}: {verdicts}",
    "scripts.different": "Script {script}: {difference}",
    "scripts.unremembered": "Scripts are not checked again: what is known of them cannot be read: {reason}",
    "scripts.unwatched": "Changes of scripts and kernels are not followed: {reason}",
    "scripts.crashed": "Script {script} could not be checked for {release}: an error of this program:",
    "farm.scheduler": "Farm: scheduling at {address}",
    "farm.certificate": "Farm: the certificate {file} is valid until {when} UTC",
    "farm.certificate_expires": (
        "Farm: the certificate {file} expires on {when} UTC; issue another with stap-farm ca issue"
    ),
    "farm.dask": "Farm: {text}",
    "farm.joined": "Farm: this is worker {node} of {scheduler}",
    "farm.connected": "Farm: connected to {scheduler}, which has {nodes} workers",
    "farm.leaving": "Farm: this worker takes no new jobs; it ends {running}",
    "farm.lost": "Farm: the connection to {scheduler} is lost; trying on",
    "farm.unreachable": "Farm: {scheduler} cannot be reached: {reason}; trying on",
    "farm.offered": "Farm: kernel release {release} is offered, with toolchain {identity}",
    "farm.withdrawn": "Farm: kernel release {release} is not offered any more: its toolchain has changed",
    "farm.compiled": "Farm: compiled {job} for {release} in {seconds} s",
    "farm.failed": "Farm: {job} could not be compiled: {reason}",
    "farm.unusable": "Farm: a job was refused: {reason}",
    "farm.malformed": "Farm: a worker gave no answer that can be read: {reason}",
    "farm.broken": "Farm: a job failed by an error of a worker: {reason}",
    "farm.untidy": "Farm: what a compile left behind could not be tidied up",
    "farm.crashed": "Farm: an error of this program:",
    "connection.accepted": "Accepted connection from {peer}",
    "connection.refused": "Connection from {peer} was reset: {reason}",
    "connection.denied": "Connection from {peer} was denied: its address may not use this server",
    "connection.failed": "Connection from {peer} ended: {reason}",
    "connection.crashed": "Connection from {peer} ended by an error of this program:",
    "log.suppressed": "{suppressed} more refusals of the kind {kind} in {seconds} seconds",
    "request.one": "Processing 1 request...",
    "request.many": "Processing {running} concurrent requests...",
    "request.overloaded": "Server is overloaded. Processing times may be longer than normal.",
    "request.version": "Client version is {version}",
    "request.options": "Options passed from the client: {options}",
    "request.unserved": "Target kernel version {release} is not supported by this server",
    "request.rejected": "Request from {peer} was refused: {reason}",
    "request.abandoned": "Request from {peer} abandoned: the client went away",
    "request.interrupted": "Request from {peer} was broken off: the server is stopping",
    "request.crashed": "Request from {peer} failed: a fault of this program",
    "request.untidy": "What the request from {peer} left behind could not be tidied up",
    "request.unsigned": "Request from {peer} has options that this server does not know: nothing is signed",
    "request.limited": "Request from {peer} met a limit: {reason}",
    "request.hidden": "Request from {peer} names {path}, hidden from compiles; SANDBOX_READ shows it",
    "request.kept": "Request from {peer} left its temporary directory {directory}",
    "request.complete": "Request from {peer} complete",
    "request.summary": (
        "Request from {peer} for {release}, options {options}: {result}, {source}, {request_bytes} bytes in, "
        "{answer_bytes} out; lookup {lookup_s} s, queue {queue_s} s, compile {compile_s} s, sign {sign_s} s, "
        "send {send_s} s; build: {build}, refusal: {refusal}, uncacheable: {uncacheable}, worker: {worker}"
    ),
}


def classic_line(event: str, fields: Mapping[str, object]) -> str:
    """Return the sentence for ``event``; no field's value can break the line or forge another."""
    template = CLASSIC.get(event)
    if template is None:
        rest = " ".join(f"{key}={field_text(value)}" for key, value in fields.items())
        return f"{event} {rest}" if rest else event
    # A log never fails for want of a word.
    words = defaultdict(lambda: "-", {key: field_text(value) for key, value in fields.items()})
    return template.format_map(words)


def field_text(value: object) -> str:
    """Return the value of a field as text of one line; None as ``-``, a time as ctime(3) writes it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%a %b %e %H:%M:%S %Y")
    return printable(str(value))


PROGRAM = "stap-serverd"

# Of syslog(3), which the journal has taken over.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event: seconds since 1970, level, ``room.what``, its fields, and the traceback of an exception."""

    time: float
    level: str
    event: str
    fields: Mapping[str, object]
    traceback: str | None = None

    @property
    def sentence(self) -> str:
        """The entry's words, on one line."""
        return classic_line(self.event, self.fields)


Encode: TypeAlias = Callable[[LogEntry], bytes]


def encode_classic(entry: LogEntry) -> bytes:
    """Return ``Day Mon DD HH:MM:SS YYYY: SENTENCE``, in local time and English, and the traceback below."""
    rows = [f"{time.ctime(entry.time)}: {entry.sentence}"]
    rows += (f"  {printable(row)}" for row in (entry.traceback or "").splitlines())
    return "".join(f"{row}\n" for row in rows).encode("utf-8", "backslashreplace")


def encode_json(entry: LogEntry) -> bytes:
    """Return one JSON object on one line of ASCII.

    Its members are ``time`` (UTC, ISO 8601), ``level``, ``event``, ``message`` (the classic sentence), the
    fields of the event and, where there is one, ``traceback``.
    """
    when = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
    record = {
        "time": when.replace("+00:00", "Z"),
        "level": entry.level,
        "event": entry.event,
        "message": entry.sentence,
        **{name: _json_value(value) for name, value in entry.fields.items()},
    }
    if entry.traceback is not None:
        record["traceback"] = _text(entry.traceback)
    # NaN is no JSON; _json_value has made text of it.
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def encode_journal(entry: LogEntry) -> bytes:
    """Return an entry in the journal's own form: ``MESSAGE``, ``PRIORITY``, and a ``STAPSRV_`` field each."""
    record = {
        "MESSAGE": entry.sentence,
        "PRIORITY": str(_PRIORITIES.get(entry.level, _PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": PROGRAM,
        "STAPSRV_EVENT": entry.event,
    }
    given = {name: value for name, value in entry.fields.items() if value is not None}
    record |= {f"STAPSRV_{name.upper()}": _text(value) for name, value in given.items()}
    if entry.traceback is not None:
        record["STAPSRV_TRACEBACK"] = entry.traceback
    return b"".join(_journal_field(name, value) for name, value in record.items())


ENCODERS: Mapping[LogFormat, Encode] = {
    LogFormat.CLASSIC: encode_classic,
    LogFormat.JSON: encode_json,
    LogFormat.JOURNAL: encode_journal,
}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    # UTF-8 cannot hold the stand-ins for bytes that are none.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _json_value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return _text(value)


# Native Journal Protocol: ``NAME=value`` and a line end; a value with line ends follows its name and its
# length in eight bytes, little-endian.
def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
