"""Who is let in, by the number of connections."""

from __future__ import annotations

import pytest

from stapsrv.config.settings import Limits
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.server.admission import Admission, ConnectionBudget, client_of


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
