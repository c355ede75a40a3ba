#!/usr/bin/env python3
"""Break a farm again and again: whatever dies, every request has to get its one right answer.

A server, a scheduler and three nodes are processes of this host, joined by TLS; their stap is a stand-in
that sleeps, or with --real the real one, for two kernel releases of which one node has both. Requests run
while something is killed, stopped for a while, cut off or restarted, as a seed has it. After each fault
every answer is checked (a dead server's jobs have to leave the farm instead), no process of theirs may be
left, and as many jobs as the farm has slots have to run at the same time again.

As root, the nodes are in network namespaces of their own, and links are cut; else nodes are only stopped.
Exits with 1, and says what differs, when something is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare import end
from farm_site import NODES, NONE, Site, separate_hosts, site_at
from kit.farm import Member, processes_with
from kit.footprint import wait_back
from kit.real import Installation, Unavailable

_LATEST_S = 45.0


# Faults: what they return when they do, was healed.


def kill_node(site: Site) -> None:
    """Kill a node (-9), and start it again."""
    number = site.chance.randrange(NODES)
    site.nodes[number].kill()
    site.restart_node(number)


def kill_two_nodes(site: Site) -> None:
    """Kill two nodes at once."""
    numbers = site.chance.sample(range(NODES), 2)
    for number in numbers:
        site.nodes[number].kill()
    for number in numbers:
        site.restart_node(number)


def kill_all_nodes(site: Site) -> None:
    """Kill all nodes at once."""
    for node in site.nodes:
        node.kill()
    for number in range(NODES):
        site.restart_node(number)


def kill_scheduler(site: Site) -> None:
    """Kill the scheduler (-9); the next one is there a little later."""
    site.scheduler.kill()
    time.sleep(site.chance.uniform(0, 5))
    site.scheduler = site.farm.start_scheduler()


def stop_scheduler(site: Site) -> None:
    """Restart the scheduler."""
    site.scheduler.stop()
    site.scheduler = site.farm.start_scheduler()


def kill_scheduler_and_node(site: Site) -> None:
    """Kill the scheduler and a node, as the end of a host with both does."""
    number = site.chance.randrange(NODES)
    site.scheduler.kill()
    site.nodes[number].kill()
    site.scheduler = site.farm.start_scheduler()
    site.restart_node(number)


def freeze_scheduler(site: Site) -> None:
    """Stop the scheduler for a while (SIGSTOP)."""
    _freeze(site.scheduler, site.chance.uniform(1, 25))


def freeze_node(site: Site) -> None:
    """Stop a node for a while (SIGSTOP): the longer times are those in which it is given up."""
    _freeze(site.chance.choice(site.nodes), site.chance.uniform(1, _LATEST_S))


def cut_link(site: Site) -> None:
    """Cut a node's link, and mend it after a while."""
    number = site.chance.randrange(NODES)
    subprocess.run(["ip", "link", "set", f"node{number}", "nomaster"], check=True)
    time.sleep(site.chance.uniform(1, _LATEST_S))
    subprocess.run(["ip", "link", "set", f"node{number}", "master", "farm"], check=True)


def rolling_restart(site: Site) -> None:
    """Restart all nodes, one after the other."""
    for number in range(NODES):
        site.nodes[number].stop()
        site.restart_node(number)


def kill_server(site: Site) -> None:
    """Kill the server: its jobs leave the farm."""
    site.server.kill()


def _freeze(member: Member, seconds: float) -> None:
    member.pause()
    time.sleep(seconds)
    member.resume()


FAULTS: tuple[Callable[[Site], None], ...] = (
    *(kill_node, kill_two_nodes, kill_all_nodes, kill_scheduler, stop_scheduler, kill_scheduler_and_node),
    *(freeze_scheduler, freeze_node, cut_link, rolling_restart, kill_server),
)


def put_to_trial(site: Site, fault: Callable[[Site], None]) -> list[str]:
    """Let requests meet a fault; return what is not as it should be."""
    with ThreadPoolExecutor(20) as threads:
        times = [site.chance.uniform(0.0, 3.0) for _ in range(site.chance.randint(4, 14))]
        begun = [threads.submit(site.request, seconds) for seconds in times]
        time.sleep(site.chance.uniform(0, 2))
        fault(site)
        wrong = [each.result() for each in begun]
    # A dead server answers nothing; and nothing that is wrong.
    found = [each for each in wrong if each and (fault is not kill_server or not each.startswith(NONE))]
    found += wait_back(lambda: [f"a process of a job is left: {pid}" for pid in processes_with(site.mark)])
    if fault is kill_server:
        site.restart_server()
    if not site.is_real and (missing := site.barrier()):
        found.append(f"not all slots are back: {missing}")
    return found


def soak(site: Site, faults: Sequence[Callable[[Site], None]], seconds: float) -> list[str]:
    """Go through faults until the time is over; return what is not as it should be."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for fault in site.chance.sample(faults, len(faults)):
            began = time.monotonic()
            wrong = put_to_trial(site, fault)
            print(f"  {fault.__name__:24}{time.monotonic() - began:6.1f} s  {'; '.join(wrong)}", flush=True)
            found += [f"{fault.__name__}: {each}" for each in wrong]
            if time.monotonic() > end:
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {fault.__name__: fault for fault in FAULTS}
    add = parser.add_argument
    add("faults", nargs="*", metavar="FAULT", help=f"default: all of {' '.join(names)}")
    add("--seeds", type=int, default=1, metavar="N", help="farms, one after the other (default: 1)")
    add("--first", type=int, default=1, metavar="N", help="the first seed (default: 1)")
    add("--seconds", type=float, default=60.0, metavar="N", help="for each, at least (default: 60)")
    add("--real", action="store_true", help="with the real stap")
    add("--keep", action="store_true", help="leave logs of a seed that failed behind")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(names):
        parser.error(f"{min(unknown)} is no fault")
    try:
        options.real = Installation.find(os.environ) if options.real else None
    except Unavailable as exc:
        parser.error(str(exc))
    signal.signal(signal.SIGTERM, end)
    is_root = os.geteuid() == 0
    if is_root and "STAPSRV_BENCH_NETWORK" not in os.environ:
        os.environ["STAPSRV_BENCH_NETWORK"] = "its own"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv])
    faults = [names[name] for name in options.faults or names if is_root or name != "cut_link"]
    wrong = 0
    with contextlib.ExitStack() as held:
        links = held.enter_context(separate_hosts()) if is_root else [[]] * NODES
        for seed in range(options.first, options.first + options.seeds):
            place = Path(tempfile.mkdtemp(prefix="stapsrv-farm."))
            print(f"seed {seed}, load average {os.getloadavg()[0]:.1f}", flush=True)
            found = ["did not come to an end"]
            try:
                with site_at(place, options.real, links, seed) as site:
                    found = soak(site, faults, options.seconds)
                    found += in_logs(place)
            finally:
                if found and options.keep:
                    print(f"logs are in {place}")
                else:
                    shutil.rmtree(place, ignore_errors=True)
            for each in found:
                print(f"not as it should be: {each}")
            wrong += len(found)
    print("everything is as it should be" if not wrong else f"{wrong} faults")
    return 1 if wrong else 0


def in_logs(place: Path) -> list[str]:
    """Return the lines of the members' logs that no fault explains."""
    return [
        f"{log.name}: {line}"
        for log in sorted(place.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if "Traceback" in line or "crashed" in line
    ]


if __name__ == "__main__":
    sys.exit(main())
