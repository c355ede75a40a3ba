"""Who is let in, by address and by the number of connections."""

from __future__ import annotations

import pytest

from stapsrv.config.settings import Limits
from stapsrv.config.table import NetworkAccess
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.server.admission import Admission, ConnectionBudget, NetworkRules, client_of


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
    access = NetworkAccess({"allow": allow, "deny": deny})
    assert NetworkRules(access).permit(address) is permitted


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_client_of_an_address(address, client):
    assert client_of(address) == client


def test_each_bound_is_told_apart():
    budget = ConnectionBudget(3)
    one, other = Admission(budget), Admission(budget)
    limits = Limits({"connections": 2, "connections_per_address": 1})
    one.enter("a")
    assert one.check("a", limits).reject_reason is RejectReason.ADDRESS_CONNECTIONS
    assert one.check("a", limits).reason == "1 connections from a are open already"
    assert one.check("b", limits) is None
    one.enter("b")
    assert one.check("c", limits).reject_reason is RejectReason.CONNECTIONS
    assert other.check("a", limits) is None
    other.enter("a")
    assert other.check("b", limits).reject_reason is RejectReason.TOTAL_CONNECTIONS
    one.leave("a")
    assert other.check("b", limits) is None
    assert (one.open, other.open, budget.open) == (1, 1, 2)
