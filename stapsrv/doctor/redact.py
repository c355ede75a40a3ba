"""Removes what must not leave a host: clients' scripts from logs, and passwords from URLs. Pure."""

from __future__ import annotations

import json
import re

from stapsrv.observe.formats import CLASSIC

_EVENT = "request.options"
_SENTENCE = CLASSIC[_EVENT].partition("{")[0]
_LEFT_OUT = "(left out)"
_DATED = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}: ")
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")


def without_scripts(log: str) -> str:
    """Return a log, in the classic format or as JSON, without clients' options, which hold their scripts."""
    # SystemTap's own server, which may have written to the same file, does not escape the line ends of a
    # script. So undated lines after a line of options are left out, what precedes the first entry, and what
    # looks like JSON and is no entry.
    kept = []
    is_script = True
    for line in log.splitlines():
        is_json = line.lstrip().startswith("{")
        if _DATED.match(line):
            before, sentence, _ = line.partition(_SENTENCE)
            is_script = bool(sentence)
            kept.append(f"{before}{sentence}{_LEFT_OUT}" if is_script else line)
        elif is_json and (entry := _entry_without_options(line)) is not None:
            is_script = False
            kept.append(entry)
        elif is_json:
            kept.append(_LEFT_OUT)
        elif not is_script:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def without_passwords(text: str) -> str:
    """Return a text without the user names and passwords in its URLs."""
    # DEBUGINFOD_URLS and proxies have them.
    return _USER_IN_URL.sub(f"{_LEFT_OUT}@", text)


def _entry_without_options(line: str) -> str | None:
    """Return a JSON log entry without options; None if the line is not one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or "event" not in entry:
        return None
    if entry["event"] == _EVENT:
        # The message repeats them.
        entry |= {"message": f"{_SENTENCE}{_LEFT_OUT}", "options": _LEFT_OUT}
    return json.dumps(entry)
