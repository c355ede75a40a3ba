"""Where metrics are to be had, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.metrics_address import OFF, MetricsAddress, parse_metrics_address


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("9817", MetricsAddress("127.0.0.1", 9817), "127.0.0.1:9817"),
        (":9817", MetricsAddress("127.0.0.1", 9817), "127.0.0.1:9817"),
        ("localhost:0", MetricsAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("0.0.0.0:9817", MetricsAddress("0.0.0.0", 9817), "0.0.0.0:9817"),
        ("[::]:9817", MetricsAddress("::", 9817), "[::]:9817"),
        ("[::1]:1", MetricsAddress("::1", 1), "[::1]:1"),
        ("unix:/run/m.sock", MetricsAddress(path=Path("/run/m.sock")), "unix:/run/m.sock"),
        ("unix:m.sock", MetricsAddress(path=Path("m.sock")), "unix:m.sock"),
        ("off", OFF, "off"),
        ("No", OFF, "off"),
    ],
)
def test_addresses(text, address, shown):
    assert parse_metrics_address(text) == address
    assert str(address) == shown
    assert parse_metrics_address(shown) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "65536",
        "example.org:9817",
        "1.2.3:9817",
        "::1:9817",
        "[127.0.0.1]:x",
        "[::g]:1",
        "٣",
        "-1",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"^off, unix:PATH, PORT, ADDRESS:PORT or"):
        parse_metrics_address(text)
