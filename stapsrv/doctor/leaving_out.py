"""What of a log may leave the host: all but what clients asked for. Pure."""

from __future__ import annotations

import json

from stapsrv.observe.lines import CLASSIC

_EVENT = "request.options"
_SENTENCE = CLASSIC[_EVENT].partition("{")[0]
_LEFT_OUT = "(left out)"


def without_scripts(log: str) -> str:
    """Return a log without clients' options, which hold their scripts, in the classic format or as JSON.

    A line that begins like JSON and is none is left out: nobody knows what it was.
    """
    kept = (_without_script(line) for line in log.splitlines())
    return "".join(f"{line}\n" for line in kept)


def _without_script(line: str) -> str:
    if line.lstrip().startswith("{"):
        return _without_options(line)
    before, sentence, _ = line.partition(_SENTENCE)
    return f"{before}{sentence}{_LEFT_OUT}" if sentence else line


def _without_options(line: str) -> str:
    try:
        entry = json.loads(line)
        if entry.get("event") == _EVENT:
            entry["options"] = _LEFT_OUT
    except (ValueError, AttributeError):
        return _LEFT_OUT
    return json.dumps(entry, ensure_ascii=False)
