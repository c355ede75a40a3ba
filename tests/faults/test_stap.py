"""A stap that dies, hangs, floods or forks away costs its own request and no other."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import anyio
import pytest
from kit.faulty import receive
from kit.footprint import descendants
from kit.real import wait_until
from kit.stap import MAKES

from stapsrv.process import Containment, find_containment

HANGS = r"printf 'all:\n\tsleep 1000\n' >Makefile; make"
OVERDUE = "took longer than 5 seconds"
FLOODED = "printed more than 65536 bytes"

FAULTS = {
    "killed": ("sleep 1003 # to be killed", 137, ""),
    "stopped": ("sleep 1004 # to be stopped", 1, OVERDUE),
    "deaf to TERM": ("trap '' TERM; while :; do sleep 1; done", 1, OVERDUE),
    "flooding": ("yes", 1, FLOODED),
    "flooding standard error": ("yes >&2", 1, FLOODED),
    "in a make that hangs": (HANGS, 1, OVERDUE),
    "forking away": ("setsid sh -c 'setsid sleep 1000 & setsid sleep 1001 &' & exit 3", 3, ""),
    "leaving its output open": ("sleep 1002 & exit 4", 4, ""),
    "taking away its own directory": ('rm -r "$answer"', 1, "trouble with its temporary directory"),
    "sealing its directory": ('mkdir -p "$answer/a/b"; chmod 0 "$answer/a"', 1, "Permission denied"),
}


@pytest.fixture
def faults() -> dict[str, tuple[str, int, str]]:
    if anyio.run(find_containment) is not Containment.NAMESPACE:
        pytest.skip("this host allows its users no user namespaces")
    return FAULTS


def test_faulty_stap_costs_only_its_own_request(serve, faults):
    server = serve(
        *("--compile-timeout", "5", "--kill-grace", "0.3", "--max-output-size", "65536"),
        *("--max-threads", len(faults) + 2),
    )
    running = {name: server.send(script) for name, (script, _, _) in faults.items()}
    # From outside, as the kernel does it when memory is short: within its namespace nobody can.
    signal_stap(server.pid, "to be killed", signal.SIGKILL)
    signal_stap(server.pid, "to be stopped", signal.SIGSTOP)
    for number in range(3):
        answer = server.ask(f"{MAKES} echo {number}")
        assert (answer.rc, answer.stdout) == (0, f"{number}\n")
    for name, client in running.items():
        answer = receive(client)
        _, status, words = faults[name]
        assert answer.rc == status, (name, answer)
        assert words in answer.stderr, (name, answer)
    assert server.left_over(threads=2) == []


def test_leaving_clients_end_their_process_trees(serve, faults):
    server = serve("--kill-grace", "0.3", "--max-threads", "8")
    clients = [
        server.send(
            f"trap '' TERM; (setsid sleep 10{number} &) ; make -f - <<'end'\nall:\n\tsleep 1000\nend\n"
        )
        for number in range(4)
    ]
    assert server.ask(MAKES).rc == 0
    for client in clients:
        client.close()
    assert server.left_over(threads=2) == []
    # Each is said once its tree and its directory are gone.
    wait_until(lambda: sum("the client went away" in line for line in server.log_lines()) == 4)


def signal_stap(pid: int, mark: str, number: signal.Signals) -> None:
    """Send a signal to the stap below ``pid`` whose script has a mark, when it is there."""

    def sent() -> bool:
        for child in descendants(pid):
            with contextlib.suppress(OSError):
                is_stap = Path(f"/proc/{child}/comm").read_text() == "stap\n"
                if is_stap and mark.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, number)
                    return True
        return False

    wait_until(sent)  # only /proc shows a process that began
