"""The original ``stap-server`` and this one, given the same command lines: statuses and words."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit import compare

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a private /run and /var/log need root"),
    pytest.mark.timeout(400),
]

ORIGINAL = "/usr/bin/stap-server"
FIRST_PORT = 7820

# {A} and {B} are two installed releases, {C} a configuration with one server each, {P} a port.
SCRIPT = """
status
status -p 999
stop -p 999
start -p 1
status -n nobody
status -r {A}
stop -r {A}
start -Z
start --bogus 3
start -r
start operand
start -u nobody -r {A}
start -r {A} --port {P} -n one
start -r {A} --port {P} -n other
status
status -r {B}
stop -r {B}
start -r {B}
status
stop -r {B}
status
stop
status
start -r {A} -k
restart
condrestart
try-restart
stop
status
start -c {C}
status -c {C}
force-reload -c {C}
status -c {C}
stop -c {C}
status -c {C}
"""

# What differs on purpose, and why.
OTHER_WORDS = {
    "stop -p 999": "a command that failed ends with FAILED here, whatever failed",
    "start -p 1": "the same",
    "start -u nobody -r {A}": "the original lets runuser complain, and goes on to the next step",
}


class Transcript:
    """What a program made of the script, in words that do not depend on ids, logs and layout."""

    def __init__(self, results: list[dict]) -> None:
        self.statuses = {index: result["status"] for index, result in enumerate(results)}
        self.lines = {index: _words(result["out"]) for index, result in enumerate(results)}


def _words(output: str) -> list[str]:
    """Return what was said, one statement a line."""
    text = re.sub(r"running as PID \d+", "running as PID N", output)
    # No server warms up here: that takes the machine's time from both.
    text = re.sub(r' --(log|warmup) "?[^" ]*"?', "", text)
    # The original names a server by its process id, where no nickname was given or kept.
    text = re.sub(r' -n "\d+"', "", text)
    # It says the outcome on the line of the deed, or on the next one.
    text = re.sub(r"\s*\b(OK|FAILED)\b\s*", r"\n\1\n", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def releases() -> list[str]:
    return sorted(path.parent.name for path in Path("/lib/modules").glob("*/build"))[:2]


def play(program: str, lines: list[str], work: Path) -> Transcript:
    """Run the script in a namespace of its own; whatever it leaves running is ended."""
    command = ["unshare", "--mount", sys.executable, compare.__file__, str(work), program]
    played = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    output, _ = played.communicate("".join(f"{line}\n" for line in lines), timeout=380)
    assert played.returncode == 0
    return Transcript([json.loads(line) for line in output.splitlines()])


@pytest.fixture(scope="module")
def installed() -> list[str]:
    found = releases()
    if len(found) < 2:
        pytest.skip("headers of two kernel releases are needed")
    return found


@pytest.fixture(scope="module")
def transcripts(installed, tmp_path_factory) -> tuple[list[str], Transcript, Transcript]:
    made = []
    base = Path("/var/tmp") / f"stapsrv-compare.{os.getpid()}"
    ours = shutil.which("stap-server", path=str(Path(sys.executable).parent))
    script = SCRIPT.strip().splitlines()
    try:
        for index, program in enumerate((ORIGINAL, ours)):
            work = base / str(index)
            conf_d = work / "conf.d"
            conf_d.mkdir(parents=True)
            base.chmod(0o755)
            for number, release in enumerate(installed):
                port = FIRST_PORT + 10 * index + 1 + number
                (conf_d / f"{number}.conf").write_text(f"RELEASE={release}\nPORT={port}\n")
            (work / "global.conf").write_text(f"CONFIG_PATH={conf_d}\nLOG_FILE=/var/log/stap-server/log\n")
            names = {
                "A": installed[0],
                "B": installed[1],
                "C": str(work / "global.conf"),
                "P": FIRST_PORT + 10 * index,
            }
            made.append(play(program, [line.format(**names) for line in script], work))
    finally:
        end_leftovers(base)
        shutil.rmtree(base, ignore_errors=True)
    return script, *made


def end_leftovers(base: Path) -> None:
    """End the servers that a script left running: those whose home is below ``base``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"HOME={base}/".encode() in environ:
            os.kill(int(process.name), signal.SIGKILL)


def test_exit_statuses_are_those_of_the_original(transcripts):
    script, original, ours = transcripts
    differing = {
        line: (original.statuses[index], ours.statuses[index])
        for index, line in enumerate(script)
        if original.statuses[index] != ours.statuses[index]
    }
    assert not differing, "\n".join(f"{line}: {found}" for line, found in differing.items())


def test_words_are_those_of_the_original(transcripts):
    script, original, ours = transcripts
    usage = {index for index, status in original.statuses.items() if status == 2}
    differing = {
        line: (original.lines[index], ours.lines[index])
        for index, line in enumerate(script)
        if line not in OTHER_WORDS
        and index not in usage
        and _without_ports(original.lines[index]) != _without_ports(ours.lines[index])
    }
    assert not differing, "\n".join(f"{line}: {found}" for line, found in differing.items())


def _without_ports(lines: list[str]) -> list[str]:
    """Return the lines in an order of their own; the original's is that of its files' names."""
    return sorted(re.sub(r'--port "\d+"', '--port "P"', line) for line in lines)
