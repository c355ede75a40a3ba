"""The four errors of a compile by a server.

A response that breaks the protocol is a :class:`stapsrv.errors.ProtocolError`. The others are here, cut by
who must act. A script that does not compile is no error: it has a result, whose ``status`` is 1.
"""

from __future__ import annotations

from stapsrv.errors import StapsrvError


class ClientError(StapsrvError):
    """The caller must act: an option, an address or a file that cannot be used; nothing was sent."""


class ServerUnavailable(StapsrvError):
    """No server answered in time: it cannot be reached, is busy, or cut the connection."""


class ServerNotTrusted(StapsrvError):
    """A server showed a certificate that is not trusted; nothing of the request was sent to it."""


class UnknownServer(ServerNotTrusted):
    """A server that was never seen before.

    ``address`` is that of the server, ``fingerprint`` of its certificate, as ``SHA256:`` and hex pairs.
    A user who has compared it can pin it (:meth:`stapsrv.client.known_servers.KnownServers.pin`).
    """

    def __init__(self, address: str, fingerprint: str) -> None:
        super().__init__(
            f"{address} is not known; its certificate is {fingerprint}",
            remedy="compare that with what `stap-server cert show` says, and give it with --fingerprint",
        )
        self.address = address
        self.fingerprint = fingerprint
