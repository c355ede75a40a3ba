"""Where a control socket is."""

from __future__ import annotations

from stapsrv.socket_address import address_of

__all__ = ["SOCKET_NAME", "address_of"]

SOCKET_NAME = "control.sock"
"""Below STAT_PATH/USER."""
