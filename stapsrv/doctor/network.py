"""Do others on the network hear of the servers?"""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio.to_thread

from stapsrv.doctor.findings import Finding, failure, ok, warning
from stapsrv.doctor.patient import Patient

_LISTEN_S = 2.0


async def check_announcements(patient: Patient) -> AsyncIterator[Finding]:
    """Is each server that serves announced by multicast DNS?"""
    question = "announced (mDNS)"
    mdns = patient.settings.mdns
    if not mdns.is_enabled:
        yield ok(question, "is off: clients have to be told HOST:PORT")
        return
    serving = {
        found.info["port"]: found.info["nickname"]
        for found in patient.running
        if found.info["state"] == "serving"
    }
    if not serving:
        yield ok(question, "nothing to announce: no server serves")
        return
    heard = await anyio.to_thread.run_sync(_listen, mdns.interfaces or ())
    if heard is None:
        yield warning(question, "no network interface is up and has an address")
        return
    for port, nickname in sorted(serving.items()):
        if port in heard:
            yield ok(question, f"server {nickname}: {', '.join(sorted(heard[port]))}")
        else:
            yield failure(
                question,
                f"server {nickname} on port {port} was not heard of within {_LISTEN_S:g} s",
                "look for 'advertised' in its log; let UDP port 5353 pass the firewall",
            )


def _listen(interfaces: tuple[str, ...]) -> dict[int, set[str]] | None:
    """Return the names of services on this network by port; None where there is no network."""
    # Late: most examinations are of hosts where this is off, or end before it.
    from stapsrv.mdns.browser import find_servers  # noqa: PLC0415
    from stapsrv.mdns.netlink import read_network  # noqa: PLC0415

    network = read_network().choose(interfaces)
    if not network.links:
        return None
    heard: dict[int, set[str]] = {}
    for server in find_servers(network, _LISTEN_S):
        heard.setdefault(server.port, set()).add(server.name)
    return heard
