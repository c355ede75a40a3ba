"""Whom a server lets in, by address."""

from __future__ import annotations

import pytest

from stapsrv.supervisor.server.acl import NetworkRules


@pytest.mark.parametrize(
    ("allow", "deny", "address", "permitted"),
    [
        ((), (), "192.0.2.1", True),
        ((), (), "2001:db8::1", True),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "192.0.3.1", True),
        ((), ("192.0.2.0/24",), "2001:db8::1", True),
        (("192.0.2.0/24",), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.3.1", False),
        (("192.0.2.0/24",), (), "2001:db8::1", False),
        (("192.0.2.0/24",), ("192.0.2.1/32",), "192.0.2.1", False),
        (("192.0.2.1/32",), ("192.0.2.0/24",), "192.0.2.1", False),
        (("192.0.2.0/24", "2001:db8::/32"), (), "2001:db8:1::1", True),
        (("192.0.2.0/24",), (), "::ffff:192.0.2.1", True),
        ((), ("192.0.2.0/24",), "::ffff:192.0.2.1", False),
        (("fe80::/10",), (), "fe80::1%eth0", True),
        (("all",), (), "2001:db8::1", True),
        (("all",), ("all",), "192.0.2.1", False),
        (("none",), (), "192.0.2.1", False),
        ((), ("none",), "192.0.2.1", True),
    ],
)
def test_denied_goes_before_allowed(allow, deny, address, permitted):
    assert NetworkRules(allow=allow, deny=deny).permit(address) is permitted
