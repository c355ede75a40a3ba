"""Whether a process is ready to serve, and if not, why. Pure."""

from __future__ import annotations

from stapsrv.observe.facts import Facts, Phase
from stapsrv.observe.lines import printable
from stapsrv.supervisor.lifecycle import State, Wanted


def reasons_not_ready(facts: Facts) -> tuple[str, ...]:
    """Return why not every wanted server serves, a line for each reason; nothing when all do."""
    reasons = [] if facts.phase is Phase.RUNNING else [f"the process is {facts.phase}"]
    for server in facts.status.servers:
        if server.wanted is Wanted.UP and server.state is not State.SERVING:
            why = f": {server.reason}" if server.reason else ""
            reasons.append(f"server {server.nickname} is {server.state.value}{why}")
    reasons += [f"configuration refused: {fault}" for fault in facts.faults]
    return tuple(printable(reason) for reason in reasons)
