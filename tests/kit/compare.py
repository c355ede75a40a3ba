"""Run command lines in a private mount namespace, as stap-server; print what came of them as JSON.

A program of its own, since a namespace is entered by a process: ``compare.py WORK PROGRAM < command lines``.
The namespace has an empty /run and /var/log, so that neither program sees the host's servers, nor the
host what is tried here.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

USER = "stap-server"
COMMAND_S = 120


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    work, program = Path(sys.argv[1]), sys.argv[2]
    mount("--make-rprivate", "/")
    for place in ("/run", "/var/log"):
        mount("-t", "tmpfs", "tmpfs", place)
    for name in (Path("/run/stap-server"), Path("/var/log/stap-server"), work / "home"):
        name.mkdir(parents=True, exist_ok=True)
        subprocess.run(["chown", f"{USER}:{USER}", str(name)], check=True)
    own = {"HOME": str(work / "home"), "LANG": "C.UTF-8", "STAPSRV_MDNS": "no", "STAPSRV_WARMUP": "no"}
    environ = {"PATH": os.environ["PATH"], **own}
    for line in sys.stdin:
        command = ["runuser", "-u", USER, "--", program, *shlex.split(line)]
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        found = {"line": line.strip(), "status": done.returncode, "out": done.stdout, "err": done.stderr}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
